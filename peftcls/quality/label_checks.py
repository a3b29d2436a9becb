"""Check labels: unknown, rare and missing ones, and two spellings of one label."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence

from peftcls.quality.findings import MAX_SHOWN_ROWS, Finding, Severity, count_of
from peftcls.quality.scan import RowSample, SplitScan
from peftcls.tasks.base import Task
from peftcls.tasks.labels import TOO_FEW_LABELS
from peftcls.tasks.list_cells import likely_separator

# A label with fewer training rows is hard to learn.
MIN_ROWS_PER_LABEL = 5
MAX_NAMED_LABELS = 5
# If so many rows all have different labels, these are numbers, ids or texts.
MIN_ROWS_OF_DIFFERENT_LABELS = 20

# A label may be a misspelling of another with similar letters if it has at most this share of its
# rows, or if it occurs once and the other at least five times.
MAX_MISSPELLING_SHARE = 0.05
MIN_ROWS_OF_RIGHT_SPELLING = 5
# Similarities are ratios of `difflib`.
MIN_MISSPELLING_SIMILARITY = 0.8
MIN_SUGGESTION_SIMILARITY = 0.6
MIN_SIMILAR_CHARACTERS = 4
# One wrong letter is looked for in shorter labels too.
MIN_TYPO_CHARACTERS = 3
KINDS = {
    "List": "lists",
    "string": "texts",
    "bool": "truth values",
    "int": "whole numbers",
    "float": "numbers",
}
"""What messages call the types of `datasets`, by a part of their names."""
TRUTH_VALUES = {"true": "1", "false": "0"}
STAND_INS = frozenset({"n/a", "#n/a", "na", "nan", "null", "none", "--", "?"})
"""What tables hold where there is no label, in lower case."""


def label_findings(task: Task, scans: Sequence[SplitScan]) -> list[Finding]:
    """Check the labels of all splits.

    Args:
        task: as it was given by the user, with labels or without.
        scans: of the splits, the training rows first.
    """
    train = scans[0]
    findings = list(_training_labels(task, train))
    for scan in scans[1:]:
        findings += _other_labels(train, scan)
    findings += _label_types(scans)
    findings += _padded_labels(scans)
    findings += _misspellings(scans)
    findings += _joined_labels(task, train)
    return findings


# Which labels there are


def _training_labels(task: Task, train: SplitScan) -> Iterator[Finding]:
    task_labels = task.labels or ()
    unknown: dict[str, RowSample] = {}
    rare: dict[str, RowSample] = {}
    for label, rows in train.labels.items():
        if task_labels and label not in task_labels:
            unknown[label] = rows
        elif rows.count < MIN_ROWS_PER_LABEL:
            rare[label] = rows
    yield from _unknown_labels(unknown, task_labels, train)
    has_one_label_per_row = not task.multi_label
    all_differ = MIN_ROWS_OF_DIFFERENT_LABELS <= train.rows == len(train.labels)
    if has_one_label_per_row and all_differ:
        example = next(iter(train.labels))
        yield Finding(
            "error",
            "own-label",
            f"each of the {train.rows} rows has a different label, such as {example!r}; "
            "choose a column whose labels repeat, or Regression for numbers.",
            train.name,
        )
    else:
        yield from _rare_labels(rare, train)
    yield from _stand_ins(train)
    if not train.labels:
        return
    for label in task_labels:
        if label not in train.labels:
            yield Finding(
                "warning",
                "untrained-label",
                f"no training row has the task's label {label!r}; it is not learnt.",
                train.name,
            )
    if len(train.labels) == 1 and has_one_label_per_row:
        label, rows = next(iter(train.labels.items()))
        yield rows.finding(
            "error",
            "one-label",
            f"every training row has the label {label!r}; {TOO_FEW_LABELS}.",
            train.name,
        )


def _unknown_labels(
    unknown: dict[str, RowSample], task_labels: Sequence[str], train: SplitScan
) -> Iterator[Finding]:
    def sentence(subject: str, count: int, labels: Sequence[str]) -> str:
        return (
            f"{subject} not among the task's labels {_list_labels(task_labels)}; correct the rows, "
            f"or add the missing labels to labels=.{_suggestions(labels, task_labels)}"
        )

    yield from _per_label(unknown, "error", "unknown-label", train, sentence)


def _rare_labels(rare: dict[str, RowSample], train: SplitScan) -> Iterator[Finding]:
    def sentence(subject: str, count: int, labels: Sequence[str]) -> str:
        return (
            f"{subject} too rare to be learnt well: {count_of(count, 'training row')}, expected at "
            f"least {MIN_ROWS_PER_LABEL} per label."
        )

    yield from _per_label(rare, "warning", "rare-label", train, sentence)


def _other_labels(train: SplitScan, scan: SplitScan) -> Iterator[Finding]:
    """Compare the labels of a split with those of the training rows."""
    if not train.labels:
        return
    known = tuple(train.labels)
    unseen = {label: rows for label, rows in scan.labels.items() if label not in train.labels}

    def sentence(subject: str, count: int, labels: Sequence[str]) -> str:
        return (
            f"{subject} in no training row; these have {_list_labels(known)}. Correct the row, or "
            f"put such rows into training.{_suggestions(labels, known)}"
        )

    yield from _per_label(unseen, "error", "unseen-label", scan, sentence)
    absent = [label for label in train.labels if label not in scan.labels]
    if not absent:
        return
    is_one = len(absent) == 1
    subject = "label" if is_one else "labels"
    pronoun = "it" if is_one else "them"
    yield Finding(
        "note",
        "absent-label",
        f"no row has the {subject} {_list_labels(absent)} of the training rows; the scores say "
        f"nothing about {pronoun}.",
        scan.name,
    )


def _per_label(
    rows_by_label: dict[str, RowSample],
    severity: Severity,
    what: str,
    scan: SplitScan,
    sentence: Callable[[str, int, Sequence[str]], str],
) -> Iterator[Finding]:
    """Yield a finding about each label, or one about all labels if they are many.

    Args:
        rows_by_label: the labels with their rows.
        severity: of the findings.
        what: their code.
        scan: of the split.
        sentence: builds the sentence from its subject, such as "the label 'a' is", a number of
            rows, and the labels.
    """
    if len(rows_by_label) <= MAX_NAMED_LABELS:
        for label, rows in rows_by_label.items():
            text = sentence(f"the label {label!r} is", rows.count, (label,))
            yield rows.finding(severity, what, text, scan.name)
        return
    samples = rows_by_label.values()
    numbers = sorted(number for sample in samples for number in sample.rows)
    count = sum(sample.count for sample in samples)
    labels = tuple(rows_by_label)
    text = sentence(f"the labels {_list_labels(labels)} are", count, labels)
    yield RowSample(numbers[:MAX_SHOWN_ROWS], count).finding(severity, what, text, scan.name)


# How labels are written


def _joined_labels(task: Task, train: SplitScan) -> Iterator[Finding]:
    """Labels that look like several with a separator between them that is not the task's."""
    mark = likely_separator({label: rows.count for label, rows in train.labels.items()})
    if mark is None:
        return
    joined = {label: rows for label, rows in train.labels.items() if mark in label}
    setting = f"separator={mark!r}"
    option = f'--label-separator "{mark}"'
    if not task.multi_label:
        setting = f"multi_label=True, {setting}"
        option = f"--task multi-label {option}"
    numbers = sorted(number for rows in joined.values() for number in rows.rows)
    count = sum(rows.count for rows in joined.values())
    yield RowSample(numbers[:MAX_SHOWN_ROWS], count).finding(
        "warning",
        "list-separator",
        f"labels such as {next(iter(joined))!r} look like several with {mark!r} between them, and "
        f"each is read as one; if they are several, give {setting} ({option}).",
        train.name,
    )


def _label_types(scans: Sequence[SplitScan]) -> Iterator[Finding]:
    train = scans[0]
    if not train.labels:
        return
    for scan in scans[1:]:
        if scan.target_type != train.target_type:
            yield Finding(
                "warning",
                "label-kind",
                f"the labels are {_kind_of(scan.target_type)} in {scan.name} and "
                f"{_kind_of(train.target_type)} in {train.name}; 1, 1.0 and '1' are one label, but "
                "use one type.",
                f"{train.name} and {scan.name}",
            )


def _kind_of(target_type: str) -> str:
    """A type of `datasets` in words: "Value('int64')" are whole numbers."""
    for part, kind in KINDS.items():
        if part in target_type:
            return kind
    return target_type


def _padded_labels(scans: Sequence[SplitScan]) -> Iterator[Finding]:
    for scan in scans:
        if scan.padded_labels.count:
            yield scan.padded_labels.finding(
                "note",
                "padded-label",
                "labels begin or end with spaces, which are ignored.",
                scan.name,
            )


def _stand_ins(train: SplitScan) -> Iterator[Finding]:
    for label, rows in train.labels.items():
        if label.casefold() in STAND_INS:
            yield rows.finding(
                "note",
                "stand-in-label",
                f"the label {label!r} often means that there is none; it is learnt as a label.",
                train.name,
            )


def _misspellings(scans: Sequence[SplitScan]) -> Iterator[Finding]:
    counts: dict[str, int] = {}
    for scan in scans:
        for label, rows in scan.labels.items():
            counts[label] = counts.get(label, 0) + rows.count
    labels_by_key: dict[str, list[str]] = {}
    for label in counts:
        labels_by_key.setdefault(_spelling_key(label), []).append(label)
    for labels in labels_by_key.values():
        if len(labels) > 1:
            frequent = max(labels, key=lambda label: counts[label])
            labels.remove(frequent)
            rare = min(labels, key=lambda label: counts[label])
            yield _misspelling(rare, frequent, counts, scans)
    # Of many labels few can be the right spelling, and few a wrong one.
    frequent_labels = [label for label in counts if counts[label] >= MIN_ROWS_OF_RIGHT_SPELLING]
    most = max(counts.values(), default=0)
    for label in counts:
        if counts[label] > max(1, MAX_MISSPELLING_SHARE * most):
            continue
        right_spelling = _likely_spelling(label, frequent_labels, counts)
        if right_spelling is not None:
            yield _misspelling(label, right_spelling, counts, scans)


def _likely_spelling(
    label: str, frequent_labels: Sequence[str], counts: dict[str, int]
) -> str | None:
    """A more frequent label with similar letters, of which this one may be a misspelling."""
    candidates = [other for other in frequent_labels if _is_candidate(label, other, counts)]
    folded_label = label.casefold()
    if len(label) >= MIN_SIMILAR_CHARACTERS:
        folded_candidates = [other.casefold() for other in candidates]
        matches = difflib.get_close_matches(
            folded_label, folded_candidates, 1, MIN_MISSPELLING_SIMILARITY
        )
        for other in candidates:
            if other.casefold() in matches:
                return other
    if len(label) >= MIN_TYPO_CHARACTERS:
        for other in candidates:
            if _is_typo(folded_label, other.casefold()):
                return other
    return None


def _is_candidate(label: str, other: str, counts: dict[str, int]) -> bool:
    """Whether a label may be a misspelling of another, by their counts and digits."""
    if _spelling_key(label) == _spelling_key(other) or _digits(label) != _digits(other):
        return False
    if counts[label] <= MAX_MISSPELLING_SHARE * counts[other]:
        return True
    return counts[label] == 1 and counts[other] >= MIN_ROWS_OF_RIGHT_SPELLING


def _misspelling(
    rare: str, frequent: str, counts: dict[str, int], scans: Sequence[SplitScan]
) -> Finding:
    scan = next(scan for scan in scans if rare in scan.labels)
    return scan.labels[rare].finding(
        "warning",
        "label-spelling",
        f"the label {rare!r} ({count_of(counts[rare], 'row')}) may be {frequent!r} "
        f"({counts[frequent]} rows) in another spelling; they are learnt as two labels. "
        f"Did you mean {frequent!r}?",
        scan.name,
    )


def _is_typo(first: str, second: str) -> bool:
    """Whether one letter is missing, added or wrong, or two neighbours have changed places."""
    short, long = sorted((first, second), key=len)
    start = 0
    while start < len(short) and short[start] == long[start]:
        start += 1
    short_rest = short[start:]
    long_rest = long[start:]
    if short_rest == long_rest[1:]:
        return True
    if len(short) != len(long):
        return False
    is_one_wrong_letter = short_rest[1:] == long_rest[1:]
    is_swap = short_rest == long_rest[1::-1] + long_rest[2:]
    return is_one_wrong_letter or is_swap


def _suggestions(labels: Sequence[str], known: Sequence[str]) -> str:
    """A question that names what was probably meant, with a space before it, or ""."""
    meant = {label: _suggestion(label, known) for label in labels[:MAX_NAMED_LABELS]}
    found = {label: name for label, name in meant.items() if name is not None}
    if not found:
        return ""
    if len(labels) == 1:
        return f" Did you mean {found[labels[0]]!r}?"
    pairs = ", ".join(f"{name!r} for {label!r}" for label, name in found.items())
    return f" Did you mean {pairs}?"


def _suggestion(label: str, known: Sequence[str]) -> str | None:
    """The label that was probably meant."""
    key = _spelling_key(label)
    same_key = [other for other in known if _spelling_key(other) == key]
    similar = difflib.get_close_matches(label, known, 1, MIN_SUGGESTION_SIMILARITY)
    return next(iter([*same_key, *similar]), None)


def _spelling_key(label: str) -> str:
    """A label without case, spaces and punctuation; numbers and truth values in one form."""
    text = " ".join(label.casefold().split())
    try:
        return f"{float(text):g}"
    except ValueError:
        pass
    if text in TRUTH_VALUES:
        return TRUTH_VALUES[text]
    letters = re.sub(r"[\W_]", "", text)
    return letters or text


def _digits(label: str) -> str:
    return re.sub(r"\D", "", label)


def _list_labels(labels: Sequence[str]) -> str:
    text = ", ".join(map(repr, labels[:MAX_NAMED_LABELS]))
    more = len(labels) - MAX_NAMED_LABELS
    return f"{text} and {more} more" if more > 0 else text

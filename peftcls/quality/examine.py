"""What may be wrong with a task's rows: an examination of all splits together, before any training second is spent."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import RowError, as_dataset
from peftcls.quality.findings import SHOWN_ROWS, Examination, Finding, Severity
from peftcls.quality.label_checks import label_findings
from peftcls.quality.leakage import ColumnLooks
from peftcls.quality.scan import Split, closed_labels, scan_rows
from peftcls.tasks.base import Task, token_limit
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.regression import Regression

FEWEST_JUDGES = (
    20  # rows of a split that is to judge or choose; with fewer one row is more than 5 %
)
GIVEAWAY = 0.97  # held-out recall of a rule on one column; what is honestly telling in real texts stays below
FAR = 10.0  # deviations, of which one is 1.4826 times the median distance from the median
LONG_SHARE = 0.1  # of rows that are shortened before it is more than a note
PERCENTILES = (50, 90, 99, 100)
FAULTS: dict[str, tuple[Severity, str]] = {
    "lost-character": (
        "warning",
        "holds the character U+FFFD, which stands for one that was lost; export the table again in UTF-8",
    ),
    "mojibake": (
        "warning",
        "holds UTF-8 that was read in another encoding, such as '\u00c3\u00a9' for '\u00e9'; read the file in its own",
    ),
    "control-character": ("warning", "holds control characters; take them out"),
    "html-entity": (
        "warning",
        "holds HTML entities such as '&amp;'; unescape them unless new texts will have them too",
    ),
    "html-tag": ("note", "holds HTML tags; take them out unless new texts will have them too"),
    "no-word": ("warning", "has neither a letter nor a digit; leave such rows out"),
    "near-empty": ("note", "has fewer than three characters"),
    "impossible-answered": (
        "error",
        "has an answer though is_impossible is true; correct one of the two",
    ),
    "possible-unanswered": (
        "error",
        "has no answer though is_impossible is false; correct one of the two",
    ),
    "moved-answer": (
        "warning",
        "has an answer that is not at its answer_start; it is put right, since it occurs once in its context",
    ),
    "cut-word": ("warning", "has an answer that begins or ends inside a word"),
    "doubtful-answer": (
        "warning",
        "has an answer that also stands in a sentence that shares more words with the question; its "
        "answer_start is doubtful",
    ),
    "long-answer": (
        "warning",
        "has an answer of more tokens than max_answer_tokens, which is never given whole; raise it",
    ),
}
Rows: TypeAlias = datasets.Dataset | Iterable[Mapping[str, Any]]


def examine_rows(
    task: Task,
    train: Rows,
    valid: Rows | None = None,
    test: Rows | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Examination:
    """Read every row of every split once and say what is wrong, or odd, with them for this task.

    Texts are compared by hashes and none is kept. What is wrong with rows is a finding and never an exception.

    Args:
        task: what the rows are for; labels and scale are learnt from the training rows where they are missing.
        train: the rows to learn from.
        valid: the rows that choose the best step.
        test: the rows that judge the result.
        tokenizer: from `load_base`; with it lengths in tokens are examined too.
    """
    tables: dict[str, datasets.Dataset] = {}
    findings: list[Finding] = []
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        if rows is None:
            continue
        try:
            tables[name] = as_dataset(rows, name)
        except RowError as error:
            findings.append(Finding("error", "no-table", str(error), name))
            continue
        if absent := [
            column
            for column in task.columns(with_target=True)
            if column not in tables[name].column_names
        ]:
            findings.append(
                Finding(
                    "error",
                    "no-column",
                    f"there is no column {absent[0]!r}, only {tables[name].column_names}; "
                    f"{type(task).__name__} needs {task.columns(with_target=True)}.",
                    name,
                )
            )
    split_rows = {name: len(table) for name, table in tables.items()}
    if findings:
        return Examination.of(findings, split_rows)
    learnt = _learnt(task, tables["train"])
    looks = (
        ColumnLooks(_cells(tables["train"], task))
        if closed_labels(task) and not getattr(task, "multi_label", False)
        else None
    )
    splits = [
        scan_rows(
            learnt or task,
            name,
            table,
            tokenizer if learnt else None,
            looks if name == "train" else None,
        )
        for name, table in tables.items()
    ]
    for split in splits:
        findings += [
            *_row_findings(split),
            *_repeats(split, free=not closed_labels(task)),
            *_questions(split),
            *_numbers(split),
        ]
        findings += _lengths(split, task, tokenizer) if tokenizer is not None else []
    findings += label_findings(task, splits) if closed_labels(task) else []
    findings += _other_scale(task, splits[0]) if isinstance(task, Regression) else []
    findings += [_few(split) for split in splits[1:] if split.rows < FEWEST_JUDGES]
    findings += [found for one, other in combinations(splits, 2) for found in _leaks(one, other)]
    findings += _giveaways(looks, splits[0], task) if looks else []
    if learnt and not any(
        found.severity == "error" and found.split == "train" for found in findings
    ):
        problem = learnt.table_problem(tables["train"])
        findings += [Finding("error", "table", f"the table {problem}.", "train")] if problem else []
    return Examination.of(findings, split_rows)


def refuse_errors(
    task: Task, train: Rows, valid: Rows | None = None, test: Rows | None = None
) -> Examination:
    """What was found about rows that are about to be learnt from.

    Raises:
        RowError: there is an error among it, which stands in the way.
    """
    found = examine_rows(task, train, valid, test)
    if found.errors:
        raise RowError("\n".join(f"{error.split} rows: {error.sentence}" for error in found.errors))
    return found


def _learnt(task: Task, train: datasets.Dataset) -> Task | None:
    """The task with what the rows determine; None where they are too bad for that, which the findings about rows say."""
    try:
        return task.learn(train)
    except RowError:
        return None


def _cells(table: datasets.Dataset, task: Task) -> list[str]:
    """The columns whose cells are a text or a number, but for the target."""
    target = task.columns(with_target=True)[-1]
    return [
        name
        for name, kind in table.features.items()
        if name != target and isinstance(kind, datasets.Value | datasets.ClassLabel)
    ]


def _row_findings(split: Split) -> Iterator[Finding]:
    for problem, places in split.problems.values():
        yield places.finding("error", "bad-row", f"row {places.rows[0]} {problem}.", split.name)
    for (code, column), places in split.faults.items():
        severity, sentence = FAULTS[code]
        yield places.finding(severity, code, f"column {column!r} {sentence}.", split.name)
    if split.unlisted.count:
        yield split.unlisted.finding(
            "warning",
            "list-separator",
            "the answers have marks of a list but not the task's separator; each is "
            "read as one part.",
            split.name,
        )


def _first(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers[:SHOWN_ROWS])


def _repeats(split: Split, *, free: bool) -> Iterator[Finding]:
    """Texts that occur again in their split, with the same target or with another."""
    table = pd.DataFrame({"row": split.numbers, "text": split.texts, "target": split.targets})
    again = table[table.duplicated(["text", "target"])]
    if len(again):
        yield Finding(
            "note",
            "repeated-row",
            "the rows say what an earlier one says, but for case and spaces; each counts again.",
            split.name,
            _first(again["row"].tolist()),
            len(again),
        )
    once = table.drop_duplicates(["text", "target"])
    odd = table[table["text"].isin(once.loc[once["text"].duplicated(), "text"])]
    if len(odd):
        yield Finding(
            "note" if free else "warning",
            "contradiction",
            "the rows' texts stand in other rows too, with another target; decide for one.",
            split.name,
            _first(odd["row"].tolist()),
            len(odd),
        )


def _few(split: Split) -> Finding:
    rows = f"{split.rows} row{'s' * (split.rows != 1)}"
    return Finding(
        "warning",
        "few-rows",
        f"{rows} to judge by, expected at least {FEWEST_JUDGES}; one row alone moves a score by "
        f"{1 / max(split.rows, 1):.0%}, and its interval means little.",
        split.name,
    )


def _leaks(train: Split, split: Split) -> Iterator[Finding]:
    """Rows of a split whose text the model will have learnt, or will have been chosen by."""
    both = f"{train.name} and {split.name}"
    shared = np.isin(np.array(split.texts, dtype=np.int64), np.array(train.texts, dtype=np.int64))
    if shared.any():
        rows, share = np.array(split.numbers)[shared], shared.mean()
        yield Finding(
            "warning",
            "leak",
            f"{len(rows)} of {split.rows} rows of {split.name} ({share:.1%}) have a text that is in {train.name} too, but for "
            "case and spaces: its scores say less about new rows. Leave them out.",
            both,
            _first(rows.tolist()),
            len(rows),
        )
    if contexts := len(train.contexts & split.contexts):
        yield Finding(
            "warning",
            "shared-context",
            f"{contexts} of {len(split.contexts)} contexts of {split.name} are in {train.name} too; "
            "its scores say less about new documents.",
            both,
        )


def _giveaways(looks: ColumnLooks, train: Split, task: Task) -> Iterator[Finding]:
    used = task.columns(with_target=False)
    for found in looks.giveaways(train.looked_at, least=GIVEAWAY):
        told = (
            f"column {found.column!r} gives the label away: {found.rule} alone is right for {found.recall:.1%} of held-out rows, "
            f"averaged over the labels (chance {found.chance:.1%})"
        )
        yield Finding(
            "warning",
            "giveaway",
            told
            + (
                "; leave it out of what the model reads unless new rows are written alike."
                if found.column in used
                else "; keep it out of what the model reads."
            ),
            train.name,
        )


def _lengths(split: Split, task: Task, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    limit = token_limit(tokenizer, int(getattr(task, "max_length", 0)))
    if not split.tokens:
        return
    wanted = int(getattr(task, "max_length", 0))
    told = (
        f": the model has as many positions, fewer than max_length={wanted}"
        if limit < wanted
        else ""
    )
    places = ", ".join(
        f"{p} % at most {int(v)}"
        for p, v in zip(PERCENTILES, np.percentile(split.tokens, PERCENTILES), strict=True)
    )
    yield Finding(
        "note",
        "tokens",
        f"tokens of a row's texts: {places}; the limit, with all that is around them, is {limit}{told}.",
        split.name,
    )
    if split.shortened.count:
        windows = isinstance(task, ExtractiveQA) or getattr(task, "long_text", None) == "windows"
        long = split.shortened.count > LONG_SHARE * split.rows
        raised = "the model reads no more" if limit < wanted else "raise max_length"
        other = " or use long_text='windows'" if hasattr(task, "long_text") else ""
        what = (
            "are read in several windows"
            if windows
            else f"lose the end of their text; {raised}{other}"
        )
        severity: Severity = "warning" if long and not windows else "note"
        sentence = f"{split.shortened.count} of {split.rows} rows are longer than {limit} tokens and {what}."
        yield split.shortened.finding(
            severity, "windows" if windows else "shortened", sentence, split.name
        )


def _numbers(split: Split) -> Iterator[Finding]:
    """Targets of a regression that are all the same, or far from all others."""
    values = np.array(split.values)
    if not len(values):
        return
    if np.ptp(values) == 0:
        yield Finding(
            "error" if split.name == "train" else "warning",
            "constant-target",
            f"every row has the target {values[0]:g}; there is nothing to learn or to compare.",
            split.name,
        )
        return
    middle = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - middle)) or float(np.std(values))
    far = np.abs(values - middle) > FAR * deviation
    if far.any():
        rows = np.array(split.numbers)[far]
        yield Finding(
            "warning",
            "outlier",
            f"the targets {', '.join(f'{v:g}' for v in values[far][:SHOWN_ROWS])} are more than {FAR:g} "
            f"robust deviations from the median {middle:g}; the squared error will follow them.",
            split.name,
            _first(rows.tolist()),
            int(far.sum()),
        )


def _other_scale(task: Regression, train: Split) -> Iterator[Finding]:
    """Numbers far from those that the task has its scale from, as where an adapter learns on from a table in other units."""
    if task.mean is not None and task.deviation is not None and train.values:
        middle = float(np.median(train.values))
        if (off := abs(middle - task.mean) / task.deviation) > FAR:
            yield Finding(
                "warning",
                "other-scale",
                f"the targets lie around {middle:g}, {off:.0f} deviations from the mean {task.mean:g} "
                "of those learnt first; write them in the same units, or train anew.",
                train.name,
            )


def _questions(split: Split) -> Iterator[Finding]:
    """What is odd about questions as a table: identities that occur again, paragraphs that nobody asks about."""
    ids = pd.Series(split.ids, dtype=object)
    again = ids[ids.duplicated() & ids.notna()]
    if len(again):
        rows = [int(place) + 1 for place in again.index]
        yield Finding(
            "error" if split.name == "train" else "warning",
            "duplicate-id",
            f"the id {again.iloc[0]!r} occurs again; give each question its own.",
            split.name,
            _first(rows),
            len(rows),
        )
    silent = [
        (title, number)
        for title, found in split.paragraphs.items()
        for number in range(1, max(found))
        if number not in found
    ]
    if silent:
        title, number = silent[0]
        yield Finding(
            "note",
            "silent-paragraph",
            f"{len(silent)} paragraphs have no question, first paragraph {number} of {title!r}; they "
            "are not read.",
            split.name,
        )

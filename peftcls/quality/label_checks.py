"""What is odd about the labels of the splits of a table, taken together."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence

from peftcls.quality.findings import SHOWN_ROWS, Finding, Severity
from peftcls.quality.scan import Places, Split
from peftcls.tasks.base import Task
from peftcls.tasks.labels import ONE_LABEL

FEWEST_ROWS = 5  # of a label in training: with fewer it is hardly learnt
SLIP_SHARE = 0.05  # a label with at most this share of the rows of one spelt nearly alike may be a slip of the pen
ALIKE = 0.8  # by difflib's ratio
SHORTEST_WORD = 4
SHORTEST_SLIP = 3  # letters of a label that one wrong letter is looked for in
OFTEN_ROWS = 5  # of a label, beside which another that occurs once may be a slip of the pen
NEAR = 0.6
MOST_NAMED = 5
MANY_LABELS = 20  # that each stand in one row are not labels, but numbers, identities or texts
SAME = {"true": "1", "false": "0"}


def label_findings(task: Task, splits: Sequence[Split]) -> list[Finding]:
    """Findings about labels.

    Args:
        task: as it was given, with labels or without.
        splits: the training rows first.
    """
    return [
        *_of_training(task, splits[0]),
        *(found for split in splits[1:] for found in _of_others(splits[0], split)),
        *_kinds(splits),
        *_spellings(splits),
    ]


def _of_training(task: Task, train: Split) -> Iterator[Finding]:
    listed = tuple(getattr(task, "labels", None) or ())
    one_each = not getattr(task, "multi_label", False)
    unknown = {
        name: places for name, places in train.labels.items() if listed and name not in listed
    }
    rare = {
        name: places
        for name, places in train.labels.items()
        if name not in unknown and places.count < FEWEST_ROWS
    }
    yield from _one_by_one(
        unknown,
        "error",
        "unknown-label",
        train,
        lambda names, _: (
            f"{names} none of the task's {_named(listed)}; correct the rows, or complete labels=.{_meant(next(iter(unknown)), listed)}"
        ),
    )
    if one_each and MANY_LABELS <= train.rows == len(train.labels):
        yield Finding(
            "error",
            "own-label",
            f"each of the {train.rows} rows has a label of its own, such as {next(iter(train.labels))!r}; "
            "choose a column whose labels come again, or Regression for numbers.",
            train.name,
        )
    else:
        yield from _one_by_one(
            rare,
            "warning",
            "rare-label",
            train,
            lambda names, count: (
                f"{names} hardly learnt: {count} training row{'s' * (count != 1)}, expected at least {FEWEST_ROWS} of a label."
            ),
        )
    for name in listed:
        if train.labels and name not in train.labels:
            yield Finding(
                "warning",
                "untrained-label",
                f"no training row has the task's label {name!r}; it is not learnt.",
                train.name,
            )
    if len(train.labels) == 1 and one_each:
        name, places = next(iter(train.labels.items()))
        yield places.finding(
            "error",
            "one-label",
            f"every training row has the label {name!r}; {ONE_LABEL}.",
            train.name,
        )


def _of_others(train: Split, split: Split) -> Iterator[Finding]:
    if not train.labels:
        return
    unseen, known = (
        {name: places for name, places in split.labels.items() if name not in train.labels},
        tuple(train.labels),
    )
    yield from _one_by_one(
        unseen,
        "error",
        "unseen-label",
        split,
        lambda names, _: (
            f"{names} in no training row; these have {_named(known)}. Correct the row, or put such rows into training."
            f"{_meant(next(iter(unseen)), known)}"
        ),
    )
    if absent := [name for name in train.labels if name not in split.labels]:
        yield Finding(
            "note",
            "absent-label",
            f"no row has the label{'s' * (len(absent) > 1)} {_named(absent)} of the training rows; the "
            f"scores say nothing about {'them' if len(absent) > 1 else 'it'}.",
            split.name,
        )


def _one_by_one(
    found: dict[str, Places],
    severity: Severity,
    what: str,
    split: Split,
    sentence: Callable[[str, int], str],
) -> Iterator[Finding]:
    """A finding about each label, or one about all where they are too many to be read; `sentence` goes on from their names."""
    if len(found) <= MOST_NAMED:
        for name, places in found.items():
            yield places.finding(
                severity, what, sentence(f"the label {name!r} is", places.count), split.name
            )
        return
    rows, count = (
        sorted(row for places in found.values() for row in places.rows),
        sum(places.count for places in found.values()),
    )
    yield Places(rows[:SHOWN_ROWS], count).finding(
        severity, what, sentence(f"the labels {_named(tuple(found))} are", count), split.name
    )


def _kinds(splits: Sequence[Split]) -> Iterator[Finding]:
    first = splits[0]
    for split in splits[1:]:
        if first.labels and split.target_kind != first.target_kind:
            yield Finding(
                "warning",
                "label-kind",
                f"the labels are {split.target_kind} in {split.name} and {first.target_kind} in "
                f"{first.name}; 1, 1.0 and '1' are one label and True is 1, but write them in one way.",
                f"{first.name} and {split.name}",
            )


def _spellings(splits: Sequence[Split]) -> Iterator[Finding]:
    for split in splits:
        if split.padded_labels.count:
            yield split.padded_labels.finding(
                "note",
                "padded-label",
                "labels have spaces at an end, which are no part of them.",
                split.name,
            )
    names = list(dict.fromkeys(name for split in splits for name in split.labels))
    counts = {
        name: sum(split.labels[name].count for split in splits if name in split.labels)
        for name in names
    }
    by_fold: dict[str, list[str]] = {}
    for name in names:
        by_fold.setdefault(_folded(name), []).append(name)
    for alike in by_fold.values():
        if len(alike) > 1:
            yield _slip(
                min(alike, key=lambda name: counts[name]),
                max(alike, key=lambda name: counts[name]),
                counts,
                splits,
            )
    for rare in names:
        often = [
            name
            for name in names
            if _folded(rare) != _folded(name)
            and not _digits_differ(rare, name)
            and (
                counts[rare] <= SLIP_SHARE * counts[name]
                or (counts[rare] == 1 and counts[name] >= OFTEN_ROWS)
            )
        ]
        alike = difflib.get_close_matches(
            rare.casefold(), [name.casefold() for name in often], 1, ALIKE
        )
        near = [name for name in often if len(rare) >= SHORTEST_WORD and name.casefold() in alike]
        near += [
            name
            for name in often
            if len(rare) >= SHORTEST_SLIP and _is_slip(rare.casefold(), name.casefold())
        ]
        if near:
            yield _slip(rare, near[0], counts, splits)


def _slip(rare: str, often: str, counts: dict[str, int], splits: Sequence[Split]) -> Finding:
    split, rows = (
        next(split for split in splits if rare in split.labels),
        f"{counts[rare]} row{'s' * (counts[rare] != 1)}",
    )
    return split.labels[rare].finding(
        "warning",
        "label-spelling",
        f"the label {rare!r} ({rows}) may be {often!r} ({counts[often]} rows) in another spelling; they are "
        f"learnt as two labels. Did you mean {often!r}?",
        split.name,
    )


def _is_slip(one: str, other: str) -> bool:
    """Whether a letter is missing, added or wrong, or two beside each other have changed places."""
    short, long = sorted((one, other), key=len)
    same = next((place for place, letter in enumerate(short) if letter != long[place]), len(short))
    short, long = short[same:], long[same:]
    return short == long[1:] or (
        len(short) == len(long) and (short[1:] == long[1:] or short == long[1::-1] + long[2:])
    )


def _meant(name: str, known: Sequence[str]) -> str:
    """A question after the label that may have been meant, with a space before it; nothing where none is near."""
    near = difflib.get_close_matches(name, known, 1, NEAR) or [
        own for own in known if _folded(own) == _folded(name)
    ]
    return f" Did you mean {near[0]!r}?" if near else ""


def _folded(name: str) -> str:
    """A name without what spellings of one label differ in: case, spaces, punctuation, and the form of a number."""
    low = " ".join(name.casefold().split())
    try:
        return f"{float(low):g}"
    except ValueError:
        return SAME.get(low) or re.sub(r"[\W_]", "", low) or low


def _digits_differ(one: str, other: str) -> bool:
    return re.sub(r"\D", "", one) != re.sub(r"\D", "", other)


def _named(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(map(repr, names[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")

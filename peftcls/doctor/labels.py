"""What is odd about the labels of the splits of a table, taken together."""

import difflib
import re
from collections.abc import Iterator, Sequence

from peftcls.doctor.findings import Finding
from peftcls.doctor.scan import Split
from peftcls.tasks.base import Task

FEWEST_ROWS = 5  # of a label in training: with fewer it is hardly learnt
SLIP_SHARE = 0.05  # a label with at most this share of the rows of one spelt nearly alike may be a slip of the pen
ALIKE = 0.8  # by difflib's ratio
SHORTEST_WORD = 4
MOST_NAMED = 5
SAME = {"true": "1", "false": "0"}


def label_findings(task: Task, splits: Sequence[Split]) -> list[Finding]:
    """Findings about labels.

    Args:
        task: as it was given, with labels or without.
        splits: the training rows first.
    """
    return [*_of_training(task, splits[0]), *(found for split in splits[1:] for found in _of_others(splits[0], split)),
            *_kinds(splits), *_spellings(splits)]


def _of_training(task: Task, train: Split) -> Iterator[Finding]:
    listed = tuple(getattr(task, "labels", None) or ())
    for name, places in train.labels.items():
        if listed and name not in listed:
            yield places.finding("error", "unknown-label", f"the label {name!r} is none of the task's {_named(listed)}; correct the rows, "
                                                           "or add it to labels=.", train.name)
        elif places.count < FEWEST_ROWS:
            yield places.finding("warning", "rare-label", f"the label {name!r} has {places.count} training rows, expected at least "
                                                          f"{FEWEST_ROWS}; it will hardly be learnt.", train.name)
    for name in listed:
        if train.labels and name not in train.labels:
            yield Finding("warning", "untrained-label", f"no training row has the task's label {name!r}; it is not learnt.", train.name)
    if len(train.labels) == 1 and not getattr(task, "multi_label", False):
        name, places = next(iter(train.labels.items()))
        yield places.finding("error", "one-label", f"every training row has the label {name!r}; a classifier needs rows of two or more.",
                             train.name)


def _of_others(train: Split, split: Split) -> Iterator[Finding]:
    if not train.labels:
        return
    for name, places in split.labels.items():
        if name not in train.labels:
            yield places.finding("error", "unseen-label", f"the label {name!r} is in no training row; these have "
                                                          f"{_named(tuple(train.labels))}. Correct it, or put such rows into training.",
                                 split.name)
    if absent := [name for name in train.labels if name not in split.labels]:
        yield Finding("note", "absent-label", f"no row has the label{'s' * (len(absent) > 1)} {_named(absent)} of the training rows; the "
                                              f"scores say nothing about {'them' if len(absent) > 1 else 'it'}.", split.name)


def _kinds(splits: Sequence[Split]) -> Iterator[Finding]:
    first = splits[0]
    for split in splits[1:]:
        if first.labels and split.target_kind != first.target_kind:
            yield Finding("warning", "label-kind", f"the labels are {split.target_kind} in {split.name} and {first.target_kind} in "
                                                   f"{first.name}; 1, 1.0 and '1' are one label and True is 1, but write them in one way.",
                          f"{first.name} and {split.name}")


def _spellings(splits: Sequence[Split]) -> Iterator[Finding]:
    for split in splits:
        if split.padded_labels.count:
            yield split.padded_labels.finding("note", "padded-label", "labels have spaces at an end, which are no part of them.",
                                              split.name)
    names = list(dict.fromkeys(name for split in splits for name in split.labels))
    counts = {name: sum(split.labels[name].count for split in splits if name in split.labels) for name in names}
    by_fold: dict[str, list[str]] = {}
    for name in names:
        by_fold.setdefault(_folded(name), []).append(name)
    for alike in by_fold.values():
        if len(alike) > 1:
            yield _slip(min(alike, key=lambda name: counts[name]), max(alike, key=lambda name: counts[name]), counts, splits)
    for rare in names:
        often = [name for name in names if counts[rare] <= SLIP_SHARE * counts[name] and _folded(rare) != _folded(name)]
        near = difflib.get_close_matches(rare.casefold(), [name.casefold() for name in often], 1, ALIKE)
        if near and len(rare) >= SHORTEST_WORD and not _digits_differ(rare, near[0]):
            yield _slip(rare, next(name for name in often if name.casefold() == near[0]), counts, splits)


def _slip(rare: str, often: str, counts: dict[str, int], splits: Sequence[Split]) -> Finding:
    split = next(split for split in splits if rare in split.labels)
    return split.labels[rare].finding("warning", "label-spelling",
                                      f"the label {rare!r} ({counts[rare]} rows) may be {often!r} ({counts[often]} rows) in another "
                                      "spelling; they are learnt as two labels.", split.name)


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

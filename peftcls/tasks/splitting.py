"""Rows that are put aside to choose and to judge by, when nobody has done it yet."""

import hashlib
from collections import Counter

import datasets
import numpy as np

from peftcls.data.reading import Row, RowError, source_name
from peftcls.tasks.base import Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.regression import Regression

NEIGHBOURS = 10  # rows of similar numbers that give their share together


def split_off(
    task: Task, rows: datasets.Dataset, share: float, *, name: str, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Put a share of the rows aside: what is left, and what was put aside, each in the rows' order.

    Every label (every range of numbers, for regression) gives the same share, and keeps at least one text. Rows with the
    same text (the same context, for questions) stay together, so that nothing is judged by what it has learnt.

    Args:
        task: says what a row's text and label are; the rows have passed `check_rows`.
        rows: the table.
        share: of the different texts, above 0 and below 1.
        name: what they are put aside for, in the message about too few of them ("test").
        seed: of the choice.

    Raises:
        RowError: there are too few different texts.
    """
    places: dict[bytes, list[int]] = {}
    golds: list[tuple[str, ...]] = []
    for place, row in enumerate(rows.select_columns(task.columns(with_target=True))):
        places.setdefault(
            hashlib.blake2b(_text(task, row).encode(), digest_size=16).digest(), []
        ).append(place)
        golds.append(task.gold_of(row))
    texts = list(places.values())
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    aside: list[int] = []
    due = 0.0
    for stratum in _strata(task, [golds[texts[i][0]] for i in order]):
        due += share * len(stratum)
        count = min(
            int(due + 1e-9), len(stratum) - 1
        )  # a share of 0.1 of ten rows is one row, also in binary
        due -= count
        aside += [place for i in stratum[:count] for place in texts[order[i]]]
    if not aside:
        raise RowError(
            f"{source_name(rows)} has {len(texts)} different texts, too few to put {share:.0%} of them aside for {name}; give "
            f"a file of rows for {name}, or more rows."
        )
    chosen = set(aside)
    kept = [place for place in range(len(rows)) if place not in chosen]
    return rows.select(kept), rows.select(sorted(aside))


def _text(task: Task, row: Row) -> str:
    return str(row[task.context]) if isinstance(task, ExtractiveQA) else task.text_of(row)


def _strata(task: Task, golds: list[tuple[str, ...]]) -> list[list[int]]:
    """The indices of texts that give their share together: of one label (the rarest of several), or of similar numbers."""
    everything = list(range(len(golds)))
    if isinstance(task, Regression):
        by_number = sorted(everything, key=lambda i: float(golds[i][0]))
        return [
            sorted(by_number[i : i + NEIGHBOURS]) for i in range(0, len(golds), NEIGHBOURS)
        ]  # each in the order of chance again
    if not getattr(task, "labels", None):
        return [everything]
    counts = Counter(name for gold in golds for name in gold)
    strata: dict[str, list[int]] = {}
    for i, gold in enumerate(golds):
        strata.setdefault(min(gold, key=lambda name: (counts[name], name), default=""), []).append(
            i
        )
    return [strata[name] for name in sorted(strata, key=lambda name: (-len(strata[name]), name))]

"""Split off rows for validation or testing, so that no text is on both sides."""

import hashlib

import datasets
import numpy as np

from peftcls.data.reading import Row, RowError, source_name
from peftcls.data.row_numbers import select_rows
from peftcls.tasks.base import Task
from peftcls.tasks.grouping import connected_groups, group_values, put_groups_aside

ROUNDING = 1e-9  # a share of 0.1 of ten rows is one row, also in binary


def same_text_key(text: str) -> str:
    """What two texts share that count as the same: case and spaces make no difference."""
    return " ".join(text.casefold().split())


def split_off(
    task: Task,
    rows: datasets.Dataset,
    share: float,
    *,
    name: str,
    seed: int = 0,
    group: str | None = None,
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off a stratified share of the rows; both parts keep the order of the rows.

    Every label (every range of numbers, for regression) gives the same share and keeps at least one
    text. Rows with the same text (the same context, for questions) stay together, whatever their
    case and spaces, so that the model is never tested on a text that it was trained on. So do rows
    with the same value in the column `group`; the shares then hold as well as the groups allow.

    Args:
        task: says what a row's text and label are; the rows have passed `check_rows`.
        rows: the table.
        share: of the different texts, above 0 and below 1; with `group`, of the rows.
        name: what the rows are split off for ("test"), for the message about too few texts.
        seed: of the random choice.
        group: the column that says which rows belong together, such as a customer or a patient.

    Returns:
        The remaining rows and the rows that were split off.

    Raises:
        RowError: there are too few different texts or groups, no such column, or no value in it.
    """
    if group is not None:
        chosen, what = _choose_groups(task, rows, share, seed, group)
    else:
        chosen, what = _choose_texts(task, rows, share, seed)
    if not chosen:
        raise RowError(
            f"{source_name(rows)} has {what}, too few to put {share:.0%} of "
            f"them aside for {name}; give a file of rows for {name}, or more rows."
        )
    rest = [index for index in range(len(rows)) if index not in chosen]
    return select_rows(rows, rest), select_rows(rows, sorted(chosen))


def row_groups(task: Task, rows: datasets.Dataset, group: str | None = None) -> list[int]:
    """The group of each row, from 0: rows that no split parts.

    Args:
        task: says what a row's text is.
        rows: the table; they have passed `check_rows`.
        group: the column whose values keep rows together, beside their texts.

    Raises:
        RowError: there is no such column, or a row has no value in it.
    """
    texts = [_text_digest(task, row) for row in _task_columns(task, rows)]
    if group is None:
        return connected_groups(texts)
    return connected_groups(texts, group_values(rows, group))


def stratum_of_rows(task: Task, rows: datasets.Dataset) -> list[int]:
    """The stratum of each row: its label, or the range of its number."""
    strata = task.strata([task.gold_of(row) for row in _task_columns(task, rows)])
    stratum_of = {row: stratum for stratum, members in enumerate(strata) for row in members}
    return [stratum_of[row] for row in range(len(rows))]


def _task_columns(task: Task, rows: datasets.Dataset) -> datasets.Dataset:
    return rows.select_columns(task.columns(with_target=True))


def _text_digest(task: Task, row: Row) -> bytes:
    """What rows with the same text share, in a few bytes."""
    return hashlib.blake2b(same_text_key(task.split_key(row)).encode(), digest_size=16).digest()


def _choose_groups(
    task: Task, rows: datasets.Dataset, share: float, seed: int, group: str
) -> tuple[set[int], str]:
    """The rows to split off, and how many groups there are, in words."""
    groups = row_groups(task, rows, group)
    chosen = put_groups_aside(groups, stratum_of_rows(task, rows), share, seed=seed)
    count = max(groups) + 1
    plural = "" if count == 1 else "s"
    return set(chosen), f"{count} group{plural} by column {group!r} and by text"


def _choose_texts(
    task: Task, rows: datasets.Dataset, share: float, seed: int
) -> tuple[set[int], str]:
    """The rows to split off, and how many texts there are, in words."""
    rows_by_text: dict[bytes, list[int]] = {}
    golds: list[tuple[str, ...]] = []
    for index, row in enumerate(_task_columns(task, rows)):
        rows_by_text.setdefault(_text_digest(task, row), []).append(index)
        golds.append(task.gold_of(row))
    texts = list(rows_by_text.values())
    order = np.random.default_rng(seed).permutation(len(texts))
    shuffled = [texts[i] for i in order.tolist()]
    strata = task.strata([golds[indices[0]] for indices in shuffled])
    chosen: set[int] = set()
    for text in _choose(strata, share):
        chosen.update(shuffled[text])
    return chosen, f"{len(texts)} different texts"


def _choose(strata: list[list[int]], share: float) -> list[int]:
    """The first indices of each stratum; a fraction that is lost to rounding goes to the next."""
    chosen: list[int] = []
    due = 0.0
    for stratum in strata:
        due += share * len(stratum)
        count = min(int(due + ROUNDING), len(stratum) - 1)
        due -= count
        chosen += stratum[:count]
    return chosen

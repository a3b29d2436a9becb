"""Split off rows for validation or testing, so that no text is on both sides."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence

import datasets
import numpy as np

from peftcls.data.reading import Row, RowError, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import select_rows
from peftcls.tasks.base import Task
from peftcls.tasks.grouping import connected_groups, group_values, put_groups_aside

ROUNDING = 1e-9  # a share of 0.1 of ten rows is one row, also in binary
KEY_BYTES = 8  # two texts that share a key by chance are only kept on one side


class TooFewTextsError(RowError):
    """There are too few different texts, or groups, to split a share of them off.

    Args:
        source: the name of the rows.
        found: how many there are, in words.
        share: that was to be split off.
        name: what the rows were to be split off for.
    """

    def __init__(self, source: str, found: str, share: float, name: str) -> None:
        super().__init__(
            f"{source} has {found}, too few to put {share:.0%} of them aside for {name}; give a "
            f"file of rows for {name}, or more rows."
        )
        self.found = found


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
        is_aside, what = _choose_groups(task, rows, share, seed, group)
    else:
        is_aside, what = _choose_texts(task, rows, share, seed)
    if not is_aside.any():
        raise TooFewTextsError(source_name(rows), what, share, name)
    rest, aside = np.flatnonzero(~is_aside), np.flatnonzero(is_aside)
    return select_rows(rows, rest), select_rows(rows, aside)


def row_groups(task: Task, rows: datasets.Dataset, group: str | None = None) -> list[int]:
    """The group of each row, from 0: rows that no split parts.

    Args:
        task: says what a row's text is.
        rows: the table; they have passed `check_rows`.
        group: the column whose values keep rows together, beside their texts.

    Raises:
        RowError: there is no such column, or a row has no value in it.
    """
    text_of_row, _ = _texts_and_golds(task, rows)
    texts: list[int] = text_of_row.tolist()
    if group is None:
        return texts
    return connected_groups(texts, group_values(rows, group))


def stratum_of_rows(task: Task, rows: datasets.Dataset) -> list[int]:
    """The stratum of each row: its label, or the range of its number."""
    stratum_of = np.zeros(len(rows), dtype=np.int64)
    golds = [task.gold_of(row) for row in _task_rows(task, rows)]
    for stratum, members in enumerate(task.strata(golds)):
        stratum_of[np.asarray(members, dtype=np.int64)] = stratum
    numbers: list[int] = stratum_of.tolist()
    return numbers


def _task_rows(task: Task, rows: datasets.Dataset) -> Iterator[Row]:
    """The columns that the task reads, row by row."""
    return each_row(rows, task.columns_among(rows.column_names, with_target=True))


def _choose_groups(
    task: Task, rows: datasets.Dataset, share: float, seed: int, group: str
) -> tuple[np.ndarray, str]:
    """Whether each row is split off, and how many groups there are, in words."""
    groups = row_groups(task, rows, group)
    is_chosen = np.zeros(len(rows), dtype=bool)
    is_chosen[put_groups_aside(groups, stratum_of_rows(task, rows), share, seed=seed)] = True
    count = max(groups) + 1
    plural = "" if count == 1 else "s"
    return is_chosen, f"{count} group{plural} by column {group!r} and by text"


def _choose_texts(
    task: Task, rows: datasets.Dataset, share: float, seed: int
) -> tuple[np.ndarray, str]:
    """Whether each row is split off, and how many texts there are, in words."""
    text_of_row, golds = _texts_and_golds(task, rows)
    order = np.random.default_rng(seed).permutation(len(golds))
    strata = task.strata([golds[text] for text in order])
    is_chosen = np.zeros(len(golds), dtype=bool)
    is_chosen[order[np.array(_choose(strata, share), dtype=np.int64)]] = True
    return is_chosen[text_of_row], f"{len(golds)} different texts"


def _texts_and_golds(
    task: Task, rows: datasets.Dataset
) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """The number of each row's text, by first occurrence, and the right answer to each text.

    Texts are known by hashes, and equal answers are one object, so that a row takes a few bytes.
    """
    keys = array("Q")
    golds: list[tuple[str, ...]] = []
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    # A task without labels or numbers takes its rows from anywhere.
    needs_golds = bool(task.labels) or type(task).strata is not Task.strata
    for row in _task_rows(task, rows):
        text = same_text_key(task.split_key(row)).encode()
        digest = hashlib.blake2b(text, digest_size=KEY_BYTES).digest()
        keys.append(int.from_bytes(digest, "little"))
        gold = task.gold_of(row) if needs_golds else ()
        golds.append(known.setdefault(gold, gold))
    _, first_rows, texts = np.unique(
        np.frombuffer(keys, np.uint64), return_index=True, return_inverse=True
    )
    # `unique` sorts by key; texts are numbered in the order of the rows.
    by_row = first_rows.argsort()
    number_of_text = np.empty_like(by_row)
    number_of_text[by_row] = np.arange(len(by_row))
    return number_of_text[texts], [golds[row] for row in first_rows[by_row]]


def _choose(strata: Sequence[Sequence[int]], share: float) -> list[int]:
    """The first indices of each stratum; a fraction that is lost to rounding goes to the next."""
    chosen: list[int] = []
    due = 0.0
    for stratum in strata:
        due += share * len(stratum)
        count = min(int(due + ROUNDING), len(stratum) - 1)
        due -= count
        chosen += stratum[:count]
    return chosen

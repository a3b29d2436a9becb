"""Split off rows for validation or testing, so that no text is on both sides."""

import hashlib
from array import array
from collections.abc import Sequence

import datasets
import numpy as np

from peftcls.data.reading import RowError, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import select_rows
from peftcls.tasks.base import Task

ROUNDING = 1e-9  # a share of 0.1 of ten rows is one row, also in binary
KEY_BYTES = 8  # two texts that share a key by chance are only kept on one side


def same_text_key(text: str) -> str:
    """What two texts share that count as the same: case and spaces make no difference."""
    return " ".join(text.casefold().split())


def split_off(
    task: Task, rows: datasets.Dataset, share: float, *, name: str, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off a stratified share of the rows; both parts keep the order of the rows.

    Every label (every range of numbers, for regression) gives the same share and keeps at least one
    text. Rows with the same text (the same context, for questions) stay together, whatever their
    case and spaces, so that the model is never tested on a text that it was trained on.

    Args:
        task: says what a row's text and label are; the rows have passed `check_rows`.
        rows: the table.
        share: of the different texts, above 0 and below 1.
        name: what the rows are split off for ("test"), for the message about too few texts.
        seed: of the random choice.

    Returns:
        The remaining rows and the rows that were split off.

    Raises:
        RowError: there are too few different texts.
    """
    text_of_row, golds = _texts_and_golds(task, rows)
    order = np.random.default_rng(seed).permutation(len(golds))
    strata = task.strata([golds[text] for text in order])
    is_chosen = np.zeros(len(golds), dtype=bool)
    is_chosen[order[np.array(_choose(strata, share), dtype=np.int64)]] = True
    if not is_chosen.any():
        raise RowError(
            f"{source_name(rows)} has {len(golds)} different texts, too few to put {share:.0%} of "
            f"them aside for {name}; give a file of rows for {name}, or more rows."
        )
    is_aside = is_chosen[text_of_row]
    rest, aside = np.flatnonzero(~is_aside), np.flatnonzero(is_aside)
    return select_rows(rows, rest), select_rows(rows, aside)


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
    columns = task.columns_among(rows.column_names, with_target=True)
    for row in each_row(rows, columns):
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

"""Split off rows for validation or testing, so that no text is on both sides."""

import hashlib

import datasets
import numpy as np

from peftcls.data.reading import RowError, source_name
from peftcls.data.row_numbers import select_rows
from peftcls.tasks.base import Task

ROUNDING = 1e-9  # a share of 0.1 of ten rows is one row, also in binary


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
    rows_by_text: dict[bytes, list[int]] = {}
    golds: list[tuple[str, ...]] = []
    columns = task.columns_among(rows.column_names, with_target=True)
    for index, row in enumerate(rows.select_columns(columns)):
        key = hashlib.blake2b(same_text_key(task.split_key(row)).encode(), digest_size=16).digest()
        rows_by_text.setdefault(key, []).append(index)
        golds.append(task.gold_of(row))
    texts = list(rows_by_text.values())
    order = np.random.default_rng(seed).permutation(len(texts))
    shuffled = [texts[i] for i in order.tolist()]
    strata = task.strata([golds[indices[0]] for indices in shuffled])
    chosen: set[int] = set()
    for text in _choose(strata, share):
        chosen.update(shuffled[text])
    if not chosen:
        raise RowError(
            f"{source_name(rows)} has {len(texts)} different texts, too few to put {share:.0%} of "
            f"them aside for {name}; give a file of rows for {name}, or more rows."
        )
    rest = [index for index in range(len(rows)) if index not in chosen]
    return select_rows(rows, rest), select_rows(rows, sorted(chosen))


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

"""The numbers that rows have in the user's file, also after some of them were put aside.

They travel with the table's name, which messages need anyway, so no column is added.
"""

from array import array
from collections.abc import Sequence

import datasets
import numpy as np

from peftcls.data.reading import name_source, source_name


class _NumberedName(str):
    """What messages call a part of a file, with the rows' numbers there.

    Attributes:
        numbers: of the rows of one table, from 1.
        fingerprint: of that table; whatever is made of it has other rows.
    """

    numbers: Sequence[int]
    fingerprint: str


def select_rows(rows: datasets.Dataset, indices: Sequence[int] | np.ndarray) -> datasets.Dataset:
    """A part of a table whose rows keep the numbers that they have in the whole.

    Args:
        rows: the table.
        indices: of the rows to take, from 0.
    """
    numbers = row_numbers(rows)
    part = rows.select(indices)
    return _number_rows(part, source_name(rows), array("q", (numbers[index] for index in indices)))


def name_part(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Store what messages call a part of a file, whose rows keep their numbers; return the rows."""
    return _number_rows(rows, name, row_numbers(rows))


def number_rows(rows: datasets.Dataset, numbers: Sequence[int]) -> datasets.Dataset:
    """Store the numbers that rows have in the user's file, from 1; return the rows."""
    return _number_rows(rows, source_name(rows), numbers)


def row_numbers(rows: datasets.Dataset) -> Sequence[int]:
    """The number of each row in its file, from 1; its place in the table unless it was selected."""
    name = rows.info.description
    if isinstance(name, _NumberedName) and name.fingerprint == rows._fingerprint:
        return name.numbers
    return range(1, len(rows) + 1)


def _number_rows(rows: datasets.Dataset, name: str, numbers: Sequence[int]) -> datasets.Dataset:
    numbered = _NumberedName(name)
    numbered.numbers = numbers
    numbered.fingerprint = rows._fingerprint
    return name_source(rows, numbered)

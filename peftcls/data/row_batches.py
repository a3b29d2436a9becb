"""Rows and cells one by one, read in batches: a table of any length takes the same memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets

from peftcls.data.text_files import Row

READ_ROWS = 256


def each_row(table: datasets.Dataset, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a table in their order.

    Args:
        table: the rows.
        columns: that are read; all of them unless given.
    """
    if columns is not None and list(columns) != table.column_names:
        table = table.select_columns(list(columns))
    for batch in table.iter(READ_ROWS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def each_cell(table: datasets.Dataset, column: str) -> Iterator[Any]:
    """The cells of a column in the order of the rows."""
    for batch in table.select_columns([column]).iter(READ_ROWS):
        yield from batch[column]

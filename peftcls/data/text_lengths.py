"""How long the texts of columns are, by which the column of the texts is told from others."""

from collections.abc import Iterable

import datasets


def text_lengths(first_rows: datasets.Dataset, columns: Iterable[str]) -> dict[str, int]:
    """The characters of all values of each column.

    Args:
        first_rows: so many rows of a table as are to be looked at.
        columns: of it.
    """
    return {column: sum(len(str(value)) for value in first_rows[column][:]) for column in columns}

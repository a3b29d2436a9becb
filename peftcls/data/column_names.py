"""Find a column by the name that a user wrote."""

import difflib

import datasets

from peftcls.data.reading import RowError, source_name


def has_column(rows: datasets.Dataset, name: str) -> bool:
    """Whether a table has a column of this name, in upper or lower case."""
    return name.casefold() in {column.casefold() for column in rows.column_names}


def find_column(rows: datasets.Dataset, name: str) -> str:
    """The table's spelling of a column name, which may differ in upper and lower case.

    Args:
        rows: the table.
        name: as it was written.

    Raises:
        RowError: there is no such column; the message names the most similar one.
    """
    if name in rows.column_names:
        return name
    for column in rows.column_names:
        if column.casefold() == name.casefold():
            return column
    similar = difflib.get_close_matches(name, rows.column_names, 1)
    hint = f" Did you mean {similar[0]!r}?" if similar else ""
    raise RowError(f"{source_name(rows)} has no column {name!r}; it has {rows.column_names}.{hint}")

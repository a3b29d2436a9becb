"""Notice a file without names of columns: its first row was read as these, or some are empty."""

import dataclasses
import logging
from collections.abc import Sequence

import datasets

from peftcls.data.text_lengths import text_lengths

logger = logging.getLogger("peftcls")

FINDING = {"is_finding": True}
"""Marks a message that an examination of the rows gives as a finding, too."""
MAX_ROWS = 1000
MIN_SHARE = 0.05
"""A column whose name is so often one of its first values probably has no name."""


def warn_of_names(rows: datasets.Dataset, file: str, given: Sequence[str] | None) -> None:
    """Warn of a first line that is a row, or has no names for some columns, or is no row.

    Args:
        rows: of the file.
        file: its name.
        given: the names of the columns, if the first line was read as a row.
    """
    if given is not None:
        if list(map(str, rows[0].values())) == list(given):
            logger.warning(
                f"The first line of {file} has the very names that are given as columns, and was "
                "read as a row; leave columns (--columns) out."
            )
        return
    unnamed = unnamed_columns(rows)
    if unnamed:
        logger.warning(
            f"{file} has columns without a name, which are called {', '.join(unnamed)} here; no "
            "text or label is looked for in them unless they are asked for by these names."
        )
    found = name_among_values(rows)
    if found is not None:
        logger.warning(
            f"The first line of {file} was read as the names of the columns, but {found} If "
            f"the file has no names, give them: columns={list(found.names)} (--columns "
            f"{','.join(found.names)}), or a first line in the file.",
            extra=FINDING,
        )


@dataclasses.dataclass(frozen=True)
class NameAmongValues:
    """A column whose name is also a value of it.

    Args:
        column: its name.
        count: how many of the first rows have it.
        rows: how many rows were looked at.
        names: that the columns of the file could have, in their order.
    """

    column: str
    count: int
    rows: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.column!r} is also a value of its column, in {self.count} of the first "
            f"{self.rows} rows."
        )


def name_among_values(rows: datasets.Dataset) -> NameAmongValues | None:
    """The first column whose name looks like a value of it, such as a label; None without one."""
    first = rows.select(range(min(MAX_ROWS, len(rows))))
    for column in rows.column_names:
        count = first[column][:].count(column)
        if count > MIN_SHARE * len(first):
            return NameAmongValues(column, count, len(first), _possible_names(first, column))
    return None


def _possible_names(first: datasets.Dataset, label: str) -> tuple[str, ...]:
    """Names for the columns of a file: its label, its longest column as its text, and numbers."""
    lengths = text_lengths(first, [name for name in first.column_names if name != label])
    text = max(lengths, key=lambda column: lengths[column], default=None)
    known = {label: "label", text: "text"}
    return tuple(
        known.get(column, f"column_{number}") for number, column in enumerate(first.column_names, 1)
    )


def with_names(header: Sequence[str]) -> list[str]:
    """The names in the first line of a file; a column without one is called after its number.

    A single one keeps its empty name: data frames write the numbers of their rows so.
    """
    unnamed = [number for number, name in enumerate(header) if not name.strip()]
    if len(unnamed) <= 1:
        return list(header)
    return [
        _stand_in_name(number) if number in unnamed else name for number, name in enumerate(header)
    ]


def unnamed_columns(rows: datasets.Dataset) -> list[str]:
    """The columns that `with_names` has called after their numbers."""
    names = enumerate(rows.column_names)
    return [name for number, name in names if name == _stand_in_name(number)]


def _stand_in_name(number: int) -> str:
    return f"unnamed_{number + 1}"

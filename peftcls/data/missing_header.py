"""Notice a file without a header: its first row was read as the names of the columns."""

import dataclasses

import datasets

MAX_ROWS = 1000
MIN_SHARE = 0.05
"""A column whose name is so often one of its first values probably has no name."""


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
    lengths = {
        column: sum(len(str(value)) for value in first[column][:])
        for column in first.column_names
        if column != label
    }
    text = max(lengths, key=lambda column: lengths[column], default=None)
    known = {label: "label", text: "text"}
    return tuple(
        known.get(column, f"column_{number}") for number, column in enumerate(first.column_names, 1)
    )

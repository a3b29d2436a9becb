"""The labels of a row: in one column, or each in a column of its own with 0 or 1 (one-hot)."""

import math
from collections.abc import Sequence
from typing import Any

from peftcls.data.reading import Row
from peftcls.tasks.labels import Shares, is_blank, label_name, label_shares
from peftcls.tasks.list_cells import DEFAULT_SEPARATOR

LabelColumns = str | tuple[str, ...]
TRUTH_VALUES = {"true": 1.0, "false": 0.0}


def names_of_columns(columns: LabelColumns) -> tuple[str, ...] | None:
    """The labels that columns of 0 and 1 are called after; None for one column of labels."""
    if isinstance(columns, str):
        return None
    return tuple(label_name(column) for column in columns)


def row_shares(
    row: Row, columns: LabelColumns, *, several: bool, separator: str | None = None
) -> Shares:
    """The labels of a row, each with its share of the target.

    Args:
        row: with these columns.
        columns: of the labels.
        several: whether a row can have any number of labels.
        separator: between several labels in a text; ";" unless given.

    Raises:
        ValueError: a cell cannot be read; the text continues "row 17".
    """
    if not isinstance(columns, str):
        return {label_name(column): _share(row[column], column) for column in columns}
    try:
        return label_shares(row[columns], several=several, separator=separator or DEFAULT_SEPARATOR)
    except ValueError as error:
        raise ValueError(f"{error} in column {columns!r}") from None


def _share(cell: Any, column: str) -> float:
    """The share of the label that a column is called after: 0, 1, or something between them."""
    if is_blank(cell):
        raise ValueError(
            f"has nothing in column {column!r}; write 0 or 1 there, or leave the row out"
        )
    text = str(cell).strip().casefold()
    try:
        share = TRUTH_VALUES[text] if text in TRUTH_VALUES else float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(
            f"has {str(cell)[:80]!r} in column {column!r}, expected 0 or 1, since each of several "
            "label columns says whether a row has its label"
        )
    return share


def label_columns_problems(
    columns: LabelColumns,
    labels: Sequence[str] | None,
    separator: str | None,
    *,
    several: bool,
) -> list[str]:
    """What is wrong with where the labels are, and with how several of them are separated."""
    problems = []
    names = names_of_columns(columns)
    if not columns:
        problems.append(f"label={columns!r}: expected a column, or several with 0 and 1")
    elif names is not None and labels is not None and tuple(labels) != names:
        problems.append(
            f"labels={tuple(labels)!r} with label={columns!r}: the labels are called after their "
            "columns; leave labels out"
        )
    if separator is None:
        return problems
    if not separator:
        problems.append("separator='': expected a text such as ','")
    elif names is not None:
        problems.append(
            f"separator={separator!r} with label={columns!r}: each label has a column of its own; "
            "leave separator out"
        )
    elif not several:
        problems.append(
            f"separator={separator!r} without multi_label=True: one label a row has nothing to "
            "separate"
        )
    return problems

"""Weights of rows: how much each row counts in training."""

from collections.abc import Sequence
from typing import Any

import datasets

from peftcls.data.column_names import find_column
from peftcls.data.reading import Row, RowError, source_name
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers
from peftcls.tasks.base import Task
from peftcls.tasks.numbers import parse_number

MAX_SHOWN_ROWS = 5


def weight_setting_problem(weight: str | None, columns: Sequence[str]) -> str | None:
    """What is wrong with the setting `weight`, or None.

    Args:
        weight: the name of the column.
        columns: those that hold texts and targets.
    """
    if weight in columns:
        return f"weight={weight!r}: expected a column of its own, beside {list(columns)}"
    return None


def weight_of(row: Row, column: str | None) -> float:
    """The weight of a row; 1 where the task has no weights or the row none.

    Those of training rows are checked before. Other rows may have anything in that column.
    """
    if column is None or column not in row:
        return 1.0
    number = parse_number(row[column])
    return 1.0 if number is None or number < 0 else number


def kept_weight(column: str | None, rows: datasets.Dataset) -> str | None:
    """The column of weights, where new rows have it: an adapter may be trained on without it."""
    return column if column in rows.column_names else None


def weight_problem(value: Any, column: str) -> str | None:
    """What is wrong with the weight of a row, in the words that follow "row 17", or None."""
    weight = parse_number(value)
    if weight is not None and weight >= 0:
        return None
    return f"has {value!r} in column {column!r}, expected a weight of at least 0, such as 0.5"


def all_zero_problem(column: str) -> str:
    """What is wrong with a table whose rows all have the weight 0."""
    return (
        f"has the weight 0 in column {column!r} of every row; there is nothing to learn. Expected "
        "some weights above 0."
    )


def check_weights(task: Task, rows: datasets.Dataset) -> None:
    """Check the weights of the rows to train on.

    Args:
        task: says which column holds them, if any does.
        rows: the training rows.

    Raises:
        RowError: there is no such column, a weight is no number or negative, or all are 0.
    """
    column = task.weight
    if column is None:
        return
    if column not in rows.column_names:
        _refuse_missing(rows, column)
    sentences = []
    wrong_rows = 0
    all_zero = True
    for number, value in zip(row_numbers(rows), each_cell(rows, column), strict=True):
        all_zero = all_zero and parse_number(value) == 0
        problem = weight_problem(value, column)
        if problem is None:
            continue
        wrong_rows += 1
        if wrong_rows <= MAX_SHOWN_ROWS:
            sentences.append(f"row {number} of {source_name(rows)} {problem}.")
    if wrong_rows > MAX_SHOWN_ROWS:
        sentences.append(f"({wrong_rows - MAX_SHOWN_ROWS} more rows have such weights.)")
    if sentences:
        raise RowError("\n".join(sentences))
    if all_zero:
        raise RowError(f"{source_name(rows)} {all_zero_problem(column)}")


def _refuse_missing(rows: datasets.Dataset, column: str) -> None:
    spelling = find_column(rows, column)
    raise RowError(
        f"{source_name(rows)} has no column {column!r}; it has {rows.column_names}. Did you mean "
        f"{spelling!r}?"
    )

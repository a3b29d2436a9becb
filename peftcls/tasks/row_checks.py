"""Check the rows of a table before any time is spent on training or prediction."""

from collections.abc import Iterable, Sequence

import datasets

from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import row_numbers
from peftcls.data.tables import split_of
from peftcls.tasks.base import Task
from peftcls.tasks.row_weights import check_weights

MAX_SHOWN_ROWS = 5


def check_rows(
    task: Task,
    rows: datasets.Dataset,
    *,
    with_target: bool = True,
    training: bool = False,
    numbers: Sequence[int] | None = None,
) -> None:
    """Check every row once and raise one RowError that names the first wrong rows.

    Args:
        task: the task, with its labels learnt.
        rows: the table, or what `as_dataset` makes one of.
        with_target: whether the rows need a label, an answer or a target.
        training: whether the table must also be fit for training (have two labels, for example, and
            weights if the task reads them).
        numbers: the number of each row in its file, where the table does not know it.

    Raises:
        RowError: a column is missing, or some rows or the whole table are wrong.
    """
    rows = as_dataset(split_of(rows, "train"))
    columns = task.columns(with_target=with_target)
    require_columns(rows, columns, type(task).__name__)
    if training:
        check_weights(task, rows)
    source = source_name(rows)
    extra_columns = [
        name for name in task.place_columns if name in rows.column_names and name not in columns
    ]
    if numbers is None:
        numbers = row_numbers(rows)
    messages: list[str] = []
    wrong_rows = 0
    read = task.columns_among(rows.column_names, with_target=with_target)
    selected = each_row(rows, list(dict.fromkeys([*read, *extra_columns])))
    for number, row in zip(numbers, selected, strict=True):
        problem = task.problem(row, with_target=with_target)
        if problem is None:
            continue
        wrong_rows += 1
        if wrong_rows <= MAX_SHOWN_ROWS:
            details = _details(row, extra_columns)
            messages.append(f"row {number} of {source}{details} {problem}.")
    if wrong_rows > MAX_SHOWN_ROWS:
        messages.append(f"({wrong_rows - MAX_SHOWN_ROWS} more rows have such problems.)")
    if training and not messages:
        table_problem = task.table_problem(rows)
        if table_problem:
            messages.append(f"{source} {table_problem}.")
    if messages:
        raise RowError("\n".join(messages))


def check_mappings(task: Task, rows: Sequence[Row], numbers: Iterable[int], *, source: str) -> None:
    """Check rows to answer that are not worth a table, and raise RowError for the first wrong one.

    Args:
        task: the task.
        rows: all rows.
        numbers: which of them are checked, from 0.
        source: what messages call the rows.

    Raises:
        RowError: a row lacks a column, or the task cannot read it.
    """
    columns = task.columns(with_target=False)
    for number in numbers:
        row = rows[number]
        missing = [name for name in columns if name not in row]
        if missing:
            raise RowError(
                f"row {number + 1} of {source} has no column {missing[0]!r}; it has "
                f"{list(row)}. {type(task).__name__} needs {columns}."
            )
        problem = task.problem(row, with_target=False)
        if problem:
            raise RowError(f"row {number + 1} of {source} {problem}.")


def _details(row: Row, columns: Sequence[str]) -> str:
    """What helps to find a row in its file: " (title 'Warsaw', id '7')"."""
    if not columns:
        return ""
    values = ", ".join(f"{name} {row[name]!r}" for name in columns)
    return f" ({values})"

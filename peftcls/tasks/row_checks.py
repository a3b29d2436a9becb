"""What is wrong with the rows, before any training second is spent."""

from collections.abc import Sequence

import datasets

from peftcls.data.reading import RowError, require_columns, source_name
from peftcls.tasks.base import Task

SHOWN = 5


def check_rows(
    task: Task,
    rows: datasets.Dataset,
    *,
    with_target: bool = True,
    training: bool = False,
    numbers: Sequence[int] | None = None,
) -> None:
    """Read every row once and raise one RowError with what is wrong, the first few rows by number.

    Args:
        task: the task, with its labels learnt.
        rows: the table.
        with_target: whether the rows need a label, an answer or a target.
        training: whether the table must also be fit to learn from (labels of two kinds, for example).
        numbers: of the rows, from 1, where they are a part of a table.
    """
    columns = task.columns(with_target=with_target)
    require_columns(rows, columns, type(task).__name__)
    found: list[str] = []
    count = 0
    marks = [
        name for name in task.place_columns if name in rows.column_names and name not in columns
    ]
    for number, row in zip(
        numbers or range(1, len(rows) + 1), rows.select_columns([*columns, *marks]), strict=True
    ):
        if problem := task.problem(row, with_target=with_target):
            count += 1
            if len(found) < SHOWN:
                place = (
                    f" ({', '.join(f'{name} {row[name]!r}' for name in marks)})" if marks else ""
                )
                found.append(f"row {number} of {source_name(rows)}{place} {problem}.")
    if count > SHOWN:
        found.append(f"({count - SHOWN} more rows have such problems.)")
    if not found and training and (problem := task.table_problem(rows)):
        found.append(f"{source_name(rows)} {problem}.")
    if found:
        raise RowError("\n".join(found))

"""Check the weights of training rows, as a training does, without ending at the first."""

from collections.abc import Iterator

import datasets

from peftcls.data.column_names import find_column
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers
from peftcls.errors import RowError
from peftcls.quality.findings import Finding
from peftcls.quality.scan import RowSample
from peftcls.tasks.base import Task
from peftcls.tasks.numbers import parse_number
from peftcls.tasks.row_weights import all_zero_problem, weight_problem

TRAIN = "train"


def weight_findings(task: Task, rows: datasets.Dataset) -> Iterator[Finding]:
    """Find weights that are no numbers of at least 0, and rows that count nothing.

    Args:
        task: says which column holds the weights, if any does.
        rows: the training rows.
    """
    column = task.weight
    if column is None:
        return
    if column not in rows.column_names:
        yield Finding("error", "no-column", _missing_column(rows, column), TRAIN)
        return
    bad, zero = RowSample(), RowSample()
    first_problem = ""
    for number, value in zip(row_numbers(rows), each_cell(rows, column), strict=True):
        problem = weight_problem(value, column)
        if problem is not None:
            first_problem = first_problem or f"row {number} {problem}."
            bad.add(number)
        elif parse_number(value) == 0:
            zero.add(number)
    if bad.count:
        yield bad.finding("error", "bad-weight", first_problem, TRAIN)
    elif zero.count == len(rows):
        sentence = f"the table {all_zero_problem(column)}"
        yield Finding("error", "bad-weight", sentence, TRAIN)
    elif zero.count:
        yield zero.finding(
            "note",
            "zero-weight",
            f"the weight in column {column!r} is 0; nothing is learnt from these rows.",
            TRAIN,
        )


def _missing_column(rows: datasets.Dataset, column: str) -> str:
    try:
        spelling = find_column(rows, column)
    except RowError as error:
        return str(error)
    return f"there is no column {column!r}, only {rows.column_names}. Did you mean {spelling!r}?"

"""Leave out the rows that have an error: those that a task cannot read, or cannot encode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import datasets
import numpy as np

from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import row_numbers, select_rows
from peftcls.errors import RowError
from peftcls.quality.span_checks import answer_faults
from peftcls.quality.split_checks import FAULTS
from peftcls.tasks.base import Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.labels import is_blank
from peftcls.tasks.row_checks import check_rows
from peftcls.tasks.row_weights import weight_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ID = "id"


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row with an error.

    Args:
        number: in its file, from 1.
        row: with all of its columns.
        reason: in the words that follow "row 17 of train.csv".
        place: where the row stands, such as "line 18", if it is no row of the file's table.
    """

    number: int
    row: Row
    reason: str
    place: str | None = None


def leave_out_bad_rows(
    task: Task,
    rows: datasets.Dataset,
    *,
    with_target: bool = True,
    training: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[datasets.Dataset, list[BadRow]]:
    """The rows without an error, which keep their numbers, and those with one.

    Args:
        task: that reads the rows; as long as it has not learnt from them, they may have any labels.
        rows: of a file.
        with_target: whether the rows need their targets; where they do not, a row without a text
            is kept, since it gets an empty answer.
        training: whether the rows are to be trained on.
        tokenizer: to find prompts and answers that do not fit; None not to look for them.

    Raises:
        RowError: a column is missing, or every row has an error.
    """
    require_columns(rows, task.columns(with_target=with_target), type(task).__name__)
    if isinstance(task, ExtractiveQA) and task.unanswerable is None:
        task = dataclasses.replace(task, unanswerable=True)
    if with_target:
        reasons = dict(_reasons(task, rows, tokenizer, training=training))
    else:
        reasons = dict(_reasons_without_target(task, rows, tokenizer))
    if not reasons:
        return rows, []
    if len(reasons) == len(rows):
        check_rows(task, rows, with_target=with_target)
        reason = next(iter(reasons.values()))
        raise RowError(f"every row has an error; row {row_numbers(rows)[0]} {reason}.")
    numbers = row_numbers(rows)
    bad = [BadRow(numbers[index], rows[index], reason) for index, reason in reasons.items()]
    kept = np.setdiff1d(np.arange(len(rows)), list(reasons), assume_unique=True)
    return select_rows(rows, kept), bad


def _reasons(
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    training: bool,
) -> Iterator[tuple[int, str]]:
    """The index of each row with an error, and what is wrong with it."""
    columns = task.columns_among(rows.column_names, with_target=True)
    extra = [name for name in (ID, "is_impossible") if name in rows.column_names]
    has_ids = training and task.answer_kind == "span" and ID in rows.column_names
    weight = task.weight if training and task.weight in rows.column_names else None
    if weight is not None:
        extra.append(weight)
    seen: dict[str, int] = {}
    for index, row in enumerate(each_row(rows, list(dict.fromkeys([*columns, *extra])))):
        reason = _reason(task, row, tokenizer)
        if reason is None and weight is not None:
            reason = weight_problem(row[weight], weight)
        if reason is None and has_ids and row[ID] is not None:
            first = seen.setdefault(str(row[ID]), index)
            if first != index:
                number = row_numbers(rows)[first]
                reason = f"has the id {row[ID]!r}, which row {number} has already"
        if reason is not None:
            yield index, reason


def _reasons_without_target(
    task: Task, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[int, str]]:
    """The index of each row that cannot be answered, though it has a text, and the reason."""
    columns = task.columns_among(rows.column_names, with_target=False)
    for index, row in enumerate(each_row(rows, columns)):
        problem = task.problem(row, with_target=False)
        if problem is None:
            problem = _fit_problem(task, row, tokenizer, with_target=False)
        elif any(map(is_blank, row.values())):
            continue
        if problem is not None:
            yield index, problem


def _reason(task: Task, row: Row, tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """What is wrong with one row, or None."""
    problem = task.problem(row, with_target=True)
    if problem is not None:
        return problem
    for code in answer_faults(task, row, None):
        severity, sentence = FAULTS[code]
        if severity == "error":
            return sentence
    return _fit_problem(task, row, tokenizer, with_target=True)


def _fit_problem(
    task: Task, row: Row, tokenizer: PreTrainedTokenizerBase | None, *, with_target: bool
) -> str | None:
    """What does not fit of a row, or None; nothing is looked at without a tokenizer."""
    if tokenizer is None or not _may_not_fit(task):
        return None
    try:
        task.encode(row, tokenizer, with_target=with_target)
    except RowError as error:
        return str(error)
    return None


def _may_not_fit(task: Task) -> bool:
    """Whether a row of the task can be too long to be shortened; a text alone never is."""
    return isinstance(task, Instruction | ExtractiveQA) or task.reads_windows

"""Scan a split: one pass over its rows collects what the checks compare; no text is kept."""

from __future__ import annotations

import dataclasses
import math
import re
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets

from peftcls.data.reading import Row
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import row_numbers
from peftcls.errors import RowError
from peftcls.quality.column_rules import ColumnProperties
from peftcls.quality.findings import MAX_SHOWN_ROWS, Finding, Severity
from peftcls.quality.span_checks import answer_faults
from peftcls.quality.text_checks import text_faults
from peftcls.tasks.base import Task, token_limit
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.numbers import maybe_thousands
from peftcls.tasks.splitting import same_text_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of these rows the formatting of all columns is kept; they are spread over the table.
MAX_SAMPLED_ROWS = 20_000
# How many more tokens the texts of a row may have within a prompt than by themselves, in addition
# to the smallest difference so far.
SLACK_TOKENS = 32
LIST_SEPARATORS = ",;|\n"
# Parts of a message that differ from row to row.
NAMES_AND_NUMBERS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
PROBLEM_KEY_CHARACTERS = 60


def _whole_numbers() -> array[int]:
    return array("q")


def _numbers() -> array[float]:
    return array("d")


@dataclasses.dataclass
class RowSample:
    """How many rows have a property, and the numbers of the first few."""

    rows: list[int] = dataclasses.field(default_factory=list)
    count: int = 0

    def add(self, number: int) -> None:
        """Add one row."""
        self.count += 1
        if len(self.rows) < MAX_SHOWN_ROWS and number not in self.rows:
            self.rows.append(number)

    def finding(self, severity: Severity, what: str, sentence: str, split: str) -> Finding:
        """Build a finding about these rows."""
        return Finding(severity, what, sentence, split, tuple(self.rows), self.count)


@dataclasses.dataclass
class SplitScan:
    """What was collected from the rows of one split.

    What it keeps of each row takes eight bytes; of a question, its id too.

    Args:
        name: of the split.
        rows: how many it has.
        target_type: the type of the column with the target.
        problems: why the task cannot read rows: a message and its rows, by the kind of message.
        faults: rows by the code of a fault and the column.
        labels: rows by label.
        padded_labels: rows whose label begins or ends with spaces.
        other_separators: rows whose answer looks like a list with another separator.
        row_numbers: of the rows that the task can read, from 1.
        text_hashes: of the same rows, without regard to case and spaces.
        target_hashes: of the same rows.
        sampled_labels: of the rows whose columns were added to the `ColumnProperties`.
        numbers: the targets of a regression.
        maybe_thousands: rows whose target can be a whole number in groups of three digits.
        has_decimals: whether a target can only be one with decimals.
        context_hashes: of the contexts of questions.
        ids: of questions.
        paragraphs: by title, the numbers of the paragraphs that have questions.
        token_counts: of the texts of rows.
        min_extra_tokens: the smallest number of tokens that an encoded row had beside its texts.
        shortened: rows that are longer than the limit: cut, or read in several windows.
    """

    name: str
    rows: int = 0
    target_type: str = ""
    problems: dict[str, tuple[str, RowSample]] = dataclasses.field(default_factory=dict)
    faults: dict[tuple[str, str], RowSample] = dataclasses.field(default_factory=dict)
    labels: dict[str, RowSample] = dataclasses.field(default_factory=dict)
    padded_labels: RowSample = dataclasses.field(default_factory=RowSample)
    other_separators: RowSample = dataclasses.field(default_factory=RowSample)
    row_numbers: array[int] = dataclasses.field(default_factory=_whole_numbers)
    text_hashes: array[int] = dataclasses.field(default_factory=_whole_numbers)
    target_hashes: array[int] = dataclasses.field(default_factory=_whole_numbers)
    sampled_labels: list[str] = dataclasses.field(default_factory=list)
    numbers: array[float] = dataclasses.field(default_factory=_numbers)
    maybe_thousands: RowSample = dataclasses.field(default_factory=RowSample)
    has_decimals: bool = False
    context_hashes: set[int] = dataclasses.field(default_factory=set)
    ids: list[Any] = dataclasses.field(default_factory=list)
    paragraphs: dict[str, set[int]] = dataclasses.field(default_factory=dict)
    token_counts: array[int] = dataclasses.field(default_factory=_whole_numbers)
    min_extra_tokens: float = math.inf
    shortened: RowSample = dataclasses.field(default_factory=RowSample)

    def add_fault(self, code: str, column: str, number: int) -> None:
        """Add a row to those with this fault."""
        self.faults.setdefault((code, column), RowSample()).add(number)

    def add_problem(self, problem: str, number: int) -> None:
        """Add a row that the task cannot read.

        Messages that differ only in names and numbers are one kind; the first one is kept.
        """
        key = NAMES_AND_NUMBERS.sub("", problem)[:PROBLEM_KEY_CHARACTERS]
        _, rows = self.problems.setdefault(key, (problem, RowSample()))
        rows.add(number)


def has_closed_labels(task: Task) -> bool:
    """Whether a row's answer is one, or several, of a set of labels."""
    return task.answer_kind in ("label", "label_set")


def scan_rows(
    task: Task,
    name: str,
    table: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    properties: ColumnProperties | None = None,
) -> SplitScan:
    """Scan the rows of a split.

    Args:
        task: with its labels or scale, if they could be learnt from the training rows.
        name: of the split.
        table: with the task's columns.
        tokenizer: to count tokens; None to count none. The task must be learnt if it is given.
        properties: collects the properties of the columns of labelled rows, if it is given.
    """
    target = task.columns(with_target=True)[-1]
    checked_columns = _checked_columns(task)
    scan = SplitScan(name, len(table), str(table.features[target]))
    sample_step = math.ceil(len(table) / MAX_SAMPLED_ROWS)
    for number, row in zip(row_numbers(table), each_row(table), strict=True):
        _scan_texts(scan, row, checked_columns, number)
        labels: tuple[str, ...] = ()
        if has_closed_labels(task):
            labels = _labels(task, row, target)
            _scan_labels(scan, labels, row[target], number)
        if task.answer_kind == "span" and "id" in row:
            scan.ids.append(row["id"])
        is_known = not task.labels or all(label in task.labels for label in labels)
        problem = task.problem(row, with_target=is_known)
        if problem is not None:
            scan.add_problem(problem, number)
            continue
        _scan_content(scan, task, row, labels, number)
        if properties is not None and labels and number % sample_step == 0:
            properties.add(row)
            scan.sampled_labels.append(labels[0])
        if task.answer_kind == "span":
            _scan_span_answers(scan, task, row, number, tokenizer)
        if tokenizer is not None and is_known:
            _count_tokens(scan, task, row, number, tokenizer)
    return scan


def _checked_columns(task: Task) -> list[str]:
    """The columns in which damaged texts are looked for: the inputs, and answers in free text."""
    is_free_text = task.answer_kind in ("text", "keywords")
    return task.columns(with_target=is_free_text)


def _labels(task: Task, row: Row, target: str) -> tuple[str, ...]:
    """The labels of a row, as far as they can be read."""
    if row[target] is None:
        return ()
    try:
        return tuple(name for name in task.gold_of(row) if name)
    except ValueError:
        # `task.problem` says what is wrong with the cell.
        return ()


def _scan_texts(scan: SplitScan, row: Row, columns: Sequence[str], number: int) -> None:
    for column in columns:
        text = row[column]
        if not isinstance(text, str) or not text.strip():
            continue
        for code in text_faults(text):
            scan.add_fault(code, column, number)


def _scan_labels(scan: SplitScan, labels: tuple[str, ...], cell: Any, number: int) -> None:
    for label in dict.fromkeys(labels):
        scan.labels.setdefault(label, RowSample()).add(number)
    if isinstance(cell, str) and cell != cell.strip():
        scan.padded_labels.add(number)


def _scan_content(
    scan: SplitScan, task: Task, row: Row, labels: tuple[str, ...], number: int
) -> None:
    """Collect the hashes and the target of a row that the task can read."""
    scan.row_numbers.append(number)
    scan.text_hashes.append(hash(same_text_key(task.text_of(row))))
    if has_closed_labels(task):
        scan.target_hashes.append(hash(labels))
        return
    answer = task.gold_of(row)
    scan.target_hashes.append(hash(answer))
    if task.answer_kind == "number":
        scan.numbers.append(float(answer[0]))
        if maybe_thousands(row[task.columns(with_target=True)[-1]]):
            scan.maybe_thousands.add(number)
        elif not scan.numbers[-1].is_integer():
            scan.has_decimals = True
    if task.answer_kind == "keywords":
        cell = row[task.columns(with_target=True)[-1]]
        if _has_other_separator(cell, task.separator):
            scan.other_separators.add(number)


def _has_other_separator(answer: Any, separator: str | None) -> bool:
    """Whether an answer looks like a list with another separator than the task's."""
    if separator is None or not isinstance(answer, str) or separator in answer:
        return False
    return sum(answer.count(mark) for mark in LIST_SEPARATORS) > 1


def _scan_span_answers(
    scan: SplitScan,
    task: Task,
    row: Row,
    number: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    context = task.split_key(row)
    scan.context_hashes.add(hash(same_text_key(context)))
    if isinstance(row.get("paragraph"), int):
        title = str(row.get("title"))
        scan.paragraphs.setdefault(title, set()).add(row["paragraph"])
    target = task.columns(with_target=True)[-1]
    for code in answer_faults(task, row, tokenizer):
        scan.add_fault(code, target, number)


def _count_tokens(
    scan: SplitScan, task: Task, row: Row, number: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Count a row's tokens, and note whether it is shortened.

    Only a row that may be near the limit is encoded as for training, which takes several times as
    long as counting the tokens of its texts.
    """
    text_tokens = len(tokenizer(task.text_of(row), verbose=False)["input_ids"])
    scan.token_counts.append(text_tokens)
    limit = token_limit(tokenizer, task.max_length) - SLACK_TOKENS
    has_long_answer = False
    if isinstance(task, Instruction):
        limit -= task.max_new_tokens
        # A token has at least one byte.
        answer_bytes = len(str(row[task.output]).encode())
        has_long_answer = answer_bytes > task.max_new_tokens // 2
    if text_tokens + scan.min_extra_tokens <= limit and not has_long_answer:
        return
    try:
        feature = task.encode(row, tokenizer, with_target=True)
    except RowError as error:
        scan.add_problem(str(error), number)
        return
    # A task may read several sequences for other reasons, such as each text of a pair.
    in_windows = task.reads_windows and len(feature.get("windows", ())) > 1
    if feature["shortened"] or in_windows:
        scan.shortened.add(number)
        return
    extra_tokens = max(len(feature["input_ids"]) - text_tokens, 0)
    scan.min_extra_tokens = min(scan.min_extra_tokens, extra_tokens)

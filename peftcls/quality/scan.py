"""One pass over the rows of a split: what an examination counts and compares, without keeping a text."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError
from peftcls.quality.findings import SHOWN_ROWS, Finding, Severity
from peftcls.quality.leakage import ColumnLooks
from peftcls.quality.text_checks import text_faults
from peftcls.tasks.base import Task, token_limit
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression
from peftcls.tasks.spans import cuts_a_word, find_answers, gold_answers, stands_elsewhere, was_moved

READ_ROWS = 256  # at a time
MOST_LOOKED_AT = 20_000  # rows, spread over the table: more would tell nothing else about how its cells are written
SLACK_TOKENS = 32  # tokens that the texts of a row may have more within a prompt than alone, beside what another row has
LIST_MARKS = ",;|\n"
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


@dataclasses.dataclass
class Places:
    """How many rows something is about, and the first few of them."""

    rows: list[int] = dataclasses.field(default_factory=list)
    count: int = 0

    def add(self, number: int) -> None:
        """One more row."""
        self.count += 1
        if len(self.rows) < SHOWN_ROWS and number not in self.rows:
            self.rows.append(number)

    def finding(self, severity: Severity, what: str, sentence: str, split: str) -> Finding:
        """A finding about these rows."""
        return Finding(severity, what, sentence, split, tuple(self.rows), self.count)


@dataclasses.dataclass
class Split:
    """What a pass over a split found.

    `numbers`, `texts` and `targets` have an entry for each row that the task can read: its number, and hashes of its
    text without regard to case and spaces, and of what is right for it.
    """

    name: str
    rows: int = 0
    target_kind: str = ""
    problems: dict[str, tuple[str, Places]] = dataclasses.field(default_factory=dict)
    faults: dict[tuple[str, str], Places] = dataclasses.field(default_factory=dict)
    labels: dict[str, Places] = dataclasses.field(default_factory=dict)
    padded_labels: Places = dataclasses.field(default_factory=Places)
    numbers: list[int] = dataclasses.field(default_factory=list)
    texts: list[int] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)
    looked_at: list[str] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)
    contexts: set[int] = dataclasses.field(default_factory=set)
    ids: list[Any] = dataclasses.field(default_factory=list)
    paragraphs: dict[str, set[int]] = dataclasses.field(default_factory=dict)
    tokens: list[int] = dataclasses.field(default_factory=list)
    around_tokens: float = math.inf
    shortened: Places = dataclasses.field(default_factory=Places)
    unlisted: Places = dataclasses.field(default_factory=Places)

    def fault(self, code: str, column: str, number: int) -> None:
        """A row has a fault of a kind that is counted."""
        self.faults.setdefault((code, column), Places()).add(number)

    def problem(self, problem: str, number: int) -> None:
        """The task cannot read a row; problems that differ in names and numbers alone are one."""
        self.problems.setdefault(QUOTED.sub("", problem)[:60], (problem, Places()))[1].add(number)


def closed_labels(task: Task) -> bool:
    """Whether a row's answer is one, or several, of a set of labels."""
    return isinstance(task, Classification) or bool(isinstance(task, Instruction) and task.labels)


def scan_rows(
    task: Task,
    name: str,
    table: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    looks: ColumnLooks | None = None,
) -> Split:
    """Read a table once.

    Args:
        task: with what training rows determine filled in, if they can be learnt from.
        name: of the split.
        table: with the task's columns.
        tokenizer: to count tokens with; the task must be learnt then.
        looks: gathers how the cells of labelled rows are written, where it is given.
    """
    target = task.columns(with_target=True)[-1]
    split = Split(name, len(table), str(table.features[target]))
    every = -(-len(table) // MOST_LOOKED_AT)
    known, closed = getattr(task, "labels", None), closed_labels(task)
    written = task.columns(with_target=isinstance(task, Instruction) and not closed)
    for number, row in _each(table):
        _look_at_texts(split, row, written, number)
        problem = task.problem(row, with_target=False)
        labels = _labels(task, row, target) if closed else ()
        for label in dict.fromkeys(labels):
            split.labels.setdefault(label, Places()).add(number)
        if closed and isinstance(row[target], str) and row[target] != row[target].strip():
            split.padded_labels.add(number)
        if "id" in row and isinstance(task, ExtractiveQA):
            split.ids.append(row["id"])
        unknown = any(label not in (known or labels) for label in labels)
        if problem := problem or (None if unknown else task.problem(row, with_target=True)):
            split.problem(problem, number)
            continue
        split.numbers.append(number)
        split.texts.append(hash(" ".join(task.text_of(row).casefold().split())))
        split.targets.append(hash(labels if closed else task.gold_of(row)))
        if looks and labels and number % every == 0:
            looks.add(row)
            split.looked_at.append(labels[0])
        if isinstance(task, Regression):
            split.values.append(float(task.gold_of(row)[0]))
        if isinstance(task, ExtractiveQA):
            _look_at_answers(split, task, row, number, tokenizer)
        if isinstance(task, Instruction) and _is_other_list(row[target], task.separator):
            split.unlisted.add(number)
        if tokenizer is not None and not unknown:
            _count_tokens(split, task, row, number, tokenizer)
    return split


def _each(table: datasets.Dataset) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in table.iter(batch_size=READ_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))


def _labels(task: Task, row: Row, target: str) -> tuple[str, ...]:
    """The labels of a row, as far as they can be read."""
    try:
        return tuple(name for name in task.gold_of(row) if name) if row[target] is not None else ()
    except ValueError:  # what is wrong with the cell is the task's to say
        return ()


def _is_other_list(answer: Any, separator: str | None) -> bool:
    """Whether an answer looks like a list whose parts are not parted as the task parts them."""
    return (
        separator is not None
        and isinstance(answer, str)
        and separator not in answer
        and sum(map(answer.count, LIST_MARKS)) > 1
    )


def _look_at_texts(split: Split, row: Row, columns: list[str], number: int) -> None:
    for column in columns:
        if isinstance(row[column], str) and row[column].strip():
            for code in text_faults(row[column]):
                split.fault(code, column, number)


def _look_at_answers(
    split: Split,
    task: ExtractiveQA,
    row: Row,
    number: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    context, golds = row[task.context], gold_answers(row[task.answers])
    split.contexts.add(hash(" ".join(context.split())))
    if isinstance(row.get("paragraph"), int):
        split.paragraphs.setdefault(str(row.get("title")), set()).add(row["paragraph"])
    codes = ["impossible-answered"] if row.get("is_impossible") is True and golds else []
    codes += ["possible-unanswered"] if row.get("is_impossible") is False and not golds else []
    codes += ["moved-answer"] if any(was_moved(context, gold) for gold in golds) else []
    for start, end in dict.fromkeys(find_answers(context, golds)):
        codes += ["cut-word"] if cuts_a_word(context, start, end) else []
        codes += (
            ["doubtful-answer"] if stands_elsewhere(context, row[task.question], start, end) else []
        )
    if tokenizer is not None and (
        long := [gold.text for gold in golds if len(gold.text.encode()) > task.max_answer_tokens]
    ):
        tokens = tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"]
        codes += ["long-answer"] if max(map(len, tokens)) > task.max_answer_tokens else []
    for code in dict.fromkeys(codes):
        split.fault(code, task.answers, number)


def _count_tokens(
    split: Split, task: Task, row: Row, number: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Count a row's tokens; only a row that may be near a limit is encoded as for training, which takes several times as long."""
    split.tokens.append(len(tokenizer(task.text_of(row), verbose=False)["input_ids"]))
    limit, long_answer = (
        token_limit(tokenizer, int(getattr(task, "max_length", 0))) - SLACK_TOKENS,
        False,
    )
    if isinstance(task, Instruction):
        limit -= task.max_new_tokens
        long_answer = (
            len(str(row[task.output]).encode()) > task.max_new_tokens // 2
        )  # a token has at least a byte
    if split.tokens[-1] + split.around_tokens <= limit and not long_answer:
        return
    try:
        feature = task.encode(row, tokenizer, with_target=True)
    except RowError as error:
        split.problem(str(error), number)
        return
    if feature["shortened"] or len(feature.get("windows", ())) > 1:
        split.shortened.add(number)
    else:
        split.around_tokens = min(
            split.around_tokens, max(len(feature["input_ids"]) - split.tokens[-1], 0)
        )

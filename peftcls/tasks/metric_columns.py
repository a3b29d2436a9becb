"""What a metric reads of answers and rows: predictions, references and probabilities."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from peftcls.data.reading import Row
from peftcls.metrics import label_table
from peftcls.tasks.answers import NO_ANSWER, Answer, AnswerKind
from peftcls.tasks.base import Task

NO_LABEL = -1
"""The number of an abstention, where labels are numbers."""


@dataclasses.dataclass(frozen=True)
class MetricColumns:
    """The columns of a metric, with a value for each row.

    Labels are texts, and an abstention is the text of `NO_ANSWER`. Several labels of a row are 0
    and 1 for each label. Answers in words are texts, right answers to a question lists of texts.

    Args:
        kind: of the answers.
        predictions: of shape (rows,), or (rows, labels) for several labels a row.
        references: likewise.
        probabilities: of shape (rows, labels); None where the answers have none.
        labels: the names of the labels in the task's order; empty for a task without labels.
    """

    kind: AnswerKind
    predictions: np.ndarray
    references: np.ndarray
    probabilities: np.ndarray | None
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.references)

    def take(self, chosen: Sequence[int]) -> "MetricColumns":
        """The columns of the rows with these numbers."""
        rows = np.asarray(chosen)
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return dataclasses.replace(
            self,
            predictions=self.predictions[rows],
            references=self.references[rows],
            probabilities=probabilities,
        )

    def in_numbers(self) -> "MetricColumns":
        """The same with labels as numbers, in the task's order from 0; -1 for an abstention."""
        if not self.labels or self.predictions.ndim > 1:
            return self
        numbers = {name: number for number, name in enumerate(self.labels)}
        numbers[NO_ANSWER] = NO_LABEL
        return dataclasses.replace(
            self,
            predictions=np.array([numbers[name] for name in self.predictions]),
            references=np.array([numbers[name] for name in self.references]),
        )

    def prediction_scores(self) -> np.ndarray:
        """The probabilities; of one label in two that of the second, of shape (rows,)."""
        assert self.probabilities is not None, "the answers have probabilities"
        if len(self.labels) == 2 and self.predictions.ndim == 1:
            second: np.ndarray = self.probabilities[:, 1]
            return second
        return self.probabilities

    def example(self) -> str:
        """The first row, in the words of a message."""
        prediction, reference = self.predictions[:1].tolist(), self.references[:1].tolist()
        return f"{prediction[0]!r} and references such as {reference[0]!r}"


def metric_columns(task: Task, answers: Sequence[Answer], rows: Iterable[Row]) -> MetricColumns:
    """The columns that metrics read of answers to rows."""
    golds = [task.gold_of(row) for row in rows]
    labels = task.labels or ()
    probabilities = None
    if labels and all(answer.probabilities for answer in answers):
        probabilities = np.array(
            [[(answer.probabilities or {}).get(name, 0.0) for name in labels] for answer in answers]
        )
    match task.answer_kind:
        case "label":
            predictions = _objects([answer.label or NO_ANSWER for answer in answers])
            references = _objects([gold[0] for gold in golds])
        case "label_set":
            predictions = label_table([answer.labels or () for answer in answers], labels)
            references = label_table(golds, labels)
        case "number":
            predictions = np.array([float(answer.value or 0.0) for answer in answers])
            references = np.array([float(gold[0]) for gold in golds])
        case "keywords":
            predictions = _objects([list(answer.labels or ()) for answer in answers])
            references = _objects([list(gold) for gold in golds])
        case "span":
            predictions = _objects([answer.text or "" for answer in answers])
            references = _objects([list(gold) for gold in golds])
        case _:
            predictions = _objects([answer.text or "" for answer in answers])
            references = _objects([gold[0] for gold in golds])
    return MetricColumns(task.answer_kind, predictions, references, probabilities, tuple(labels))


def right_answers(task: Task, rows: Sequence[Row]) -> list[Answer]:
    """The answers that are right, each with a probability of 1."""
    answers = []
    for row in rows:
        gold = task.gold_of(row)
        probabilities = {name: float(name in gold) for name in task.labels or ()}
        match task.answer_kind:
            case "label":
                answers.append(Answer(label=gold[0], probabilities=probabilities))
            case "label_set":
                answers.append(Answer(labels=gold, probabilities=probabilities))
            case "number":
                answers.append(Answer(value=float(gold[0])))
            case "keywords":
                answers.append(Answer(labels=gold))
            case _:
                answers.append(Answer(text=gold[0]))
    return answers


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Values as an array of objects: a text is not cut to the width of another."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column

"""What a reviewer asks of answers: intervals, the confusion of labels, each label alone, and one system against another."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from peftcls.data.reading import Row, as_dataset
from peftcls.metrics import Interval, interval
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.row_checks import check_rows

RESAMPLES = 1000
FEWEST_ROWS = 20  # resamples of fewer are too much alike
NO_ANSWER = "(no answer)"
Rows: TypeAlias = datasets.Dataset | Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of answers, each with its 95 % bootstrap interval, and for labels who was taken for whom."""

    rows: int
    scores: dict[str, float]
    intervals: dict[str, Interval]
    labels: pd.DataFrame | None
    """Precision, recall, F1 with its interval, and the number of right rows of each label."""
    confusion: pd.DataFrame | None
    """Rows by right label (down) and given label (across); None where a row can have several labels."""

    def __str__(self) -> str:
        lines = [
            f"{name:<18} {value:8.4f}   95 % interval {self.intervals[name][0]:.4f} to {self.intervals[name][1]:.4f}"
            for name, value in self.scores.items()
        ]
        tables = (
            [] if self.labels is None else [self.labels.to_string(float_format="{:.3f}".format)]
        )
        tables += [] if self.confusion is None else [self.confusion.to_string()]
        rows = f"{self.rows} row{'s' * (self.rows != 1)}"
        few = (
            f"; an interval of fewer than {FEWEST_ROWS} means little"
            if self.rows < FEWEST_ROWS
            else ""
        )
        return "\n\n".join([f"{rows}{few}\n" + "\n".join(lines), *tables])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How much better the first of two systems is on the same rows."""

    score: str
    first: float
    second: float
    difference: float
    interval: Interval
    """95 % paired bootstrap interval of the difference; where it holds 0, the rows do not tell the two apart."""
    resamples_won: float
    """The share of resamples in which the first system is ahead, ties counted by half."""

    def __str__(self) -> str:
        low, high = self.interval
        told = (
            "the rows do not tell them apart"
            if low <= 0 <= high
            else f"the {'first' if low > 0 else 'second'} is better"
        )
        return (
            f"{self.score} {self.first:.4f} against {self.second:.4f}: {self.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} "
            f"(paired); {told}."
        )


def evaluate_answers(
    task: Task, answers: Sequence[Answer], rows: Rows, *, resamples: int = RESAMPLES
) -> Evaluation:
    """Scores with intervals, and for labels the table of each and their confusion.

    Args:
        task: whose scores are meant.
        answers: one a row.
        rows: with their targets.
        resamples: of the bootstrap.

    Raises:
        ValueError: there are more answers than rows, or fewer.
    """
    table = _listed(task, rows, answers)
    scores, every = task.score(answers, table), list(range(len(table)))
    of_rows = _scorer(task, answers, table)
    intervals = {
        name: interval(
            lambda chosen, name=name: of_rows(tuple(chosen))[name], every, resamples=resamples
        )
        for name in scores
    }
    names = list(getattr(task, "labels", None) or ())
    if not names:
        return Evaluation(len(table), scores, intervals, None, None)
    gold = [task.gold_of(row) for row in table]
    several = answers[0].labels is not None
    given = [(a.labels or ()) if several else (a.label or NO_ANSWER,) for a in answers]
    truth, found = (
        np.array([[name in row for name in names] for row in sets], dtype=int)
        for sets in (gold, given)
    )
    alone = [
        precision_recall_fscore_support(
            truth[:, i], found[:, i], average="binary", zero_division=0
        )[:3]
        for i in range(len(names))
    ]
    precision, recall, f1 = zip(*alone, strict=True)
    spans = [
        interval(
            lambda t, f: float(2 * np.dot(t, f) / max(np.sum(t) + np.sum(f), 1)),
            truth[:, i].tolist(),
            found[:, i].tolist(),
            resamples=resamples,
        )
        for i in range(len(names))
    ]
    by_label = pd.DataFrame(
        {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "f1 from": [low for low, _ in spans],
            "f1 to": [high for _, high in spans],
            "rows": truth.sum(0),
        },
        index=pd.Index(names, name="label"),
    )
    if several:
        return Evaluation(len(table), scores, intervals, by_label, None)
    shown = [*names, NO_ANSWER] if any(g == (NO_ANSWER,) for g in given) else names
    counts = confusion_matrix([g for (g,) in gold], [g for (g,) in given], labels=shown)[
        : len(names)
    ]
    confusion = pd.DataFrame(
        counts,
        index=pd.Index(names, name="right label"),
        columns=pd.Index(shown, name="given label"),
    )
    return Evaluation(len(table), scores, intervals, by_label, confusion)


def compare_answers(
    task: Task,
    first: Sequence[Answer],
    second: Sequence[Answer],
    rows: Rows,
    *,
    score: str | None = None,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Two systems on the same rows: the difference of a score, with a paired bootstrap interval.

    Rows are resampled together for both, so that what makes a row hard cancels out (Berg-Kirkpatrick et al. 2012,
    section 2).

    Args:
        task: whose scores are meant.
        first: the answers of one system, one a row.
        second: those of the other.
        rows: with their targets.
        score: the name of a score; the task's monitor unless given.
        resamples: of the bootstrap.

    Raises:
        ValueError: the task has no such score, or answers and rows are not as many.
    """
    table, name = _listed(task, rows, first, second), score or task.monitor
    return _compared(
        task, _scorer(task, first, table), _scorer(task, second, table), len(table), name, resamples
    )


def beside_best(
    task: Task,
    systems: Sequence[Sequence[Answer]],
    rows: Rows,
    *,
    score: str,
    resamples: int = RESAMPLES,
) -> list[tuple[dict[str, Interval], Comparison]]:
    """The intervals of each system's scores, and the first, the best, against it: as `evaluate_answers` and `compare_answers` give them.

    All are asked of the same resamples, each once.
    """
    table = _listed(task, rows, *systems)
    scorers, every = [_scorer(task, answers, table) for answers in systems], list(range(len(table)))
    return [
        (
            {
                name: interval(
                    lambda chosen, name=name, of=of: of(tuple(chosen))[name],
                    every,
                    resamples=resamples,
                )
                for name in task.score(answers, table)
            },
            _compared(task, scorers[0], of, len(table), score, resamples),
        )
        for answers, of in zip(systems, scorers, strict=True)
    ]


def _compared(task: Task, one: Any, two: Any, rows: int, name: str, resamples: int) -> Comparison:
    every = tuple(range(rows))
    if name not in one(every):
        raise ValueError(f"score={name!r}: {type(task).__name__} has {sorted(one(every))}.")
    differences: list[float] = []

    def difference(chosen: Sequence[int]) -> float:
        differences.append(one(tuple(chosen))[name] - two(tuple(chosen))[name])
        return differences[-1]

    found = interval(difference, every, resamples=resamples)
    won = float(np.mean([(d > 0) + 0.5 * (d == 0) for d in differences]))
    return Comparison(
        name, one(every)[name], two(every)[name], one(every)[name] - two(every)[name], found, won
    )


def _listed(task: Task, rows: Rows, *systems: Sequence[Answer]) -> list[Row]:
    checked = as_dataset(rows)
    check_rows(task, checked)
    table: list[Row] = checked.to_list()
    for answers in systems:
        if len(table) != len(answers):
            raise ValueError(
                f"there are {len(answers)} answers and {len(table)} rows, expected one answer a row."
            )
    return table


def _scorer(task: Task, answers: Sequence[Answer], table: Sequence[Row]) -> Any:
    def of(chosen: Sequence[int]) -> dict[str, float]:
        found = task.score([answers[i] for i in chosen], [table[i] for i in chosen])
        everything = (
            {"coverage": 1.0, "accuracy_answered": found["accuracy"]} if "accuracy" in found else {}
        )
        return {**everything, **found}  # without abstentions all rows are answered

    whole = of(range(len(table)))

    @functools.cache  # all scores are asked of the same resamples
    def scores(chosen: tuple[int, ...]) -> dict[str, float]:
        return {
            **whole,
            **of(chosen),
        }  # a resample without the rows that a score is about says nothing else

    return scores

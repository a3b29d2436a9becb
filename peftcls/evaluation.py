"""Evaluate answers: scores with intervals, scores of each label, confusion, and comparisons."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from peftcls.data.reading import Row, as_dataset
from peftcls.data.tables import Rows, split_of
from peftcls.metrics import (
    SHARES,
    Interval,
    interval,
    interval_of_difference,
    interval_of_share,
    label_table,
    resamples_at_once,
)
from peftcls.tasks.answers import NO_ANSWER, Answer
from peftcls.tasks.base import Task
from peftcls.tasks.own_metrics import Metrics, OwnMetrics, score_answers
from peftcls.tasks.row_checks import check_rows

RESAMPLES = 1000
# Resamples of fewer rows are too similar to each other.
MIN_INTERVAL_ROWS = 20
RESAMPLES_AT_ONCE = 100

Scorer: TypeAlias = Callable[[Sequence[int]], dict[str, float]]
"""From the indices of rows to the scores of the answers to them."""


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of answers with their 95 % bootstrap intervals, and tables for labels.

    Attributes:
        rows: how many there are.
        scores: by name.
        intervals: of the scores, by the same names.
        labels: precision, recall, F1 with its interval, and the number of right rows of each
            label; None for a task without labels.
        confusion: rows by right label (down) and answered label (across); None if a row can have
            several labels.
    """

    rows: int
    scores: dict[str, float]
    intervals: dict[str, Interval]
    labels: pd.DataFrame | None
    confusion: pd.DataFrame | None

    def __str__(self) -> str:
        lines = [self._heading()]
        for name, value in self.scores.items():
            low, high = self.intervals[name]
            lines.append(f"{name:<18} {value:8.4f}   95 % interval {low:.4f} to {high:.4f}")
        blocks = ["\n".join(lines)]
        if self.labels is not None:
            blocks.append(self.labels.to_string(float_format="{:.3f}".format))
        if self.confusion is not None:
            blocks.append(self.confusion.to_string())
        return "\n\n".join(blocks)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The same as tables, for a notebook; pandas escapes the names of labels."""
        scores = pd.DataFrame(
            [(value, *self.intervals[name]) for name, value in self.scores.items()],
            index=pd.Index(self.scores, name="score"),
            columns=["value", "from", "to"],
        )
        tables = [scores, self.labels, self.confusion]
        shown = [
            table.to_html(float_format="{:.3f}".format) for table in tables if table is not None
        ]
        return "\n".join([f"<p>{self._heading()}</p>", *shown])

    def _heading(self) -> str:
        heading = "1 row" if self.rows == 1 else f"{self.rows} rows"
        if self.rows < MIN_INTERVAL_ROWS:
            heading += f"; an interval of fewer than {MIN_INTERVAL_ROWS} means little"
        return heading


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """How much better the first of two systems is on the same rows.

    Attributes:
        score: the name of the score that is compared.
        first: its value for the first system.
        second: its value for the second system.
        difference: first minus second.
        interval: the 95 % paired bootstrap interval of the difference. If it contains 0, the rows
            do not show which system is better.
        resamples_won: the share of resamples in which the first system is ahead; ties count half.
        lower_is_better: whether a lower value of the score is better.
    """

    score: str
    first: float
    second: float
    difference: float
    interval: Interval
    resamples_won: float
    lower_is_better: bool = False

    def __str__(self) -> str:
        low, high = self.interval
        if self.lower_is_better:
            low, high = -high, -low
        if low > 0:
            verdict = "the first is better"
        elif high < 0:
            verdict = "the second is better"
        else:
            verdict = "the rows do not tell them apart"
        return (
            f"{self.score} {self.first:.4f} against {self.second:.4f}: {self.difference:+.4f}, "
            f"95 % interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f} (paired); {verdict}."
        )

    def __repr__(self) -> str:
        return str(self)


def evaluate_answers(
    task: Task,
    answers: Sequence[Answer],
    rows: Rows,
    *,
    metrics: Metrics = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Score answers, with bootstrap intervals, and for labels a table of each and their confusion.

    Args:
        task: defines the scores.
        answers: one for each row.
        rows: with their targets.
        metrics: of your own, as of `TrainConfig`. Where one is undefined on a resample, the value
            on all rows counts.
        resamples: of the bootstrap.

    Raises:
        ValueError: there are more answers than rows, or fewer; or a metric fails, or gives no
            finite number.
    """
    table = _checked_rows(task, rows, answers)
    own = OwnMetrics.of(metrics)
    scores = score_answers(task, answers, table, own)
    scorer = _resample_scorer(task, answers, table, own)
    intervals = _score_intervals(scorer, list(scores), len(table), resamples)
    by_label = None
    confusion = None
    if task.labels:
        gold = [task.gold_of(row) for row in table]
        given = [_given_labels(task, answer) for answer in answers]
        by_label = _label_scores_table(task.labels, gold, given, resamples)
        if not task.multi_label:
            confusion = _confusion_table(task.labels, gold, given)
    return Evaluation(len(table), scores, intervals, by_label, confusion)


def _given_labels(task: Task, answer: Answer) -> tuple[str, ...]:
    if task.multi_label:
        return answer.labels or ()
    return (answer.label or NO_ANSWER,)


def _label_scores_table(
    labels: Sequence[str],
    gold: Sequence[Sequence[str]],
    given: Sequence[Sequence[str]],
    resamples: int,
) -> pd.DataFrame:
    """Precision, recall and F1 of each label, by itself."""
    truth = label_table(gold, labels)
    answers = label_table(given, labels)
    right = (truth * answers).sum(0)
    given_rows = answers.sum(0)
    rows = truth.sum(0)
    bounds = [
        interval_of_share((low, high), n)
        for low, high, n in zip(*_f1_bounds(truth, answers, resamples), rows, strict=True)
    ]
    columns = {
        "precision": right / np.maximum(given_rows, 1),
        "recall": right / np.maximum(rows, 1),
        "f1": 2 * right / np.maximum(given_rows + rows, 1),
        "f1 from": [low for low, _ in bounds],
        "f1 to": [high for _, high in bounds],
        "rows": rows,
    }
    return pd.DataFrame(columns, index=pd.Index(labels, name="label"))


def _f1_bounds(
    truth: np.ndarray, answers: np.ndarray, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile bootstrap bounds of the F1 of each label, each of shape (labels,).

    All labels share the resampled rows; only how often each row was drawn counts, so that a few
    matrix products are enough for any number of labels. Resamples that say nothing of a label, as
    none of their rows has it or got it, do not count for it.

    Args:
        truth: 0 and 1, of shape (rows, labels).
        answers: the same.
        resamples: of the bootstrap.
    """
    rows = len(truth)
    random = np.random.default_rng(0)
    right = (truth * answers).astype(np.float64)
    either = (truth + answers).astype(np.float64)
    f1 = []
    at_once = min(RESAMPLES_AT_ONCE, resamples_at_once(rows))
    for _ in range(0, resamples, at_once):
        drawn = random.integers(rows, size=(at_once, rows))
        counts = np.array([np.bincount(chosen, minlength=rows) for chosen in drawn], np.float64)
        sums = counts @ either
        f1.append(np.where(sums > 0, 2 * (counts @ right) / np.maximum(sums, 1), np.nan))
    drawn_f1 = np.concatenate(f1)[:resamples]
    # A label that no row has or got has the F1 of 0.
    drawn_f1[:, np.isnan(drawn_f1).all(0)] = 0.0
    low, high = np.nanpercentile(drawn_f1, [2.5, 97.5], axis=0)
    return low, high


def _confusion_table(
    labels: Sequence[str], gold: Sequence[Sequence[str]], given: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Rows by right and answered label; with a column for abstentions if there are any."""
    right = [row[0] for row in gold]
    answered = [row[0] for row in given]
    columns = list(labels)
    if NO_ANSWER in answered:
        columns.append(NO_ANSWER)
    counts = confusion_matrix(right, answered, labels=columns)
    return pd.DataFrame(
        counts[: len(labels)],
        index=pd.Index(labels, name="right"),
        columns=pd.Index(columns, name="answered"),
    )


def compare_answers(
    task: Task,
    first: Sequence[Answer],
    second: Sequence[Answer],
    rows: Rows,
    *,
    score: str | None = None,
    metrics: Metrics = None,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two systems on the same rows, with a paired bootstrap interval.

    Rows are resampled together for both systems, so that what makes a row hard cancels out
    (Berg-Kirkpatrick et al. 2012, section 2).

    Args:
        task: defines the scores.
        first: the answers of one system, one for each row.
        second: the answers of the other system.
        rows: with their targets.
        score: the name of a score; the task's monitor unless given.
        metrics: of your own, as of `TrainConfig`; their scores can be compared too.
        resamples: of the bootstrap.

    Raises:
        ValueError: the task has no such score, or there are not as many answers as rows.
    """
    table = _checked_rows(task, rows, first, second)
    own = OwnMetrics.of(metrics)
    return _compare(
        task,
        own,
        _resample_scorer(task, first, table, own),
        _resample_scorer(task, second, table, own),
        rows=len(table),
        score=score or task.monitor,
        resamples=resamples,
    )


def compare_with_best(
    task: Task,
    systems: Sequence[Sequence[Answer]],
    rows: Rows,
    *,
    score: str,
    metrics: Metrics = None,
    resamples: int = RESAMPLES,
) -> list[tuple[dict[str, Interval], Comparison]]:
    """The intervals of each system's scores, and how much better the first system is.

    The results are those of `evaluate_answers` and `compare_answers`, but each system is scored
    only once on each resample.

    Args:
        task: defines the scores.
        systems: the answers of each system, the best system first.
        rows: with their targets.
        score: the name of the score that is compared.
        metrics: of your own, as of `TrainConfig`.
        resamples: of the bootstrap.
    """
    table = _checked_rows(task, rows, *systems)
    own = OwnMetrics.of(metrics)
    scorers = [_resample_scorer(task, answers, table, own) for answers in systems]
    results = []
    for answers, scorer in zip(systems, scorers, strict=True):
        names = list(score_answers(task, answers, table, own))
        intervals = _score_intervals(scorer, names, len(table), resamples)
        comparison = _compare(
            task, own, scorers[0], scorer, rows=len(table), score=score, resamples=resamples
        )
        results.append((intervals, comparison))
    return results


def _compare(
    task: Task,
    metrics: OwnMetrics,
    first: Scorer,
    second: Scorer,
    *,
    rows: int,
    score: str,
    resamples: int,
) -> Comparison:
    every_row = range(rows)
    first_scores = first(every_row)
    second_scores = second(every_row)
    if score not in first_scores:
        raise ValueError(f"score={score!r}: {type(task).__name__} has {sorted(first_scores)}.")
    differences: list[float] = []

    def difference_of(chosen: Sequence[int]) -> float:
        difference = first(chosen)[score] - second(chosen)[score]
        differences.append(difference)
        return difference

    bounds = interval(difference_of, every_row, resamples=resamples)
    if score in SHARES:
        bounds = interval_of_difference(bounds, rows)
    lower_is_better = metrics.lower_is_better(score)
    won = float(np.mean([(d > 0) + 0.5 * (d == 0) for d in differences]))
    return Comparison(
        score=score,
        first=first_scores[score],
        second=second_scores[score],
        difference=first_scores[score] - second_scores[score],
        interval=bounds,
        resamples_won=1 - won if lower_is_better else won,
        lower_is_better=lower_is_better,
    )


def _checked_rows(task: Task, rows: Rows, *systems: Sequence[Answer]) -> list[Row]:
    """The rows as a list; raises ValueError if a system has not one answer for each."""
    dataset = as_dataset(split_of(rows, "test"))
    check_rows(task, dataset)
    table: list[Row] = dataset.to_list()
    for answers in systems:
        if len(table) != len(answers):
            raise ValueError(
                f"there are {len(answers)} answers and {len(table)} rows, expected one answer a "
                "row."
            )
    return table


def _resample_scorer(
    task: Task, answers: Sequence[Answer], table: Sequence[Row], metrics: OwnMetrics
) -> Scorer:
    """A function that scores resampled rows, and scores each resample only once."""

    score_rows = task.scorer(answers, table)
    score_by_metrics = metrics.scorer(task, answers, table)

    def score_of(chosen: Sequence[int]) -> dict[str, float]:
        scores = score_rows(chosen)
        # Without abstentions these two scores are left out, since all rows are answered.
        if "accuracy" in scores:
            scores.setdefault("coverage", 1.0)
            scores.setdefault("accuracy_answered", scores["accuracy"])
        return scores

    scores_of_all = {**score_of(range(len(table))), **score_by_metrics(None)}

    # By their sums: the row numbers of a thousand resamples of a long table would fill the memory.
    scored: dict[bytes, dict[str, float]] = {}

    def scorer(chosen: Sequence[int]) -> dict[str, float]:
        key = hashlib.blake2b(np.asarray(chosen, np.int64).tobytes(), digest_size=16).digest()
        if key not in scored:
            # A score about rows that a resample lacks has the value that it has for all rows.
            scored[key] = {**scores_of_all, **score_of(chosen), **score_by_metrics(chosen)}
        return scored[key]

    return scorer


def _score_intervals(
    scorer: Scorer, names: Sequence[str], rows: int, resamples: int
) -> dict[str, Interval]:
    """The bootstrap interval of each score."""
    return {name: _score_interval(scorer, name, rows, resamples) for name in names}


def _score_interval(scorer: Scorer, name: str, rows: int, resamples: int) -> Interval:
    def score_of(chosen: Sequence[int]) -> float:
        return scorer(chosen)[name]

    bounds = interval(score_of, range(rows), resamples=resamples)
    return interval_of_share(bounds, rows) if name in SHARES else bounds

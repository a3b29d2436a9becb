"""Metrics of the user's own beside the scores of a task."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

from peftcls.data.reading import Row
from peftcls.metrics import is_lower_better
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.tasks.metric_calls import Metric, Metrics, as_metric, named_metrics, score_values
from peftcls.tasks.metric_columns import MetricColumns, metric_columns, right_answers

Scores = dict[str, float]


class OwnMetrics:
    """Metrics beside the scores of a task, by name.

    Args:
        metrics: a metric, or several, or a mapping from names to metrics. A metric is a function
            of predictions and references, which may have a third argument `probabilities`; or an
            `evaluate.EvaluationModule`, what `evaluate.combine` returns, or an object with the
            methods `update` and `compute`; or the name of a metric of scikit-learn.

    Raises:
        ValueError: one of them is no metric, or two have the same name.
    """

    def __init__(self, metrics: Metrics = None) -> None:
        self._metrics: dict[str, Metric] = {}
        for name, metric in named_metrics(metrics):
            if name in self._metrics:
                raise ValueError(
                    f"metrics has two metrics called {name!r}; give each a name: "
                    "metrics={'first': ..., 'second': ...}."
                )
            self._metrics[name] = as_metric(name, metric)

    @classmethod
    def of(cls, metrics: Metrics) -> "OwnMetrics":
        """The metrics; itself for what is one already."""
        return metrics if isinstance(metrics, cls) else cls(metrics)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics; a metric that returns several numbers has scores with more."""
        return tuple(self._metrics)

    def may_give(self, score: str) -> bool:
        """Whether one of the metrics can have a score of this name."""
        return any(score == name or score.startswith(f"{name}_") for name in self._metrics)

    def lower_is_better(self, score: str) -> bool:
        """Whether a lower value of a score is better: as its metric says, or else as its name."""
        for name, metric in self._metrics.items():
            if score == name and metric.higher_is_better is not None:
                return not metric.higher_is_better
        return is_lower_better(score)

    def for_answers(self, answers: Sequence[Answer]) -> "OwnMetrics":
        """The metrics that can score these answers: without probabilities, not all of them."""
        if all(answer.probabilities for answer in answers):
            return self
        kept = OwnMetrics()
        kept._metrics = {
            name: metric for name, metric in self._metrics.items() if not metric.needs_probabilities
        }
        return kept

    def scorer(
        self, task: Task, answers: Sequence[Answer], rows: Iterable[Row]
    ) -> Callable[[Sequence[int] | None], Scores]:
        """A function that scores the rows with given numbers, or all rows where it gets None.

        On some of the rows a metric may be undefined (all of them may have the same label); its
        scores are left out then.

        Raises:
            ValueError: a metric needs probabilities, which the answers do not have.
        """
        if not self._metrics:
            return lambda chosen: {}
        columns = metric_columns(task, answers, rows)
        self._check_probabilities(columns)
        taken = set(task.score_names)

        def score_of(chosen: Sequence[int] | None) -> Scores:
            if chosen is None:
                return self._scores(columns, taken)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._defined_scores(columns.take(chosen))

        return score_of

    def try_on(self, task: Task, rows: Iterable[Row]) -> tuple[str, ...]:
        """Score the right answers to rows, so that a metric that fails does so before a training.

        Returns:
            The names of the metrics' scores.

        Raises:
            ValueError: a metric fails.
        """
        if not self._metrics:
            return ()
        listed = list(rows)
        columns = metric_columns(task, right_answers(task, listed), listed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tuple(self._scores(columns, set(task.score_names), finite=False))

    def _check_probabilities(self, columns: MetricColumns) -> None:
        if columns.probabilities is not None:
            return
        for name, metric in self._metrics.items():
            if metric.needs_probabilities:
                raise ValueError(
                    f"the metric {name!r} reads probabilities, and these answers have none; "
                    "leave it out."
                )

    def _scores(self, columns: MetricColumns, taken: set[str], *, finite: bool = True) -> Scores:
        """The scores of all metrics; ValueError where one fails or has no finite number."""
        scores: Scores = {}
        for name, metric in self._metrics.items():
            for score, value in score_values(name, metric, columns).items():
                if score in taken or score in scores:
                    raise ValueError(
                        f"the metric {name!r} gives a score {score!r}, and there is one of this "
                        f"name already; give the metric another name: metrics={{'my_{name}': ...}}."
                    )
                if finite and not math.isfinite(value):
                    raise ValueError(
                        f"the metric {name!r} gave {value} as {score!r} on {len(columns)} rows, "
                        "expected a finite number."
                    )
                scores[score] = value
        return scores

    def _defined_scores(self, columns: MetricColumns) -> Scores:
        """The scores that these rows have."""
        scores: Scores = {}
        for name, metric in self._metrics.items():
            try:
                values = score_values(name, metric, columns)
            except ValueError:
                continue
            scores |= {score: value for score, value in values.items() if math.isfinite(value)}
        return scores


def score_answers(
    task: Task, answers: Sequence[Answer], rows: Sequence[Row] | Iterable[Row], metrics: Metrics
) -> Scores:
    """The scores of a task, and those of the user's own metrics.

    Raises:
        ValueError: a metric fails, or gives no finite number; the message names it.
    """
    own = OwnMetrics.of(metrics).scorer(task, answers, rows)
    return {**task.score(answers, rows), **own(None)}

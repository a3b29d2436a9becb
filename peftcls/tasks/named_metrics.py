"""Metrics of scikit-learn by their names, for the command and for settings."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics as sk

from peftcls.tasks.metric_columns import MetricColumns


@dataclasses.dataclass(frozen=True)
class NamedMetric:
    """A metric of scikit-learn, and what it is for.

    Args:
        label: for rows with one label: from the columns to a number.
        label_set: for rows with several labels.
        number: for numbers.
        needs_probabilities: whether it reads them.
    """

    label: Callable[[MetricColumns], Any] | None = None
    label_set: Callable[[MetricColumns], Any] | None = None
    number: Callable[[MetricColumns], Any] | None = None
    needs_probabilities: bool = False


def _of_answers(function: Callable[..., Any], **settings: Any) -> Callable[[MetricColumns], Any]:
    def call(columns: MetricColumns) -> Any:
        return function(columns.references, columns.predictions, **settings)

    return call


def _of_labels(function: Callable[..., Any], **settings: Any) -> Callable[[MetricColumns], Any]:
    """A mean over the labels that occur in the references, so not over abstentions."""

    def call(columns: MetricColumns) -> Any:
        labels = np.unique(columns.references)
        return function(columns.references, columns.predictions, labels=labels, **settings)

    return call


def _of_probabilities(columns: MetricColumns) -> Any:
    """The area under the ROC curve; of more than two labels the mean of one against the rest."""
    numbers = columns.in_numbers()
    labels = list(range(len(columns.labels)))
    several = {} if len(labels) == 2 else {"multi_class": "ovr", "labels": labels}
    return sk.roc_auc_score(numbers.references, columns.prediction_scores(), **several)


def _average_precision(columns: MetricColumns) -> Any:
    """The area under the curve of precision and recall, as the mean over the labels."""
    references = columns.in_numbers().references
    if references.ndim == 1 and len(columns.labels) > 2:
        references = references[:, None] == np.arange(len(columns.labels))
    return sk.average_precision_score(references, columns.prediction_scores())


def _roc_auc_of_label_sets(columns: MetricColumns) -> Any:
    return sk.roc_auc_score(columns.references, columns.probabilities)


NAMED_METRICS = {
    "average_precision_score": NamedMetric(
        label=_average_precision, label_set=_average_precision, needs_probabilities=True
    ),
    "balanced_accuracy_score": NamedMetric(label=_of_answers(sk.balanced_accuracy_score)),
    "cohen_kappa_score": NamedMetric(label=_of_answers(sk.cohen_kappa_score)),
    "explained_variance_score": NamedMetric(number=_of_answers(sk.explained_variance_score)),
    "f1_weighted": NamedMetric(
        label=_of_labels(sk.f1_score, average="weighted", zero_division=0),
        label_set=_of_answers(sk.f1_score, average="weighted", zero_division=0),
    ),
    "hamming_loss": NamedMetric(label_set=_of_answers(sk.hamming_loss)),
    "jaccard_samples": NamedMetric(
        label_set=_of_answers(sk.jaccard_score, average="samples", zero_division=1)
    ),
    "matthews_corrcoef": NamedMetric(label=_of_answers(sk.matthews_corrcoef)),
    "max_error": NamedMetric(number=_of_answers(sk.max_error)),
    "mean_absolute_error": NamedMetric(number=_of_answers(sk.mean_absolute_error)),
    "median_absolute_error": NamedMetric(number=_of_answers(sk.median_absolute_error)),
    "precision_macro": NamedMetric(
        label=_of_labels(sk.precision_score, average="macro", zero_division=0),
        label_set=_of_answers(sk.precision_score, average="macro", zero_division=0),
    ),
    "r2_score": NamedMetric(number=_of_answers(sk.r2_score)),
    "recall_macro": NamedMetric(
        label=_of_labels(sk.recall_score, average="macro", zero_division=0),
        label_set=_of_answers(sk.recall_score, average="macro", zero_division=0),
    ),
    "roc_auc_score": NamedMetric(
        label=_of_probabilities, label_set=_roc_auc_of_label_sets, needs_probabilities=True
    ),
}


def named_metric(name: str) -> Callable[[MetricColumns], Any]:
    """The metric of this name, for the kind of answers that it is given.

    Raises:
        ValueError: when it is given answers that it is not for.
    """
    metric = NAMED_METRICS[name]

    def call(columns: MetricColumns) -> Any:
        kind = columns.kind
        function = getattr(metric, kind, None) if kind in ("label", "label_set", "number") else None
        if function is None:
            kinds = [field for field in ("label", "label_set", "number") if getattr(metric, field)]
            raise ValueError(f"it is for the answers {kinds}, and these are of the kind {kind!r}")
        with warnings.catch_warnings():
            # Few rows may lack a label; what is undefined is not finite, and refused as such.
            warnings.simplefilter("ignore")
            return function(columns)

    return call

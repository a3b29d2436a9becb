"""From probabilities to decisions: temperature, thresholds, abstention, and their calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftcls.argument_checks import check_argument_types
from peftcls.tasks.answers import Answer
from peftcls.tasks.descriptions import describe_fields

if TYPE_CHECKING:
    import torch

MIN_PROBABILITY = 1e-300  # a smaller probability is raised to this before its logarithm is taken
MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
MIN_THRESHOLD = 1e-6
MIN_THRESHOLD_ROWS = 5  # with fewer rows for or against a label, a threshold would be noise


@dataclasses.dataclass(frozen=True, repr=False)
class Decisions:
    """How a label task decides; stored with the task, so every way of predicting decides alike.

    Args:
        temperature: log-probabilities are divided by it and normalised again, which for a softmax
            or a sigmoid is the same as dividing the logits (Guo et al. 2017, section 4.2).
        thresholds: by label, the probability from which the label is predicted; 0.5 for other
            labels. With one label a row, the label with the largest ratio of probability to
            threshold is predicted.
        abstain_below: with one label a row, no label is predicted if its probability is below this.

    Raises:
        ValueError: a setting is out of its range.
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] | None = None
    abstain_below: float | None = None

    def __repr__(self) -> str:
        return describe_fields(self)

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Decisions)
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}: expected a number above 0.")
        thresholds = dict(self.thresholds or {}).items()
        for name, value in [*thresholds, ("abstain_below", self.abstain_below)]:
            if value is not None and not _is_probability(value):
                raise ValueError(
                    f"the threshold {value!r} for {name!r}: expected a probability between 0 and 1."
                )

    def one_of(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities of labels that exclude each other: (rows, labels) that sum to one."""
        return (log_probabilities.double() / self.temperature).softmax(1)

    def any_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of labels that do not exclude each other: (rows, labels)."""
        return (logits.double() / self.temperature).sigmoid()

    def choose(self, probabilities: Mapping[str, float]) -> str | None:
        """The one label of a row; None for an abstention."""
        label = max(probabilities, key=lambda name: probabilities[name] / self.threshold(name))
        if self.abstain_below is not None and probabilities[label] < self.abstain_below:
            return None
        return label

    def select(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """All labels of a row."""
        return tuple(name for name, p in probabilities.items() if p >= self.threshold(name))

    def threshold(self, label: str) -> float:
        """The label's own threshold; 0.5 where it has none."""
        return float((self.thresholds or {}).get(label, 0.5))


PLAIN = Decisions()


def _is_probability(value: Any) -> bool:
    """Whether a setting is a number above 0 and below 1."""
    return isinstance(value, int | float) and 0 < value < 1


def decisions_setting(
    value: Decisions | Mapping[str, Any] | None,
    labels: Sequence[str] | None,
    *,
    several: bool = False,
) -> Decisions:
    """The setting `decisions` of a task, which may also be a mapping out of an adapter folder.

    Raises:
        ValueError: the setting does not fit the task.
    """
    decisions = _as_decisions(value)
    if labels is not None:
        unknown_labels = sorted(set(decisions.thresholds or {}) - set(labels))
        if unknown_labels:
            raise ValueError(
                f"thresholds name the label {unknown_labels[0]!r}, expected some of {list(labels)}."
            )
    if several and decisions.abstain_below is not None:
        raise ValueError(
            "abstain_below with multi_label=True: a row may have no label at all there; "
            "set thresholds instead."
        )
    return decisions


def _as_decisions(value: Decisions | Mapping[str, Any] | None) -> Decisions:
    """Build `Decisions` from what a caller or an adapter folder holds."""
    if isinstance(value, Decisions):
        return value
    if value is None:
        return PLAIN
    if not isinstance(value, Mapping):
        raise ValueError(f"decisions={value!r}: expected Decisions(...).")
    known = {field.name for field in dataclasses.fields(Decisions)}
    unknown = sorted(str(name) for name in set(value) - known)
    if unknown:
        raise ValueError(
            f"Decisions has no {unknown}; the folder was written by another version of peftcls."
        )
    return Decisions(**value)


def fit_decisions(
    answers: Sequence[Answer],
    gold: Sequence[Sequence[str]],
    labels: Sequence[str],
    before: Decisions,
    *,
    several: bool,
    min_accuracy: float | None,
) -> Decisions:
    """Fit decisions to the answers to rows that were not trained on.

    The temperature maximises the likelihood of targets that are softened by half a row in all, so
    that rows without an error do not make the model certain (after Platt 1999, section 2.2); it
    changes no label. For rows with several labels each threshold maximises the F1 of its label, and
    lies halfway between the two probabilities that it divides. `min_accuracy` sets the lowest
    threshold from which the share of right answers is this high by Laplace's rule of succession,
    (right + 1) / (answered + 2), so that a few lucky rows prove nothing: 0.95 takes 38 right
    answers in a row.

    Args:
        answers: with the probabilities that `before` gave.
        gold: the right labels of each row.
        labels: in the order of the head.
        before: the decisions under which the answers were given.
        several: whether a row can have any number of labels.
        min_accuracy: the accuracy below which the model is to abstain; no abstention if None.

    Raises:
        ValueError: no threshold reaches `min_accuracy`; `min_accuracy` is given although rows can
            have several labels; all rows have the same labels; or there are no rows.
    """
    _check_calibration(gold, several=several, min_accuracy=min_accuracy)
    table = []
    for answer in answers:
        by_label = answer.probabilities or {}
        table.append([by_label[label] for label in labels])
    probabilities = np.array(table, dtype=np.float64)
    truth = np.array([_contains(row, labels) for row in gold])
    if several:
        return _fit_label_sets(probabilities, truth, labels, before)
    return _fit_single_labels(probabilities, truth, labels, before, min_accuracy)


def _contains(row: Sequence[str], labels: Sequence[str]) -> list[bool]:
    """Which of the labels a row has."""
    return [label in row for label in labels]


def _check_calibration(
    gold: Sequence[Sequence[str]], *, several: bool, min_accuracy: float | None
) -> None:
    """Raise a ValueError where nothing can be fitted to these rows."""
    label_sets = {tuple(sorted(row)) for row in gold}
    if not label_sets:
        raise ValueError("Cannot calibrate without rows. Use rows with at least two labels.")
    if len(label_sets) == 1:
        names = list(label_sets.pop())
        noun = "label" if len(names) == 1 else "labels"
        raise ValueError(
            f"Cannot calibrate: all rows have the {noun} {names}. "
            "Use rows with at least two labels."
        )
    if several and min_accuracy is not None:
        raise ValueError(
            f"min_accuracy={min_accuracy} with multi_label=True: "
            "a row may have no label at all there; leave it out."
        )
    if min_accuracy is not None and not 0 < min_accuracy <= 1:
        raise ValueError(
            f"min_accuracy={min_accuracy}: "
            "expected a share of right answers, above 0 and at most 1."
        )


def _fit_label_sets(
    probabilities: np.ndarray, truth: np.ndarray, labels: Sequence[str], before: Decisions
) -> Decisions:
    """Fit a temperature and the thresholds of labels that do not exclude each other."""
    from scipy.special import softplus

    noise = _label_noise(len(truth))
    target = np.where(truth, 1 - noise, noise)
    odds = np.log(probabilities.clip(MIN_PROBABILITY)) - np.log(
        (1 - probabilities).clip(np.finfo(float).eps)
    )
    logits = before.temperature * odds

    def loss(rate: float) -> float:
        return float(np.mean(softplus(logits * rate) - target * logits * rate))

    temperature = _best_temperature(loss)
    scaled = 1 / (1 + np.exp(-logits / temperature))
    thresholds = {}
    for i, label in enumerate(labels):
        thresholds[label] = _best_threshold(truth[:, i], scaled[:, i])
    return Decisions(temperature, thresholds)


def _fit_single_labels(
    probabilities: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    before: Decisions,
    min_accuracy: float | None,
) -> Decisions:
    """Fit a temperature, and a threshold for abstention, of labels that exclude each other."""
    from scipy.special import logsumexp

    noise = _label_noise(len(truth))
    target = np.where(truth, 1 - noise, noise / (len(labels) - 1))
    logits = before.temperature * np.log(probabilities.clip(MIN_PROBABILITY))

    def loss(rate: float) -> float:
        normaliser = logsumexp(logits * rate, axis=1)
        return float(np.mean(normaliser - (target * logits).sum(1) * rate))

    temperature = _best_temperature(loss)
    if min_accuracy is None:
        return Decisions(temperature, before.thresholds)
    normaliser = logsumexp(logits / temperature, axis=1, keepdims=True)
    scaled = np.exp(logits / temperature - normaliser)
    predicted = (scaled / [before.threshold(label) for label in labels]).argmax(1)
    rows = np.arange(len(truth))
    abstain_below = _lowest_threshold(truth[rows, predicted], scaled[rows, predicted], min_accuracy)
    return Decisions(temperature, before.thresholds, abstain_below)


def _label_noise(rows: int) -> float:
    """How far a target lies from 0 or 1: half a row among all."""
    return 0.5 / (rows + 1)


def _best_temperature(loss: Callable[[float], float]) -> float:
    """The temperature whose inverse minimises a loss."""
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        loss,
        bounds=(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(1 / result.x)


def _best_threshold(truth: np.ndarray, probability: np.ndarray) -> float:
    """The threshold with the highest F1 of one label; 0.5 where too few rows have or lack it."""
    if min(truth.sum(), (~truth).sum()) < MIN_THRESHOLD_ROWS:
        return 0.5
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(truth, probability)
    # The last point belongs to no threshold.
    precision = precision[:-1]
    recall = recall[:-1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, MIN_PROBABILITY)
    best = int(np.argmax(f1))
    below = thresholds[best - 1] if best > 0 else 0.0
    return _between(below, thresholds[best])


def _lowest_threshold(right: np.ndarray, confidence: np.ndarray, accuracy: float) -> float:
    """The lowest threshold from which the answered rows are right in a given share of cases.

    Args:
        right: whether each row's answer is right.
        confidence: the probability of each row's answer.
        accuracy: the share to reach, by the rule of succession.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    answered = np.arange(1, len(order) + 1)
    reached = (np.cumsum(right[order]) + 1) / (answered + 2)
    # Rows of equal confidence are answered together, so only the last of them can end the answers.
    is_last_of_equals = np.append(np.diff(confidence) < 0, True)
    possible = np.flatnonzero((reached >= accuracy) & is_last_of_equals)
    if not possible.size:
        best = reached[is_last_of_equals].max()
        raise ValueError(
            f"min_accuracy={accuracy}: the {len(order)} rows make {best:.3f} likely at most, "
            "however few are answered; ask for less, or give more rows."
        )
    last = possible[-1]
    below = confidence[last + 1] if last + 1 < len(order) else 0.0
    return _between(below, confidence[last])


def _between(low: float, high: float) -> float:
    """The middle of two probabilities, as a threshold above 0 and below 1."""
    return float(np.clip((high + low) / 2, MIN_THRESHOLD, 1 - MIN_THRESHOLD))

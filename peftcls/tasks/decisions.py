"""From probabilities to a decision: temperature, thresholds, and when to say nothing; fitted on validation rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softplus
from sklearn.metrics import precision_recall_curve

from peftcls.argument_checks import check_argument_types
from peftcls.tasks.base import Answer

TINY = 1e-300  # below it a probability has no logarithm
COOLEST, HOTTEST = 0.05, 20.0
FEWEST_ROWS = 5  # with fewer rows for or against a label, a threshold would be noise


@dataclasses.dataclass(frozen=True)
class Decisions:
    """How a label task decides; stored with the task, so every way of predicting decides alike.

    Args:
        temperature: log-probabilities are divided by it and normalised again, which for a softmax or a sigmoid is the same
            as dividing the logits (Guo et al. 2017, section 4.2).
        thresholds: by label, the probability from which the label is given; 0.5 unless named. With one label a row, the
            label whose probability is largest in units of its threshold is given.
        abstain_below: with one label a row, no label is given where its probability is below this.

    Raises:
        ValueError: a setting is out of its range.
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] | None = None
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Decisions)
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}: expected a number above 0.")
        for name, value in [
            *(self.thresholds or {}).items(),
            ("abstain_below", self.abstain_below),
        ]:
            if value is not None and (not isinstance(value, int | float) or not 0 < value < 1):
                raise ValueError(
                    f"the threshold {value!r} for {name!r}: expected a probability between 0 and 1."
                )

    def one_of(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities of labels that exclude each other: (rows, labels) that sum to one."""
        return (log_probabilities.double() / self.temperature).softmax(1)

    def any_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of labels that do not: (rows, labels), each its own."""
        return (logits.double() / self.temperature).sigmoid()

    def choose(self, probabilities: Mapping[str, float]) -> str | None:
        """The one label of a row; None for an abstention."""
        label = max(probabilities, key=lambda name: probabilities[name] / self.threshold(name))
        return (
            None
            if self.abstain_below is not None and probabilities[label] < self.abstain_below
            else label
        )

    def select(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """All labels of a row."""
        return tuple(name for name, p in probabilities.items() if p >= self.threshold(name))

    def threshold(self, label: str) -> float:
        """The label's own threshold; 0.5 where it has none."""
        return float((self.thresholds or {}).get(label, 0.5))


PLAIN = Decisions()


def decisions_setting(
    value: Decisions | Mapping[str, Any] | None,
    labels: Sequence[str] | None,
    *,
    several: bool = False,
) -> Decisions:
    """Decisions as a task holds them, also when they come from a folder. Raises ValueError for what the task cannot do."""
    if not isinstance(value, Decisions | Mapping | None):
        raise ValueError(f"decisions={value!r}: expected Decisions(...).")
    if isinstance(value, Mapping) and (
        unknown := sorted(map(str, set(value) - {f.name for f in dataclasses.fields(Decisions)}))
    ):
        raise ValueError(
            f"Decisions has no {unknown}; the folder was written by another version of peftcls."
        )
    found = value if isinstance(value, Decisions) else Decisions(**(value or {}))
    if labels is not None and (odd := sorted(set(found.thresholds or {}) - set(labels))):
        raise ValueError(f"thresholds name the label {odd[0]!r}, expected some of {list(labels)}.")
    if several and found.abstain_below is not None:
        raise ValueError(
            "abstain_below with multi_label=True: a row may have no label at all there; set thresholds instead."
        )
    return found


def fit_decisions(
    answers: Sequence[Answer],
    gold: Sequence[Sequence[str]],
    labels: Sequence[str],
    before: Decisions,
    *,
    several: bool,
    min_accuracy: float | None,
) -> Decisions:
    """Decisions that suit the answers to rows that were not learnt from.

    The temperature maximises the likelihood of targets that are softened by half a row in all, so that rows without an
    error do not make the model certain (after Platt 1999, section 2.2); it changes no label. For rows with several labels
    each threshold maximises the F1 of its label, halfway between the two probabilities that it divides. `min_accuracy`
    sets the lowest bar from which the answered rows are right in this share of cases by Laplace's rule of succession,
    (right + 1) / (answered + 2), so that a few lucky rows prove nothing: 0.95 takes 38 right answers in a row.

    Args:
        answers: with the probabilities that `before` gave.
        gold: the right labels of each row.
        labels: in the order of the head.
        before: the decisions under which the answers were given.
        several: whether a row has any number of labels.
        min_accuracy: the accuracy below which it is better to say nothing; no abstention unless given.

    Raises:
        ValueError: no bar reaches `min_accuracy`, the rows can have several labels and one is asked for, or all rows have the same
            labels, or there are none.
    """
    if len(found := {tuple(sorted(row)) for row in gold}) < 2:
        alone = f"rows with the labels {list(*found)} alone do" if found else "no rows do"
        raise ValueError(
            f"{alone} not say how sure to be of others; calibrate with rows of two labels or more."
        )
    if several and min_accuracy is not None:
        raise ValueError(
            f"min_accuracy={min_accuracy} with multi_label=True: a row may have no label at all there; leave it out."
        )
    if min_accuracy is not None and not 0 < min_accuracy <= 1:
        raise ValueError(
            f"min_accuracy={min_accuracy}: expected a share of right answers, above 0 and at most 1."
        )
    table = np.array(
        [[(a.probabilities or {})[label] for label in labels] for a in answers], dtype=np.float64
    )
    truth = np.array([[label in row for label in labels] for row in gold])
    soft = 0.5 / (len(truth) + 1)
    if several:
        target = np.where(truth, 1 - soft, soft)
        logits = before.temperature * (
            np.log(table.clip(TINY)) - np.log((1 - table).clip(np.finfo(float).eps))
        )

        def loss(rate: float) -> float:
            return float(np.mean(softplus(logits * rate) - target * logits * rate))
    else:
        target = np.where(truth, 1 - soft, soft / (len(labels) - 1))
        logits = before.temperature * np.log(table.clip(TINY))

        def loss(rate: float) -> float:
            return float(
                np.mean(logsumexp(logits * rate, axis=1) - (target * logits).sum(1) * rate)
            )

    found = minimize_scalar(
        loss, bounds=(1 / HOTTEST, 1 / COOLEST), method="bounded", options={"xatol": 1e-6}
    )
    temperature = float(1 / found.x)
    if several:
        scaled = 1 / (1 + np.exp(-logits / temperature))
        return Decisions(
            temperature,
            {label: _best_threshold(truth[:, i], scaled[:, i]) for i, label in enumerate(labels)},
        )
    scaled = np.exp(logits / temperature - logsumexp(logits / temperature, axis=1, keepdims=True))
    bar = None
    if min_accuracy is not None:
        every, given = (
            np.arange(len(truth)),
            (scaled / [before.threshold(label) for label in labels]).argmax(1),
        )
        bar = _lowest_bar(truth[every, given], scaled[every, given], min_accuracy)
    return Decisions(temperature, before.thresholds, bar)


def _best_threshold(truth: np.ndarray, probability: np.ndarray) -> float:
    if min(truth.sum(), (~truth).sum()) < FEWEST_ROWS:
        return 0.5
    precision, recall, bars = precision_recall_curve(truth, probability)
    best = int(
        np.argmax(2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], TINY))
    )
    below = bars[best - 1] if best else 0.0
    return float(np.clip((bars[best] + below) / 2, 1e-6, 1 - 1e-6))


def _lowest_bar(right: np.ndarray, confidence: np.ndarray, accuracy: float) -> float:
    order = np.argsort(-confidence, kind="stable")
    reached = (np.cumsum(right[order]) + 1) / (
        np.arange(1, len(order) + 1) + 2
    )  # the rule of succession
    ends = np.append(
        np.diff(confidence[order]) < 0, True
    )  # rows of equal confidence are answered together
    if not (enough := np.flatnonzero((reached >= accuracy) & ends)).size:
        raise ValueError(
            f"min_accuracy={accuracy}: the {len(order)} rows make {reached[ends].max():.3f} likely at most, however few "
            "are answered; ask for less, or give more rows."
        )
    last = enough[-1]
    below = confidence[order][last + 1] if last + 1 < len(order) else 0.0
    return float(np.clip((confidence[order][last] + below) / 2, 1e-6, 1 - 1e-6))

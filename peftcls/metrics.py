"""Names for scores; the arithmetic is scikit-learn's and SciPy's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

Interval = tuple[float, float]


def label_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-averaged F1 over the labels that occur in `gold` or `predicted`."""
    return {"accuracy": float(sk.accuracy_score(gold, predicted)),
            "f1_macro": float(sk.f1_score(gold, predicted, average="macro", zero_division=0))}


def label_loss(gold: Sequence[str], probabilities: Sequence[dict[str, float]], labels: Sequence[str]) -> float:
    """Mean negative log-likelihood, in nats, of the right labels."""
    place = {label: i for i, label in enumerate(labels)}
    table = np.array([[p[label] for label in labels] for p in probabilities], dtype=np.float64)
    table /= table.sum(1, keepdims=True)
    return float(sk.log_loss([place[g] for g in gold], table, labels=list(range(len(labels)))))


def label_set_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]) -> dict[str, float]:
    """Micro- and macro-averaged F1 and the share of rows with exactly the right set of labels."""
    truth, found = (np.array([[label in row for label in labels] for row in rows], dtype=int) for rows in (gold, predicted))
    by_label = [float(sk.f1_score(truth[:, i], found[:, i], zero_division=0)) for i in range(len(labels))]
    return {"f1_macro": float(np.mean(by_label)),
            "f1_micro": float(sk.f1_score(truth.ravel(), found.ravel(), zero_division=0)),
            "accuracy": float((truth == found).all(axis=1).mean())}


def keyword_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, float]:
    """Mean over rows of set precision, recall and F1 of keywords; order and case do not count.

    `precision`, `recall` and `f1` take all predicted keywords, `f1_at_5` and `f1_at_10` the first five and ten. A gold
    keyword is *present* when it occurs in the row's text and *absent* when not; `recall_present` and `recall_absent`
    are means over the rows that have such keywords (Meng et al. 2017, "Deep Keyphrase Generation", section 4.3).
    """
    sums: dict[str, list[float]] = {}
    for wanted, found, text in zip(gold, predicted, texts, strict=True):
        truth, listed, lower = set(_folded(wanted)), _folded(found), " ".join(text.casefold().split())
        for name, guess in (("", listed), ("_at_5", listed[:5]), ("_at_10", listed[:10])):
            hits = len(truth & set(guess))
            precision, recall = hits / max(len(guess), 1), hits / max(len(truth), 1)
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            for part, value in (("precision", precision), ("recall", recall), ("f1", f1)):
                sums.setdefault(part + name, []).append(value)
        for name, part_of in (("present", {k for k in truth if k in lower}), ("absent", {k for k in truth if k not in lower})):
            if part_of:
                sums.setdefault(f"recall_{name}", []).append(len(part_of & set(listed)) / len(part_of))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def _folded(keywords: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(keyword.casefold().split()) for keyword in keywords))


def interval(score: Callable[..., float], *columns: Sequence[Any], resamples: int = 1000, seed: int = 0) -> Interval:
    """The 95 % percentile bootstrap interval of `score(*columns)`, rows resampled together (Efron 1979).

    A table of one row, or scores that never vary, give an interval of no width.
    """
    rows = len(columns[0])
    if rows < 2:
        return (value := score(*columns)), value

    def of_rows(chosen: np.ndarray) -> float:
        return score(*([column[i] for i in chosen] for column in columns))

    found = stats.bootstrap((np.arange(rows),), of_rows, vectorized=False, n_resamples=resamples, method="percentile",
                            rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)

"""Names for scores; the arithmetic is scikit-learn's and SciPy's."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

Interval = tuple[float, float]


LOWER_IS_BETTER = ("loss", "ece", "rmse", "unusable")
LABEL_SCORES = ("accuracy", "f1_macro", "loss", "ece")
LABEL_SET_SCORES = ("f1_macro", "f1_micro", "accuracy", "ece")
SPAN_SCORES = ("f1", "exact_match")
NUMBER_SCORES = ("pearson", "spearman", "rmse")
BINS = 15


def label_scores(gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Accuracy and macro-averaged F1 over the labels that occur; None, an abstention, is never right.

    Where there are abstentions, `coverage` is the share of rows that were answered, and `accuracy_answered` the share
    of those that are right (0 where none was answered).
    """
    named = [str(name) if name is not None else None for name in predicted]
    labels = sorted({*gold, *(name for name in named if name is not None)})
    place = {name: i for i, name in enumerate(labels)} | {None: -1}
    truth, found = (np.array([place[name] for name in names]) for names in (gold, named))
    # A bootstrap asks for this a thousand times, so it is counted here; the tests hold it against scikit-learn.
    right = np.bincount(truth[truth == found], minlength=len(labels))
    f1 = (
        2
        * right
        / (
            np.bincount(truth, minlength=len(labels))
            + np.bincount(found[found >= 0], minlength=len(labels))
        )
    )
    scores = {"accuracy": float((truth == found).mean()), "f1_macro": float(f1.mean())}
    if (answered := found >= 0).all():
        return scores
    return {
        **scores,
        "coverage": float(answered.mean()),
        "accuracy_answered": float((truth == found).sum() / max(answered.sum(), 1)),
    }


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: how far confidence is from accuracy, in 15 bins of equal width, weighted by their rows.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    sure, hits = np.array(confidence, dtype=np.float64), np.array(right, dtype=np.float64)
    bins = np.ceil(sure * BINS).clip(1, BINS).astype(int)
    return float(
        sum(abs(hits[bins == b].sum() - sure[bins == b].sum()) for b in np.unique(bins)) / len(sure)
    )


def calibration_bins(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """The bins of `calibration_error` that hold rows: their borders, rows, mean confidence and accuracy."""
    sure, hits = np.array(confidence, dtype=np.float64), np.array(right, dtype=np.float64)
    bins = np.ceil(sure * BINS).clip(1, BINS).astype(int)
    return [
        {
            "from": (b - 1) / BINS,
            "to": b / BINS,
            "rows": int((bins == b).sum()),
            "confidence": float(sure[bins == b].mean()),
            "accuracy": float(hits[bins == b].mean()),
        }
        for b in np.unique(bins).tolist()
    ]


def closed_set_scores(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    probabilities: Sequence[dict[str, float]],
    labels: Sequence[str],
) -> dict[str, float]:
    """All scores of answers with one label a row, by the names in LABEL_SCORES; without probabilities only those of labels."""
    if not all(probabilities):  # answers of a system that gives none
        return label_scores(gold, predicted)
    likeliest = [max(row, key=lambda name: row[name]) for row in probabilities]
    return {
        **label_scores(gold, predicted),
        "loss": label_loss(gold, probabilities, labels),
        "ece": calibration_error(
            [max(row.values()) for row in probabilities],
            [name == right for name, right in zip(likeliest, gold, strict=True)],
        ),
    }


def number_scores(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation (0 where one side never varies) and the root of the mean squared error."""
    truth, found = np.array(gold, dtype=np.float64), np.array(predicted, dtype=np.float64)
    varied = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(found) > 0
    return {
        "pearson": float(stats.pearsonr(truth, found).statistic) if varied else 0.0,
        "spearman": float(stats.spearmanr(truth, found).statistic) if varied else 0.0,
        "rmse": float(np.sqrt(np.mean((truth - found) ** 2))),
    }


def label_loss(
    gold: Sequence[str], probabilities: Sequence[dict[str, float]], labels: Sequence[str]
) -> float:
    """Mean negative log-likelihood, in nats, of the right labels."""
    place = {label: i for i, label in enumerate(labels)}
    table = np.array(
        [[p.get(label, 0.0) for label in labels] for p in probabilities], dtype=np.float64
    )
    table /= table.sum(1, keepdims=True)
    right = table[np.arange(len(table)), [place[g] for g in gold]]
    return float(-np.log(right.clip(np.finfo(np.float64).eps)).mean())


def label_set_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Micro- and macro-averaged F1 and the share of rows with exactly the right set of labels."""
    truth, found = (
        np.array([[label in row for label in labels] for row in rows], dtype=int)
        for rows in (gold, predicted)
    )
    by_label = [
        float(sk.f1_score(truth[:, i], found[:, i], zero_division=0)) for i in range(len(labels))
    ]
    return {
        "f1_macro": float(np.mean(by_label)),
        "f1_micro": float(sk.f1_score(truth.ravel(), found.ravel(), zero_division=0)),
        "accuracy": float((truth == found).all(axis=1).mean()),
    }


def label_set_calibration(
    gold: Sequence[Sequence[str]], probabilities: Sequence[dict[str, float]]
) -> float:
    """Expected calibration error over all yes-or-no questions, one a row and label."""
    asked = [
        (p, name in right)
        for right, row in zip(gold, probabilities, strict=True)
        for name, p in row.items()
    ]
    return calibration_error(
        [max(p, 1 - p) for p, _ in asked], [(p >= 0.5) == yes for p, yes in asked]
    )


def span_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """F1 and exact match as the official SQuAD scripts define them: the best over a row's right answers, then the mean.

    Case, punctuation, articles and white space do not count. No answer is the empty text, right only where the gold is
    empty too (Rajpurkar et al. 2016, section 6.1, and 2018, section 5).
    """
    pairs = list(zip(predicted, gold, strict=True))
    return {
        "f1": float(np.mean([span_f1(text, right) for text, right in pairs])),
        "exact_match": float(
            np.mean([any(_plain(text) == _plain(r) for r in right) for text, right in pairs])
        ),
    }


def span_f1(text: str, gold: Sequence[str]) -> float:
    """The F1 of the words of an answer and of the right one that it is nearest to."""

    def of(one: list[str], two: list[str]) -> float:
        if not one or not two:
            return float(one == two)
        shared = (Counter(one) & Counter(two)).total()
        return 2 * shared / (len(one) + len(two))

    return max(of(_plain(text), _plain(right)) for right in gold)


def _plain(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def keyword_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], texts: Sequence[str]
) -> dict[str, float]:
    """Mean over rows of set precision, recall and F1 of keywords; order and case do not count.

    `precision`, `recall` and `f1` take all predicted keywords, `f1_at_5` and `f1_at_10` the first five and ten. A gold
    keyword is *present* when it occurs in the row's text and *absent* when not; `recall_present` and `recall_absent`
    are means over the rows that have such keywords (Meng et al. 2017, "Deep Keyphrase Generation", section 4.3).
    """
    sums: dict[str, list[float]] = {}
    for wanted, found, text in zip(gold, predicted, texts, strict=True):
        truth, listed, lower = (
            set(_folded(wanted)),
            _folded(found),
            " ".join(text.casefold().split()),
        )
        for name, guess in (("", listed), ("_at_5", listed[:5]), ("_at_10", listed[:10])):
            hits = len(truth & set(guess))
            precision, recall = hits / max(len(guess), 1), hits / max(len(truth), 1)
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            for part, value in (("precision", precision), ("recall", recall), ("f1", f1)):
                sums.setdefault(part + name, []).append(value)
        for name, part_of in (
            ("present", {k for k in truth if k in lower}),
            ("absent", {k for k in truth if k not in lower}),
        ):
            if part_of:
                sums.setdefault(f"recall_{name}", []).append(
                    len(part_of & set(listed)) / len(part_of)
                )
    return {name: float(np.mean(values)) for name, values in sums.items()}


def _folded(keywords: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(keyword.casefold().split()) for keyword in keywords))


def interval(
    score: Callable[..., float], *columns: Sequence[Any], resamples: int = 1000, seed: int = 0
) -> Interval:
    """The 95 % percentile bootstrap interval of `score(*columns)`, rows resampled together (Efron 1979).

    A table of one row, or scores that never vary, give an interval of no width.
    """
    rows = len(columns[0])
    if rows < 2:
        return (value := score(*columns)), value

    def of_rows(chosen: np.ndarray) -> float:
        return score(*([column[i] for i in chosen] for column in columns))

    found = stats.bootstrap(
        (np.arange(rows),),
        of_rows,
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def rank_scores(scores: Mapping[str, float], monitor: str) -> tuple[float, float]:
    """What is greater where scores are better: by the one that decides, and of equal ones by the lower loss; without any, least."""
    if not scores:
        return -math.inf, 0.0
    return (-1 if monitor in LOWER_IS_BETTER else 1) * scores[monitor], -scores.get("loss", 0.0)

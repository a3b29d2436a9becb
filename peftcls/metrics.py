"""Scores: accuracy, F1, calibration error, correlation, SQuAD and keyword scores, and intervals."""

import dataclasses
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]

LOWER_IS_BETTER = ("loss", "ece", "rmse", "unusable")
LOWER_IS_BETTER_ENDINGS = ("_error", "_loss", "_deviance")
"""Of names in scikit-learn whose values are to be minimised."""
LABEL_SCORES = ("accuracy", "f1_macro", "loss", "ece")
LABEL_SET_SCORES = ("f1_macro", "f1_micro", "accuracy", "ece")
SPAN_SCORES = ("f1", "exact_match")
MAJORITY = "majority"
MEAN = "mean"
"""The baselines that do not read the texts."""
NUMBER_ERROR = "rmse"
NUMBER_SCORES = ("pearson", "spearman", NUMBER_ERROR)
KEYWORD_SCORES = (
    *("f1", "f1_at_5", "f1_at_10"),
    *("precision", "precision_at_5", "precision_at_10"),
    *("recall", "recall_at_5", "recall_at_10"),
    *("recall_present", "recall_absent", "unusable"),
)
TEXT_SCORES = ("exact_match", "unusable")
SHARES = ("accuracy", "f1_macro", "f1_micro", "f1", "exact_match", "unusable")
"""Scores that are 0 or 1 where all rows are wrong, or right."""
CALIBRATION_BINS = 15
MARKS = frozenset(".,:;!?'\"/")
PUNCTUATION = frozenset({"Pd", "Ps", "Pe", "Pi", "Pf"})
"""Unicode's categories of hyphens, brackets and quotation marks."""
MAX_DRAWN_ROWS = 2**22
"""Numbers of rows, in all resamples that are in memory together."""


# One label a row


def label_scores(gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Accuracy, and F1 averaged over the labels that occur (macro).

    None, an abstention, is never right. If there are abstentions, `coverage` is the share of rows
    that were answered, and `accuracy_answered` the share of those that are right (0 if none was).
    """
    names = [None if name is None else str(name) for name in predicted]
    return _scores_of_numbers(*_numbered(gold, names))


def _numbered(
    gold: Sequence[str], predicted: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers, of shape (rows,) each; -1 for an abstention."""
    labels = sorted({*gold, *(name for name in predicted if name is not None)})
    index: dict[str | None, int] = {name: i for i, name in enumerate(labels)}
    index[None] = -1
    truth = np.array([index[name] for name in gold])
    return truth, np.array([index[name] for name in predicted])


def _scores_of_numbers(truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """The scores of `label_scores`, from labels as numbers."""
    # A bootstrap calls this a thousand times, so it counts with NumPy; tests compare it with
    # scikit-learn.
    count = int(max(truth.max(), answers.max())) + 1
    is_right = truth == answers
    is_answered = answers >= 0
    right_by_label = np.bincount(truth[is_right], minlength=count)
    gold_by_label = np.bincount(truth, minlength=count)
    answers_by_label = np.bincount(answers[is_answered], minlength=count)
    occurring = gold_by_label + answers_by_label
    f1 = 2 * right_by_label[occurring > 0] / occurring[occurring > 0]
    scores = {"accuracy": float(is_right.mean()), "f1_macro": float(f1.mean())}
    if not is_answered.all():
        scores["coverage"] = float(is_answered.mean())
        scores["accuracy_answered"] = float(is_right.sum() / max(is_answered.sum(), 1))
    return scores


def closed_set_scores(
    gold: Sequence[str],
    predicted: Sequence[str | None],
    probabilities: Sequence[dict[str, float]],
    labels: Sequence[str],
) -> dict[str, float]:
    """All scores of answers with one label a row, by the names in LABEL_SCORES.

    Without probabilities, only those of `label_scores`.
    """
    return ClosedSetRows.of(gold, predicted, probabilities, labels).scores()


@dataclasses.dataclass(frozen=True)
class ClosedSetRows:
    """What the scores of rows with one label depend on, worked out once for many resamples.

    All are of shape (rows,); without probabilities the last three are None.

    Args:
        truth: the numbers of the right labels.
        answers: the numbers of the given labels; -1 for an abstention.
        loss: the negative log-likelihood of the right label.
        confidence: the probability of the likeliest label.
        hits: whether the likeliest label is right.
    """

    truth: np.ndarray
    answers: np.ndarray
    loss: np.ndarray | None = None
    confidence: np.ndarray | None = None
    hits: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        gold: Sequence[str],
        predicted: Sequence[str | None],
        probabilities: Sequence[dict[str, float]],
        labels: Sequence[str],
    ) -> "ClosedSetRows":
        """From labels and probabilities; arguments as of `closed_set_scores`."""
        names = [None if name is None else str(name) for name in predicted]
        numbers = _numbered(gold, names)
        if not all(probabilities):
            return cls(*numbers)
        likeliest = [max(row, key=row.__getitem__) for row in probabilities]
        return cls(
            *numbers,
            _losses(gold, probabilities, labels),
            np.array([max(row.values()) for row in probabilities]),
            np.array([name == right for name, right in zip(likeliest, gold, strict=True)]),
        )

    def scores(self, rows: np.ndarray | None = None) -> dict[str, float]:
        """The scores of all rows, or of rows with these numbers."""
        chosen: Any = slice(None) if rows is None else rows
        scores = _scores_of_numbers(self.truth[chosen], self.answers[chosen])
        if self.loss is None or self.confidence is None or self.hits is None:
            return scores
        return {
            **scores,
            "loss": float(self.loss[chosen].mean()),
            "ece": calibration_error(self.confidence[chosen], self.hits[chosen]),
        }


def label_loss(
    gold: Sequence[str], probabilities: Sequence[dict[str, float]], labels: Sequence[str]
) -> float:
    """The mean negative log-likelihood of the right labels, in nats."""
    return float(_losses(gold, probabilities, labels).mean())


def _losses(
    gold: Sequence[str], probabilities: Sequence[dict[str, float]], labels: Sequence[str]
) -> np.ndarray:
    index = {label: i for i, label in enumerate(labels)}
    table = np.array(
        [[row.get(label, 0.0) for label in labels] for row in probabilities], dtype=np.float64
    )
    table /= table.sum(1, keepdims=True)
    right = table[np.arange(len(table)), [index[label] for label in gold]]
    losses: np.ndarray = -np.log(right.clip(np.finfo(np.float64).eps))
    return losses


# Several labels a row


def label_set_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Micro- and macro-averaged F1, and the share of rows with exactly the right labels."""
    from sklearn.metrics import f1_score

    truth = label_table(gold, labels)
    answers = label_table(predicted, labels)
    by_label = [
        float(f1_score(truth[:, i], answers[:, i], zero_division=0)) for i in range(len(labels))
    ]
    return {
        "f1_macro": float(np.mean(by_label)),
        "f1_micro": float(f1_score(truth.ravel(), answers.ravel(), zero_division=0)),
        "accuracy": float((truth == answers).all(axis=1).mean()),
    }


def label_table(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Which labels each row has: a table of 0 and 1 of shape (rows, labels)."""
    return np.array([[label in row for label in labels] for row in rows], dtype=int)


def label_set_calibration(
    gold: Sequence[Sequence[str]], probabilities: Sequence[dict[str, float]]
) -> float:
    """The expected calibration error over all yes-or-no questions, one for each row and label."""
    confidence = []
    is_right = []
    for right, row in zip(gold, probabilities, strict=True):
        for name, p in row.items():
            confidence.append(max(p, 1 - p))
            is_right.append((p >= 0.5) == (name in right))
    return calibration_error(confidence, is_right)


# Calibration


def calibration_error(
    confidence: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray
) -> float:
    """The expected calibration error: how far confidence is from accuracy.

    Rows are put into 15 bins of equal width, and bins weigh as many rows as they hold (Guo et al.
    2017, "On Calibration of Modern Neural Networks", equation 3).

    Args:
        confidence: the probability of each row's answer.
        right: whether that answer is right.
    """
    sure = np.array(confidence, dtype=np.float64)
    hits = np.array(right, dtype=np.float64)
    bins = _calibration_bin_of(sure)
    gaps = [abs(hits[bins == b].sum() - sure[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / len(sure))


def calibration_bins(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """The bins of `calibration_error` with rows: bounds, rows, mean confidence and accuracy."""
    sure = np.array(confidence, dtype=np.float64)
    hits = np.array(right, dtype=np.float64)
    bins = _calibration_bin_of(sure)
    described = []
    for b in np.unique(bins).tolist():
        is_inside = bins == b
        described.append(
            {
                "from": (b - 1) / CALIBRATION_BINS,
                "to": b / CALIBRATION_BINS,
                "rows": int(is_inside.sum()),
                "confidence": float(sure[is_inside].mean()),
                "accuracy": float(hits[is_inside].mean()),
            }
        )
    return described


def _calibration_bin_of(confidence: np.ndarray) -> np.ndarray:
    """The number of each row's bin, from 1."""
    return np.ceil(confidence * CALIBRATION_BINS).clip(1, CALIBRATION_BINS).astype(int)


# Numbers


def number_scores(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, and the root of the mean squared error (RMSE).

    A correlation is 0 if one side never varies.
    """
    from scipy import stats

    truth = np.array(gold, dtype=np.float64)
    answers = np.array(predicted, dtype=np.float64)
    pearson = 0.0
    spearman = 0.0
    if len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(answers) > 0:
        pearson = float(stats.pearsonr(truth, answers).statistic)
        spearman = float(stats.spearmanr(truth, answers).statistic)
    rmse = float(np.sqrt(np.mean((truth - answers) ** 2)))
    return {"pearson": pearson, "spearman": spearman, "rmse": rmse}


# Spans


def span_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """F1 and exact match as the official SQuAD scripts define them.

    For each row the best over its right answers counts, then the mean over rows. Case,
    punctuation, articles and white space do not count. No answer is the empty text, which is right
    only if the gold text is empty too (Rajpurkar et al. 2016, section 6.1, and 2018, section 5).
    """
    f1 = []
    exact = []
    for text, right in zip(predicted, gold, strict=True):
        f1.append(span_f1(text, right))
        exact.append(any(_normalized_words(text) == _normalized_words(r) for r in right))
    return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}


def span_f1(text: str, gold: Sequence[str]) -> float:
    """The F1 of an answer's words, against the right answer that it is nearest to."""
    words = _normalized_words(text)
    return max(_word_f1(words, _normalized_words(right)) for right in gold)


def _word_f1(first: list[str], second: list[str]) -> float:
    if not first or not second:
        return float(first == second)
    shared = (Counter(first) & Counter(second)).total()
    return 2 * shared / (len(first) + len(second))


def _normalized_words(text: str) -> list[str]:
    """The words of a text without case, punctuation and articles."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


# Keywords


def keyword_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], texts: Sequence[str]
) -> dict[str, float]:
    """The mean over rows of precision, recall and F1 of keywords.

    Order, case and punctuation do not count: "COVID-19." is "covid 19". Words are not stemmed.

    `precision`, `recall` and `f1` take all predicted keywords, `f1_at_5` and `f1_at_10` the first
    five and ten. A gold keyword is *present* when it occurs in the row's text and *absent* when
    not; `recall_present` and `recall_absent` are means over the rows that have such keywords (Meng
    et al. 2017, "Deep Keyphrase Generation", section 4.3).
    """
    values: dict[str, list[float]] = {}
    for gold_row, predicted_row, text in zip(gold, predicted, texts, strict=True):
        for name, value in _keyword_row_scores(gold_row, predicted_row, text).items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def _keyword_row_scores(
    gold: Sequence[str], predicted: Sequence[str], text: str
) -> dict[str, float]:
    """The keyword scores of one row."""
    truth = set(_distinct_keywords(gold))
    keywords = _distinct_keywords(predicted)
    scores = {}
    for suffix, first in (("", keywords), ("_at_5", keywords[:5]), ("_at_10", keywords[:10])):
        hits = len(truth & set(first))
        precision = hits / max(len(first), 1)
        recall = hits / max(len(truth), 1)
        scores["precision" + suffix] = precision
        scores["recall" + suffix] = recall
        scores["f1" + suffix] = 0.0
        if hits:
            scores["f1" + suffix] = 2 * precision * recall / (precision + recall)
    searched = keyword_words(text)
    present = {keyword for keyword in truth if keyword in searched}
    absent = truth - present
    if present:
        scores["recall_present"] = len(present & set(keywords)) / len(present)
    if absent:
        scores["recall_absent"] = len(absent & set(keywords)) / len(absent)
    return scores


def _distinct_keywords(keywords: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(keyword_words(keyword) for keyword in keywords))


def keyword_words(text: str) -> str:
    """A text by which keywords are compared: its words without case and punctuation.

    Hyphens, brackets, quotation marks and the like are spaces; "C#" stays.
    """
    bare = "".join(" " if _is_punctuation(c) else c for c in text.casefold())
    return " ".join(bare.split())


def _is_punctuation(character: str) -> bool:
    return character in MARKS or unicodedata.category(character) in PUNCTUATION


# Intervals and order


def resamples_at_once(rows: int) -> int:
    """How many resamples of so many rows are in memory together; the draws do not depend on it."""
    return max(1, MAX_DRAWN_ROWS // rows)


def interval(
    score: Callable[..., float], *columns: Sequence[Any], resamples: int = 1000, seed: int = 0
) -> Interval:
    """The 95 % percentile bootstrap interval of `score(*columns)` (Efron 1979).

    Rows are resampled together in all columns. A table of one row, or a score that never varies,
    gives an interval of width 0.
    """
    from scipy import stats

    rows = len(columns[0])
    if rows < 2:
        value = score(*columns)
        return value, value

    def score_of(chosen: np.ndarray) -> float:
        return score(*([column[i] for i in chosen] for column in columns))

    bounds = stats.bootstrap(
        (np.arange(rows),),
        score_of,
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        batch=resamples_at_once(rows),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def interval_of_share(bounds: Interval, rows: int) -> Interval:
    """The interval of a share of rows, where its bootstrap has no width at 0 or at 1.

    Resamples of rows that are all right are all right, however few they are. What so many rows can
    tell is the bound of Clopper and Pearson 1934, "The use of confidence or fiducial limits": 60 of
    60 right is 0.94 to 1.

    Args:
        bounds: of the bootstrap.
        rows: how many were resampled; none tell nothing.
    """
    low, high = bounds
    if low < high or low not in (0, 1):
        return bounds
    room = _room(rows)
    return (1 - room, 1.0) if low == 1 else (0.0, room)


def interval_of_difference(bounds: Interval, rows: int) -> Interval:
    """The interval of a difference of two shares, where its bootstrap has no width.

    Two systems that differ in the same way on all rows may differ otherwise on other rows; so many
    of these as `interval_of_share` allows would move the difference towards -1 or 1. Systems
    that do not differ may be one, such as a probe that was kept, and stay so.

    Args:
        bounds: of the bootstrap.
        rows: how many were resampled.
    """
    low, high = bounds
    if low < high or low == 0:
        return bounds
    room = _room(rows)
    return low - room * (1 + low), high + room * (1 - high)


def _room(rows: int) -> float:
    """The share of other rows that so many, of which none is such a row, leave room for."""
    return 1 - 0.025 ** (1 / rows) if rows else 1.0


def mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """The mean of independent values, with its 95 % t-interval (Student 1908).

    Args:
        values: two or more, such as the scores of runs with different seeds.
    """
    from scipy import stats

    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, (mean - half, mean + half)


def is_lower_better(score: str) -> bool:
    """Whether a lower value of a score is better, by its name."""
    return score in LOWER_IS_BETTER or score.endswith(LOWER_IS_BETTER_ENDINGS)


def rank_scores(
    scores: Mapping[str, float], monitor: str, *, lower_is_better: bool
) -> tuple[float, float]:
    """A sort key that is greater for better scores; the lowest of all without any scores.

    The monitor decides; if two are equal, the lower loss is better.
    """
    if not scores:
        return -math.inf, 0.0
    sign = -1 if lower_is_better else 1
    return sign * scores[monitor], -scores.get("loss", 0.0)

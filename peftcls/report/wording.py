"""What scores and times are called and how they are written, the same in text, tables and figures."""

from collections.abc import Sequence
from typing import Any

SCORES = {
    "accuracy": ("Accuracy", "the share of rows whose answer is exactly right"),
    "f1_macro": (
        "Macro-F1",
        "the mean of the labels' F1: a rare label counts as much as a common one",
    ),
    "f1_micro": ("Micro-F1", "F1 over all labels of all rows together"),
    "loss": (
        "Loss",
        "the mean negative log-likelihood of the right label, in nats; lower is better",
    ),
    "ece": (
        "Calibration error",
        "how far its probabilities are from how often it is right; few rows make it, and its interval, larger",
    ),
    "coverage": ("Coverage", "the share of rows that were answered at all"),
    "accuracy_answered": (
        "Accuracy where answered",
        "the share of the answered rows that are right",
    ),
    "f1": ("F1", "how much of the right answer was found, and how much of the answer is right"),
    "exact_match": ("Exact match", "the share of rows answered word for word"),
    "precision": ("Precision", "the share of what was given that is right"),
    "recall": ("Recall", "the share of what is right that was given"),
    "recall_present": ("Recall, present", "of the keywords that stand in the text"),
    "recall_absent": ("Recall, absent", "of the keywords that do not stand in the text"),
    "unusable": (
        "Unusable answers",
        "cut off, empty or not in the form that was asked for; lower is better",
    ),
    "pearson": ("Pearson", "the linear correlation of prediction and target"),
    "spearman": ("Spearman", "the correlation of their ranks"),
    "rmse": ("Root mean squared error", "in the units of the target; lower is better"),
}
NUMBERS = ("loss", "pearson", "spearman", "rmse")  # all other scores are shares


def score_title(name: str) -> str:
    """What a score is called."""
    base, _, at = name.partition("_at_")
    return (
        SCORES[name][0]
        if name in SCORES
        else f"{SCORES[base][0]} at {at}"
        if base in SCORES and at
        else name.replace("_", " ")
    )


def score_meaning(name: str) -> str:
    """What it says; empty for a score that is not known here."""
    base, _, at = name.partition("_at_")
    return (
        SCORES[name][1] if name in SCORES else f"of the first {at}" if base in SCORES and at else ""
    )


def is_share(name: str) -> bool:
    """Whether a score is shown in percent."""
    return name not in NUMBERS


def write_score(value: float | None, name: str) -> str:
    """A score as it is shown: a share in percent with one decimal, any other with three."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"


def write_difference(value: float, name: str) -> str:
    """A difference of two scores with its sign; of shares, in points."""
    return (f"{100 * value:+.1f}" if is_share(name) else f"{value:+.3f}").replace("-", "−")


def write_share(value: float) -> str:
    """A probability in percent; one that is neither is never rounded to 0 or 100."""
    shown = f"{100 * value:.1f}"
    return (
        "<0.1"
        if shown == "0.0" and value > 0
        else ">99.9"
        if shown == "100.0" and value < 1
        else shown
    )


def write_plain(value: float | None) -> str:
    """A number of any size with four digits."""
    return "–" if value is None else f"{value:.4g}"


def write_count(value: int) -> str:
    """A count with its thousands apart."""
    return f"{value:,}".replace(",", "\u202f")


def write_bytes(value: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def write_seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return (
        f"{minutes} min {seconds:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def write_list(names: Sequence[Any], last: str = "and") -> str:
    """Names as a sentence has them."""
    listed = [str(name) for name in names]
    return (
        f" {last} ".join([", ".join(listed[:-1]), listed[-1]])
        if len(listed) > 1
        else "".join(listed)
    )

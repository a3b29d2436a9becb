"""How scores, times and counts are named and written, the same in text, tables and figures."""

from collections.abc import Sequence
from typing import Any

# Name of a score: its title, and what it says.
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
        "how far probabilities are from how often they are right; with few rows it is larger",
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
# All other scores in the table are shares.
PLAIN_NUMBERS = ("loss", "pearson", "spearman", "rmse")
NARROW_SPACE = "\u202f"
MINUS = "\u2212"


def score_title(name: str) -> str:
    """The title of a score, such as "F1 at 5" for "f1_at_5"."""
    if name in SCORES:
        return SCORES[name][0]
    base, _, cutoff = name.partition("_at_")
    if base in SCORES and cutoff:
        return f"{SCORES[base][0]} at {cutoff}"
    return name.replace("_", " ")


def score_meaning(name: str) -> str:
    """What a score says; empty for a score that is not known here."""
    if name in SCORES:
        return SCORES[name][1]
    base, _, cutoff = name.partition("_at_")
    if base in SCORES and cutoff:
        return f"of the first {cutoff}"
    return ""


def is_share(name: str) -> bool:
    """Whether a score is shown in percent; the range of a metric of the user's is not known."""
    base, _, _ = name.partition("_at_")
    return base in SCORES and name not in PLAIN_NUMBERS


def write_score(value: float | None, name: str) -> str:
    """Write a score: a share in percent with one decimal, any other with three."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"


def write_difference(value: float, name: str) -> str:
    """Write a difference of two scores with its sign; of shares, in percentage points."""
    written = f"{100 * value:+.1f}" if is_share(name) else f"{value:+.3f}"
    return written.replace("-", MINUS)


def write_share(value: float) -> str:
    """Write a probability in percent; only 0 and 1 themselves are written as 0 and 100."""
    written = f"{100 * value:.1f}"
    if written == "0.0" and value > 0:
        return "<0.1"
    if written == "100.0" and value < 1:
        return ">99.9"
    return written


def write_plain(value: float | None) -> str:
    """Write a number of any size with four digits."""
    return "–" if value is None else f"{value:.4g}"


def write_count(value: int) -> str:
    """Write a count with a narrow space between its thousands."""
    return f"{value:,}".replace(",", NARROW_SPACE)


def write_bytes(value: float) -> str:
    """Write a number of bytes in B, kB, MB or GB."""
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} GB"


def write_seconds(value: float) -> str:
    """Write a time in seconds, minutes or hours."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def write_list(names: Sequence[Any], last: str = "and") -> str:
    """Write names as in a sentence: a, b and c."""
    if len(names) < 2:
        return "".join(str(name) for name in names)
    *first, end = [str(name) for name in names]
    return f"{', '.join(first)} {last} {end}"

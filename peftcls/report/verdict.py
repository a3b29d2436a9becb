"""Whether a run earns its place beside simpler systems, in words, and what to do then."""

import math
from collections.abc import Mapping
from typing import Any

from peftcls.quality.split_checks import MIN_EVALUATION_ROWS
from peftcls.report.wording import score_title, write_count, write_difference

SMALL_DIFFERENCE = 0.03
"""A difference of scores of at most this size, either way, counts as none."""
WHAT_TO_TRY = (
    "Try another base, more rows, or other settings: a learning rate three times as high or as "
    "low, more epochs, adapters in all linear layers."
)
TITLES = {
    "ahead": "It earns its place",
    "level": "Level with a simpler system",
    "unclear": "It cannot be told yet",
    "behind": "Below a simpler system",
    "nothing": "It has learnt nothing that shows",
    "seen": "It cannot be told",
}
"""The title of each verdict."""
MAX_SEEN_SHARE = 0.1
"""Of the test rows: where more have a text that was trained on, their scores tell nothing."""


def verdict_of(low: float, high: float, rows: int) -> str:
    """The verdict on a run beside the strongest other system: a key of `TITLES`.

    Args:
        low: the lower end of the 95 % paired bootstrap interval of the difference of their
            scores; above 0 where the run is better.
        high: the upper end.
        rows: how many rows both have answered.
    """
    if rows < MIN_EVALUATION_ROWS:
        return "unclear"
    if low > 0:
        return "ahead"
    if high < 0:
        return "behind"
    is_narrow = max(-low, high) <= SMALL_DIFFERENCE
    return "level" if is_narrow else "unclear"


def around_the_other(headline: Mapping[str, Any], rows: int) -> tuple[str, str]:
    """What the interval says of a run: the words before and behind the strongest other system.

    Args:
        headline: of a report's numbers, with a verdict.
        rows: how many test rows there are.
    """
    if headline["verdict"] in ("ahead", "behind"):
        return "Against ", ", the best of the others"
    if headline["from"] > 0:
        return "Ahead of ", f" on these {write_count(rows)} rows, which are few"
    if headline["to"] < 0:
        return "Behind ", f" on these {write_count(rows)} rows, which are few"
    shown = "One row shows" if rows == 1 else f"{write_count(rows)} rows show"
    return f"{shown} no difference from ", ""


def tell_verdict(headline: Mapping[str, Any], score: str, rows: int) -> str:
    """The verdict in one sentence, with the numbers that decide it.

    Args:
        headline: of a report's numbers, with a verdict.
        score: the name of the score that was compared.
        rows: how many test rows there are.
    """
    against = headline["against"]
    numbers = (
        f"{write_difference(headline['difference'], score)} in {score_title(score)}, 95 % interval "
        f"{write_difference(headline['from'], score)} to {write_difference(headline['to'], score)}"
    )
    match headline["verdict"]:
        case "ahead":
            said = f"it is better than {against}, the best of the simpler systems"
        case "behind":
            said = f"it is worse than {against}"
        case "level":
            said = f"it is as good as {against}, and no better"
        case "nothing":
            return (
                f"{TITLES['nothing']}: on the test rows it is no better than {headline['blind']}, "
                "which does not read the texts."
            )
        case "seen":
            return (
                f"{TITLES['seen']}: {write_count(headline['seen'])} of {write_count(rows)} test "
                "rows have a text that was trained on, so their scores say little about new texts."
            )
        case _ if headline["from"] > 0 or headline["to"] < 0:
            before, behind = around_the_other(headline, rows)
            said = f"{before.lower()}{against}{behind}, {numbers}"
        case _:
            said = f"{write_count(rows)} test rows are too few to tell it from {against}"
    if rows < MIN_EVALUATION_ROWS:
        return f"{TITLES[headline['verdict']]}: {said}."
    return f"{TITLES[headline['verdict']]}: {said} ({numbers})."


def next_step(headline: Mapping[str, Any], rows: int) -> str:
    """What to do after a verdict, in one sentence or two.

    Args:
        headline: of a report's numbers, with a verdict.
        rows: how many test rows there are.
    """
    against = headline["against"]
    match headline["verdict"]:
        case "ahead":
            return "Use it, and read the wrong rows in the report first."
        case "behind":
            return f"Use {against} for now. {WHAT_TO_TRY}"
        case "level":
            return f"Use {against}, which is cheaper, unless more training rows change that."
        case "nothing":
            return f"Read some rows: could a person answer them from their texts? {WHAT_TO_TRY}"
        case "seen":
            return "Give test rows whose texts were not trained on."
    if rows < MIN_EVALUATION_ROWS:
        return f"Give more test rows: at least {MIN_EVALUATION_ROWS}, better some hundred."
    needed = write_count(rows_needed(headline["from"], headline["to"], rows))
    return (
        f"Give more test rows: about {needed} would show a difference of "
        f"{100 * SMALL_DIFFERENCE:.0f} points."
    )


def rows_needed(low: float, high: float, rows: int) -> int:
    """About how many rows have an interval that shows a small difference; in round numbers.

    An interval's width goes with one over the root of the number of rows.
    """
    width = (high - low) / 2
    needed = max(rows * (width / SMALL_DIFFERENCE) ** 2, 2 * rows, 100)
    unit = 10 ** (math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / unit) * unit

"""Numbers in cells, which a text file holds as texts."""

import math
import re
from typing import Any, Literal

Decimal = Literal[".", ","]
"""What stands before the decimals of a number."""

WITH_COMMA = re.compile(r"\s*[-+]?[0-9]+,[0-9]+\s*")
GROUPED = re.compile(r"\s*[-+]?[0-9]{1,3}([., '][0-9]{3})+([.,][0-9]+)?\s*")
IN_THOUSANDS = re.compile(r"\s*[-+]?[1-9][0-9]{0,2}([.,][0-9]{3})+\s*")


def with_comma(value: Any) -> bool:
    """Whether a text is a number with a comma, of which nobody can know what the comma means."""
    return isinstance(value, str) and WITH_COMMA.fullmatch(value) is not None


def maybe_thousands(value: Any) -> bool:
    """Whether a text can be a whole number in groups of three digits, such as 1.034 or 1,034."""
    return isinstance(value, str) and IN_THOUSANDS.fullmatch(value) is not None


def has_marks(value: Any) -> bool:
    """Whether a text is a number with marks between groups of three digits, such as 1,034.50."""
    return isinstance(value, str) and GROUPED.fullmatch(value) is not None


def parse_number(value: Any, decimal: str = ".") -> float | None:
    """The number in a cell, or in its text; None if there is no finite number.

    Args:
        value: of the cell.
        decimal: what stands before the decimals of a text, a point or a comma.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and decimal == ",":
        # A point would group thousands there, or the number is written in the other way.
        value = None if "." in value else value.replace(",", ".")
    if isinstance(value, str) and not re.fullmatch(r"[-+0-9.eE ]+", value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

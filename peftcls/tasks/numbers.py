"""Numbers in cells, which a text file holds as texts."""

import math
import re
from typing import Any


def parse_number(value: Any) -> float | None:
    """The number in a cell, or in its text; None if there is no finite number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and not re.fullmatch(r"[-+0-9.eE ]+", value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

"""Several choices in one cell, as the short exports of Label Studio write them."""

from typing import Any

CHOICES = "choices"


def chosen(cell: Any) -> Any:
    """The labels in `{"choices": ["a", "b"]}`; anything else as it is."""
    if isinstance(cell, dict) and list(cell) == [CHOICES] and isinstance(cell[CHOICES], list):
        return cell[CHOICES]
    return cell

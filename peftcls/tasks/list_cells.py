"""Cells of a table that hold a list: as one, or as it is written in a text file."""

import ast
import contextlib
import json
from typing import Any


def listed_cell(cell: Any, separator: str) -> list[Any]:
    """The entries of a cell.

    Args:
        cell: a list; or a text: a list as JSON or Python write it, or entries with a separator
            between them.
        separator: such as ";".
    """
    if isinstance(cell, list):
        return cell
    text = str(cell).strip()
    if text.startswith("[") and text.endswith("]"):
        entries = _written_list(text)
        if entries is not None:
            return entries
    return text.split(separator)


def _written_list(text: str) -> list[Any] | None:
    """A list as JSON or Python write it; None where it is none, or has more than plain values."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            entries = read(text)
            is_plain = all(isinstance(entry, str | int | float | None) for entry in entries)
            if isinstance(entries, list) and is_plain:
                return entries
    return None

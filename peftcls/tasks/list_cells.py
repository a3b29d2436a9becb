"""Cells of a table that hold a list: as one, or as it is written in a text file."""

import ast
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftcls.data.choices import chosen_value

DEFAULT_SEPARATOR = ";"
"""Between several labels of a text, unless another separator is set."""
LIKELY_SEPARATORS = (",", "|", ";", "#")
BRACKETS = (("[", "]"), ("(", ")"), ("{", "}"))
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
WRITTEN_ARRAY = re.compile(rf"\[(?:{QUOTED.pattern})(?:\s+(?:{QUOTED.pattern}))+\]")
"""Several texts without commas between them, as `str` of a NumPy array has them."""
MIN_JOINED_SHARE = 0.1
"""Labels are lists only if so many rows have a separator in them."""


def listed_cell(cell: Any, separator: str) -> list[Any]:
    """The entries of a cell.

    Args:
        cell: a list; or a text: a list as JSON, Python, NumPy or Label Studio write it, or entries
            with a separator between them.
        separator: such as ";".
    """
    if isinstance(cell, list):
        return cell
    text = str(cell).strip()
    if (text[:1], text[-1:]) in BRACKETS:
        entries = _written_list(text)
        if entries is not None:
            return entries
    return text.split(separator)


def keywords_of(cell: Any, separator: str) -> tuple[str, ...]:
    """The entries of a cell, each once, without empty ones.

    A full stop after a written list closes the list: it is no part of the last entry, unless that
    has others, as "U.S." has.
    """
    entries = [str(entry).strip() for entry in listed_cell(cell, separator) if entry]
    entries = [entry for entry in entries if entry]
    if entries and not isinstance(cell, list):
        last = entries[-1].removesuffix(".").rstrip()
        if last and "." not in last:
            entries[-1] = last
    return tuple(dict.fromkeys(entries))


def in_reading_order(keywords: Sequence[str], text: str) -> list[str]:
    """Keywords in the order in which a text has them first; those that it lacks are last.

    A model that writes them so can follow the text (Meng et al. 2019, "Does Order Matter? An
    Empirical Study on Generating Multiple Keyphrases as a Sequence", section 2).
    """
    searched = text.casefold()

    def place(keyword: str) -> float:
        found = searched.find(keyword.casefold())
        return math.inf if found < 0 else found

    return sorted(keywords, key=place)


def joined(entries: Iterable[str], separator: str) -> str:
    """Entries as one text, in the form that `keywords_of` reads."""
    space = "" if separator[-1].isspace() else " "
    return f"{separator}{space}".join(entries)


def likely_separator(rows: Mapping[str, int]) -> str | None:
    """The mark that seems to stand between several labels where each text was read as one label.

    "a,b" beside "b,c" and "a" are lists. "Rome, Italy" beside "Paris, France" are not: what is
    between the commas does not occur again.

    Args:
        rows: how many rows have each label.

    Returns:
        None where the labels do not look like lists.
    """
    for mark in LIKELY_SEPARATORS:
        joined = [label for label in rows if mark in label]
        if not joined or sum(rows[label] for label in joined) < MIN_JOINED_SHARE * sum(
            rows.values()
        ):
            continue
        parts = [_parts(label, mark) for label in rows]
        in_labels = Counter(part for each in parts for part in each)
        in_lists = {part for label in joined for part in _parts(label, mark)}
        repeated = sum(in_labels[part] > 1 for part in in_lists)
        if repeated > len(in_lists) / 2:
            return mark
    return None


def _parts(label: str, mark: str) -> set[str]:
    return {part.strip() for part in label.split(mark)} - {""}


def _written_list(text: str) -> list[Any] | None:
    """A list as it is written; None where it is none, or has more than values."""
    if WRITTEN_ARRAY.fullmatch(text):
        # To Python, texts without commas between them are one text.
        return [ast.literal_eval(found[0]) for found in QUOTED.finditer(text)]
    for read in (json.loads, _written_in_python):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            entries = chosen_value(read(text))
            if isinstance(entries, list) and all(
                isinstance(entry, str | int | float | None) for entry in entries
            ):
                return entries
    return None


def _written_in_python(text: str) -> list[Any] | None:
    """The entries of a list, tuple or set, in the order in which they are written."""
    written = ast.parse(text, mode="eval").body
    if not isinstance(written, ast.List | ast.Tuple | ast.Set):
        return None
    return [ast.literal_eval(entry) for entry in written.elts]

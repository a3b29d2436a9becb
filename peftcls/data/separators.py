"""Find the separator of a csv file from its first lines."""

import csv
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from peftcls.data.records import next_record, records
from peftcls.data.text_files import open_text

SEPARATOR = ","
# Spreadsheets use them in csv files of languages that write numbers with a comma.
OTHER_SEPARATORS = (";", "\t")
# Spreadsheets may begin a file with a line that names the separator, such as "sep=;".
SEPARATOR_LINE = "sep="
FIRST_LINES = 50
# A comma that does not stand between digits.
NO_DECIMALS = re.compile(r"(?<!\d),|,(?!\d)")


class Separator(NamedTuple):
    """What separates the fields of a csv file.

    Args:
        mark: a comma, a semicolon or a tab.
        skipped_lines: how many lines at the beginning only name it.
        among_commas: the commas are those of texts.
    """

    mark: str
    skipped_lines: int = 0
    among_commas: bool = False


def find_separator(path: Path, encoding: str) -> Separator:
    """Find the separator of a csv file.

    It is a comma, unless the first line has none outside quotes, or the commas are those of texts:
    the first rows have different numbers of them, or have them before decimals alone, and all the
    same number of another separator.
    """
    with open_text(path, encoding) as lines:
        first_lines = [line.rstrip("\r\n") for line in itertools.islice(lines, FIRST_LINES)]
    first_line = next((line for line in first_lines if line), "")
    if len(first_line) == len(SEPARATOR_LINE) + 1 and first_line.startswith(SEPARATOR_LINE):
        return Separator(first_line[-1], skipped_lines=1)
    if _count_fields(first_line, SEPARATOR) > 1:
        other = _separator_of_all(first_lines)
        return Separator(other or SEPARATOR, among_commas=other is not None)
    candidates = (SEPARATOR, *OTHER_SEPARATORS)
    return Separator(max(candidates, key=lambda mark: _count_fields(first_line, mark)))


def _separator_of_all(lines: list[str]) -> str | None:
    """The other separator that all rows have equally often, where commas are not one.

    Rows do not agree in their number of commas, or have commas in numbers alone.
    """
    if len(_field_counts(lines, SEPARATOR)) == 1 and not _has_decimals_only(lines):
        return None
    for separator in OTHER_SEPARATORS:
        counts = _field_counts(lines, separator)
        if len(counts) == 1 and counts.pop() > 1:
            return separator
    return None


def _has_decimals_only(lines: list[str]) -> bool:
    """Whether every comma is one before decimals, as in "3,5"."""
    return not any(NO_DECIMALS.search(line) for line in lines)


def _field_counts(lines: list[str], separator: str) -> set[int]:
    """The different numbers of fields that the first rows have; none where they cannot be read."""
    # A field with line breaks in it is of one row.
    reader = csv.reader([line + "\n" for line in lines], delimiter=separator)
    try:
        counts = [len(fields) for fields in records(reader) if fields]
    except csv.Error:
        return set()
    # The last row may go on behind the first lines.
    is_cut_off = len(lines) == FIRST_LINES and len(counts) > 1
    return set(counts[:-1] if is_cut_off else counts)


def _count_fields(line: str, separator: str) -> int:
    """How many fields a line has; 0 for one that cannot be read alone."""
    try:
        fields = next_record(csv.reader([line], delimiter=separator))
    except csv.Error:
        # The line is read again as the header, where the error is reported.
        return 0
    return len(fields or [])

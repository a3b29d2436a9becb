"""Find the separator of a csv file from its first lines."""

import csv
import itertools
from pathlib import Path

from peftcls.data.records import next_record
from peftcls.data.text_files import open_text

SEPARATOR = ","
# Spreadsheets use them in csv files of languages that write numbers with a comma.
OTHER_SEPARATORS = (";", "\t")
# Spreadsheets may begin a file with a line that names the separator, such as "sep=;".
SEPARATOR_LINE = "sep="
FIRST_LINES = 50


def find_separator(path: Path, encoding: str) -> tuple[str, int]:
    """Find the separator of a csv file, and how many lines at its beginning only name it.

    It is a comma, unless the first line has none outside quotes, or the commas are those of texts:
    the first lines have different numbers of them, and all the same number of another separator.
    """
    with open_text(path, encoding) as lines:
        first_lines = [line.rstrip("\r\n") for line in itertools.islice(lines, FIRST_LINES)]
    first_line = first_lines[0] if first_lines else ""
    if len(first_line) == len(SEPARATOR_LINE) + 1 and first_line.startswith(SEPARATOR_LINE):
        return first_line[-1], 1
    if count_fields(first_line, SEPARATOR) > 1:
        return _separator_of_all(first_lines) or SEPARATOR, 0
    candidates = (SEPARATOR, *OTHER_SEPARATORS)
    return max(candidates, key=lambda separator: count_fields(first_line, separator)), 0


def _separator_of_all(lines: list[str]) -> str | None:
    """The other separator that all lines have equally often, where they do not agree in commas."""
    if len(_field_counts(lines, SEPARATOR)) == 1:
        return None
    for separator in OTHER_SEPARATORS:
        counts = _field_counts(lines, separator)
        if len(counts) == 1 and counts.pop() > 1:
            return separator
    return None


def _field_counts(lines: list[str], separator: str) -> set[int]:
    """The different numbers of fields that lines have, without empty lines."""
    return {count_fields(line, separator) for line in lines if line}


def count_fields(line: str, separator: str) -> int:
    """How many fields a line has; 0 for one that cannot be read alone."""
    try:
        fields = next_record(csv.reader([line], delimiter=separator))
    except csv.Error:
        # The line is read again as the header, where the error is reported.
        return 0
    return len(fields or [])

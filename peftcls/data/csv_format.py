"""Read csv and tsv files: one row per record, with errors that name the row and the line."""

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftcls.data.bad_lines import BadLine, BadLines, leave_out
from peftcls.data.missing_header import with_names
from peftcls.data.records import next_record, records
from peftcls.data.separators import find_separator
from peftcls.data.text_files import Row, open_text
from peftcls.errors import RowError

MAX_HEADER_CHARACTERS = 200
# What the csv module says if the file ends inside quotes.
UNCLOSED_QUOTE = "unexpected end of data"
QUOTE_HINT = 'Inside quotes, write " as "".'
BEGINNINGS_OF_JSON = ('{"', "[{", '["')


def read_csv(
    path: Path, encoding: str, columns: Sequence[str] | None, bad_lines: BadLines = None
) -> Iterator[Row]:
    """Read the rows of a csv file (RFC 4180)."""
    found = find_separator(path, encoding)
    if found.mark == "\t" and found.among_commas:
        return read_tsv(path, encoding, columns, bad_lines)
    dialect = {"delimiter": found.mark}
    skipped = found.skipped_lines
    return _read_table(path, encoding, columns, dialect, bad_lines, skipped_lines=skipped)


def read_tsv(
    path: Path, encoding: str, columns: Sequence[str] | None, bad_lines: BadLines = None
) -> Iterator[Row]:
    """Read the rows of a tsv file; quotes are characters like any other unless all are quoting."""
    has_quoting = _has_quoting(path, encoding)
    dialect = {
        "delimiter": "\t",
        "quoting": csv.QUOTE_MINIMAL if has_quoting else csv.QUOTE_NONE,
    }
    return _read_table(path, encoding, columns, dialect, bad_lines)


def _read_table(
    path: Path,
    encoding: str,
    columns: Sequence[str] | None,
    dialect: dict[str, Any],
    bad_lines: BadLines,
    *,
    skipped_lines: int = 0,
) -> Iterator[Row]:
    if columns is None:
        _refuse_json(path, encoding)
    with open_text(path, encoding) as lines:
        reader = csv.reader(lines, strict=True, **dialect)
        # How many lines come before the record that is read.
        lines_before = 0
        try:
            for _ in range(skipped_lines):
                next_record(reader)
            lines_before = reader.line_num
            header = with_names(columns or _first_filled(records(reader)))
            _check_header(header, path)
            lines_before = reader.line_num
            number = 0
            for fields in records(reader):
                lines_before = reader.line_num
                is_empty_line = not fields
                if is_empty_line:
                    continue
                number += 1
                if len(fields) == len(header):
                    yield dict(zip(header, fields, strict=True))
                    continue
                row = _row_of(fields, header, dialect["delimiter"])
                problem = _wrong_field_count(fields, header)
                leave_out(BadLine(path.name, number, reader.line_num, row, problem), bad_lines)
        except csv.Error as error:
            first_line = lines_before + 1
            if str(error) == UNCLOSED_QUOTE:
                quote_line = _line_of_open_quote(path, encoding, dialect, first_line)
                raise RowError(
                    f"{path.name}: the quoted field that starts in line {quote_line} is never "
                    f"closed. {QUOTE_HINT}"
                ) from None
            place = _lines(first_line, reader.line_num)
            raise RowError(
                f"{place} of {path.name} is not valid {path.suffix[1:]}: {error}. {QUOTE_HINT}"
            ) from None


def _first_filled(read: Iterator[list[str]]) -> list[str]:
    """The first record that is no empty line."""
    return next((fields for fields in read if fields), [])


def _refuse_json(path: Path, encoding: str) -> None:
    with open_text(path, encoding) as lines:
        first_line = next(iter(lines), "").lstrip()
    if first_line.startswith(BEGINNINGS_OF_JSON):
        raise RowError(
            f"{path.name} looks like JSON and not like {path.suffix[1:]}: give it a name that ends "
            "in .json, or in .jsonl for one row in a line."
        )


def _row_of(fields: list[str], header: list[str], separator: str) -> Row:
    """A record by the names of its columns; fields that are too many are the end of the last."""
    last = len(header) - 1
    if len(fields) > len(header):
        fields = [*fields[:last], separator.join(fields[last:])]
    return dict(zip(header, fields, strict=False))


def _wrong_field_count(fields: list[str], header: list[str]) -> str:
    names = ", ".join(header)[:MAX_HEADER_CHARACTERS]
    plural = "field" if len(fields) == 1 else "fields"
    return (
        f"has {len(fields)} {plural}, expected {len(header)} ({names}); "
        "put quotes around a text that holds a separator."
    )


def _lines(first: int, last: int) -> str:
    if last <= first:
        return f"line {last}"
    return f"the row in lines {first} to {last}"


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise RowError(f"{path.name} is empty: expected a line with the names of the columns.")
    for name in header:
        count = header.count(name)
        if count > 1:
            raise RowError(f"{path.name} has the column {name!r} {count} times; name each once.")


def _line_of_open_quote(path: Path, encoding: str, dialect: dict[str, Any], first_line: int) -> int:
    """Find the line in which the quoted field starts that goes on to the end of the file.

    Args:
        path: of the file.
        encoding: of the file.
        dialect: options of `csv.reader`.
        first_line: the line in which the last record starts.
    """
    with open_text(path, encoding) as lines:
        record = list(itertools.islice(lines, first_line - 1, None))
    if not record:
        return first_line
    # With a quote at the end, the last field holds all lines since the quote was opened.
    reader = csv.reader([*record[:-1], record[-1] + '"'], **dialect)
    fields = next_record(reader)
    if not fields:
        return first_line
    lines_of_field = io.StringIO(fields[-1], newline="").readlines()
    last_line = first_line + len(record) - 1
    return last_line - max(len(lines_of_field), 1) + 1


def _has_quoting(path: Path, encoding: str) -> bool:
    """Whether all quotes of a tsv file are quoting; otherwise they are text (as in SMS Spam)."""
    with open_text(path, encoding) as lines:
        record_lines: list[str] = []

        def remember_lines() -> Iterator[str]:
            for line in lines:
                record_lines.append(line)
                yield line

        reader = csv.reader(remember_lines(), delimiter="\t", strict=True)
        try:
            for fields in records(reader):
                record = "".join(record_lines).rstrip("\r\n")
                record_lines.clear()
                if not _is_record_of(fields, record):
                    return False
        except csv.Error:
            return False
    return True


def _is_record_of(fields: list[str], record: str) -> bool:
    """Whether a writer of quoted tsv files could have written these fields as this record."""
    rest = record
    for field in fields:
        quoted = '"' + field.replace('"', '""') + '"'
        if rest.startswith(quoted):
            rest = rest[len(quoted) :]
        elif rest.startswith(field) and '"' not in field:
            rest = rest[len(field) :]
        else:
            return False
        if rest and not rest.startswith("\t"):
            return False
        rest = rest[1:]
    return True

"""File formats: csv, tsv, json and jsonl files as rows, with errors that name the row and line."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peftcls.data.annotation_formats import plain_row, plain_rows, with_choices_as_lists
from peftcls.data.bad_lines import BadLine, BadLines, leave_out
from peftcls.data.csv_format import read_csv, read_tsv
from peftcls.data.frame_json import rows_of_frame
from peftcls.data.squad_format import json_type_name, read_squad
from peftcls.data.text_files import Row, open_text
from peftcls.errors import RowError

# A path, an encoding, names of columns for a file without a header line, and what takes bad lines.
Parser: TypeAlias = Callable[[Path, str, Sequence[str] | None, BadLines], Iterator[Row]]

FIRST_LINES_OF_JSON = ("[", "[{", "{")
"""Of a file whose objects are written over several lines."""
MAX_SHOWN_KEYS = 5


def read_jsonl(
    path: Path, encoding: str, columns: Sequence[str] | None, bad_lines: BadLines = None
) -> Iterator[Row]:
    """Read the rows of a file with one JSON object per line."""
    with open_text(path, encoding) as lines:
        number = 0
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            number += 1
            row, problem = _row_of_line(line)
            if problem is None:
                yield row
                continue
            text = {"line": line.rstrip()}
            leave_out(BadLine(path.name, number, line_number, text, problem), bad_lines)


def _row_of_line(line: str) -> tuple[Row, str | None]:
    """The row that a line holds, and what is wrong with it, or None."""
    try:
        row = json.loads(line.rstrip(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        problem = _json_problem(error)
        if isinstance(error, json.JSONDecodeError):
            problem = f"{problem} at character {error.colno}"
        if line.strip() in FIRST_LINES_OF_JSON:
            return {}, "begins a list of objects; give the file a name that ends in .json."
        return {}, f"is not JSON: {problem}; expected one object per line."
    if not isinstance(row, dict):
        return {}, f'is {json_type_name(row)}, expected an object such as {{"text": "..."}}.'
    try:
        return plain_row(row), None
    except ValueError as error:
        return {}, f"{error}."


def read_json(
    path: Path, encoding: str, columns: Sequence[str] | None, bad_lines: BadLines = None
) -> Iterator[Row]:
    """Read the rows of a JSON file: a list of objects, a table, an export, or the SQuAD format."""
    with open_text(path, encoding) as lines:
        text = "".join(lines)
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        problem = _json_problem(error)
        if isinstance(error, json.JSONDecodeError):
            problem = f"{problem} in line {error.lineno}"
        raise RowError(
            f"{path.name} is not JSON: {problem}; if it holds one object per line, name it .jsonl."
        ) from None
    if isinstance(content, dict):
        content = rows_of_frame(content) or content.get("data", content)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise RowError(
            f"{path.name} is {_described(content)}, expected a list of objects or the SQuAD form."
        )
    # What has questions of a paragraph, and no paragraphs, is said to be no SQuAD file.
    if content and ("paragraphs" in content[0] or isinstance(content[0].get("qas"), list)):
        return read_squad(content, path)
    return plain_rows(with_choices_as_lists(content), path)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """Build an object from its fields. Raises a ValueError if a name occurs twice."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = [name for name, _ in pairs]
    repeated = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"an object has {repeated!r} twice")


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).partition(";")[0]


def _described(content: Any) -> str:
    """What kind of JSON a file holds; an object with its keys, in one of which the rows may be."""
    name = json_type_name(content)
    if not isinstance(content, dict):
        return name
    return f"{name} with the keys {list(content)[:MAX_SHOWN_KEYS]}"


PARSERS: dict[str, Parser] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
}

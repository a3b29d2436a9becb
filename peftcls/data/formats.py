"""File formats: csv, tsv, json and jsonl files as rows, with errors that name the row and line."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peftcls.data.annotation_formats import plain_rows
from peftcls.data.csv_format import read_csv, read_tsv
from peftcls.data.squad_format import json_type_name, read_squad
from peftcls.data.text_files import Row, open_text
from peftcls.errors import RowError

# A path, an encoding, and names of columns for a file without a header line.
Parser: TypeAlias = Callable[[Path, str, Sequence[str] | None], Iterator[Row]]


def read_jsonl(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """Read the rows of a file with one JSON object per line."""
    return plain_rows(_objects_of_lines(path, encoding), path)


def _objects_of_lines(path: Path, encoding: str) -> Iterator[Row]:
    with open_text(path, encoding) as lines:
        number = 0
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            number += 1
            place = f"row {number} of {path.name} (line {line_number})"
            try:
                row = json.loads(line.rstrip(), object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                problem = _json_problem(error)
                if isinstance(error, json.JSONDecodeError):
                    problem = f"{problem} at character {error.colno}"
                raise RowError(
                    f"{place} is not JSON: {problem}; expected one object per line."
                ) from None
            if not isinstance(row, dict):
                raise RowError(
                    f"{place} is {json_type_name(row)}, "
                    'expected an object such as {"text": "..."}.'
                )
            yield row


def read_json(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """Read the rows of a JSON file: a list of objects, an export of a tool, or the SQuAD format."""
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
    if isinstance(content, dict) and "data" in content:
        content = content["data"]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise RowError(
            f"{path.name} is {json_type_name(content)}, "
            "expected a list of objects or the SQuAD form."
        )
    if content and "paragraphs" in content[0]:
        return read_squad(content, path)
    return plain_rows(content, path)


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


PARSERS: dict[str, Parser] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
}

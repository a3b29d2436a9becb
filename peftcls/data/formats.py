"""The text formats of a table: a file in, one mapping a row out, and the place of what is wrong."""

import codecs
import contextlib
import csv
import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peftcls.errors import RowError

Row: TypeAlias = dict[str, Any]
Parser: TypeAlias = Callable[[Path, str, Sequence[str] | None], Iterator[Row]]
WIDEST_FIELD_CHARACTERS = 16 * 1024 * 1024
OTHER_SEPARATORS = (
    ";",
    "\t",
)  # of files that are called csv, as spreadsheets write them where the comma is in numbers
SEPARATOR_LINE = "sep="  # with it spreadsheets begin a file to say what parts its fields
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@contextlib.contextmanager
def _open(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    """The lines of a text file; a byte that is not in `encoding` is a RowError with its line."""
    with path.open("rb") as opened:
        start = opened.read(4)
    if start in WORKBOOKS:
        raise RowError(
            f"{path.name} is a workbook or an archive, expected text; save the table as CSV in UTF-8."
        )
    if encoding == "utf-8-sig" and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RowError(f"{path.name} is in UTF-16, expected UTF-8; pass encoding='utf-16'.")
    try:
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        line = _line_of_bad_byte(path, encoding)
        raise RowError(
            f"line {line} of {path.name} has the byte 0x{error.object[error.start]:02x}, which is not "
            f"{encoding.removesuffix('-sig').upper()}; save the file as UTF-8 or pass its encoding, "
            "for example encoding='latin-1'."
        ) from None
    except LookupError:
        raise RowError(
            f"encoding={encoding!r} is not the name of an encoding; try 'utf-8', 'latin-1' or 'cp1252'."
        ) from None
    except UnicodeError as error:
        raise RowError(
            f"{path.name} is not {encoding.upper()}: {error}; pass its encoding."
        ) from None


def _line_of_bad_byte(path: Path, encoding: str) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def _table(
    path: Path, encoding: str, columns: Sequence[str] | None, skipped: int = 0, **dialect: Any
) -> Iterator[Row]:
    csv.field_size_limit(WIDEST_FIELD_CHARACTERS)
    with _open(path, encoding) as lines:
        reader, before = csv.reader(lines, strict=True, **dialect), 0
        try:
            for _ in range(skipped):
                next(reader, None)
            header = list(columns) if columns else next(reader, None)
            if not header:
                raise RowError(
                    f"{path.name} is empty: expected a line with the names of the columns."
                )
            if (
                len(nameless := [place for place, name in enumerate(header, 1) if not name.strip()])
                > 1
            ):  # one may be of row numbers
                raise RowError(
                    f"{path.name} has {len(nameless)} columns without a name, the first of them column {nameless[0]}; name "
                    "each, or leave out the separators at the ends of the lines."
                )
            if doubled := [name for name in header if header.count(name) > 1]:
                raise RowError(
                    f"{path.name} has the column {doubled[0]!r} {header.count(doubled[0])} times; name each once."
                )
            number, before = 0, reader.line_num
            for fields in reader:
                before = reader.line_num
                if not fields:  # an empty line
                    continue
                number += 1
                if len(fields) != len(header):
                    raise RowError(
                        f"row {number} of {path.name} (line {reader.line_num}) has {len(fields)} fields, expected "
                        f"{len(header)} ({', '.join(header)[:200]}); put quotes around a text that holds a separator."
                    )
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            where = (
                f"line {reader.line_num}"
                if reader.line_num <= before + 1
                else f"what begins in line {before + 1}"
            )
            raise RowError(
                f"{where} of {path.name} is not valid {path.suffix[1:]}: {error}; a quote inside a quoted text is written "
                "twice, and one ends it."
            ) from None


def _csv(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    separator, skipped = _separator(path, encoding)
    return _table(path, encoding, columns, skipped, delimiter=separator)


def _separator(path: Path, encoding: str) -> tuple[str, int]:
    """What parts the fields of a csv file, and how many lines say so: a comma, unless the first record has none outside quotes."""
    with _open(path, encoding) as lines:
        first = next(iter(lines), "").rstrip("\r\n")
    if len(first) == len(SEPARATOR_LINE) + 1 and first.startswith(SEPARATOR_LINE):
        return first[-1], 1
    fields = {
        separator: len(next(csv.reader([first], delimiter=separator), []))
        for separator in (",", *OTHER_SEPARATORS)
    }
    return "," if fields[","] > 1 else max(fields, key=lambda separator: fields[separator]), 0


def _tsv(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    quoting: Any = csv.QUOTE_MINIMAL if _is_quoted(path, encoding) else csv.QUOTE_NONE
    return _table(path, encoding, columns, delimiter="\t", quoting=quoting)


def _is_quoted(path: Path, encoding: str) -> bool:
    """Whether a writer of quoted tables could have written the file; otherwise its quotes are text (as in SMS Spam)."""
    with _open(path, encoding) as lines:
        record: list[str] = []

        def recorded() -> Iterator[str]:
            for line in lines:
                record.append(line)
                yield line

        reader = csv.reader(recorded(), delimiter="\t", strict=True)
        try:
            for fields in reader:
                raw = "".join(record).rstrip("\r\n")
                record.clear()
                for field in fields:
                    quoted = '"' + field.replace('"', '""') + '"'
                    written = quoted if raw.startswith(quoted) else field
                    if (
                        not raw.startswith(written)
                        or (written is field and '"' in field)
                        or raw[len(written) :][:1] not in ("", "\t")
                    ):
                        return False
                    raw = raw[len(written) + 1 :]
        except csv.Error:
            return False
    return True


def _jsonl(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    with _open(path, encoding) as lines:
        number = 0
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            number += 1
            try:
                row = json.loads(line.rstrip(), object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                fault = _json_fault(error, f"at character {getattr(error, 'colno', 0)}")
                raise RowError(
                    f"row {number} of {path.name} (line {line_number}) is not JSON: {fault}; "
                    "expected one object a line."
                ) from None
            if not isinstance(row, dict):
                raise RowError(
                    f"row {number} of {path.name} (line {line_number}) is {_spoken(row)}, expected an object "
                    'such as {"text": "..."}.'
                )
            yield row


def _json(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    with _open(path, encoding) as lines:
        text = "".join(lines)
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        fault = _json_fault(error, f"in line {getattr(error, 'lineno', 0)}")
        raise RowError(
            f"{path.name} is not JSON: {fault}; if it holds one object a line, name it .jsonl."
        ) from None
    found = found["data"] if isinstance(found, dict) and "data" in found else found
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise RowError(
            f"{path.name} is {_spoken(found)}, expected a list of objects or the SQuAD form."
        )
    return _squad(found, path) if found and "paragraphs" in found[0] else iter(found)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"an object has {next(name for name in names if names.count(name) > 1)!r} twice"
        )
    return found


def _json_fault(error: ValueError | RecursionError, place: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} {place}"
    return (
        "it is nested too deeply"
        if isinstance(error, RecursionError)
        else str(error).partition(";")[0]
    )


def _squad(articles: list[Row], path: Path) -> Iterator[Row]:
    """One row a question, over all articles and paragraphs; the columns are those of the Hub's `squad`, and the paragraph.

    Of a question that says neither what its answers are nor that it has none, the cell of the answers is empty.
    """
    place = ""
    try:
        for a, article in enumerate(articles, 1):
            place = f"article {a}"
            for p, paragraph in enumerate(_objects(article["paragraphs"], "paragraphs"), 1):
                place = f"article {a}, paragraph {p}"
                for q, question in enumerate(_optional(paragraph, "qas"), 1):
                    place = f"article {a}, paragraph {p}, question {q}"
                    answers = (
                        []
                        if question.get("answers", []) is None
                        else _optional(question, "answers")
                    )
                    if (impossible := question.get("is_impossible")) is not None and not isinstance(
                        impossible, bool
                    ):
                        raise ValueError(f"is_impossible is {impossible!r}, neither true nor false")
                    if impossible is bool(answers) and (
                        "answers" in question or impossible is False
                    ):
                        raise ValueError(
                            f"is_impossible is {str(impossible).lower()} and there are {len(answers)} answers"
                        )
                    texts = [_text(answer, "text") for answer in answers]
                    said = {
                        "text": texts,
                        "answer_start": [_start(answer["answer_start"]) for answer in answers],
                    }
                    if not all(text.strip() for text in texts):
                        raise ValueError(
                            f"the question {question['id']!r} has an answer without a text; where there is no answer, answers "
                            "is an empty list"
                        )
                    yield {
                        "id": str(question["id"]),
                        "title": article.get("title", ""),
                        "paragraph": p,
                        "context": _text(paragraph, "context"),
                        "question": _text(question, "question"),
                        "answers": said
                        if impossible or question.get("answers") is not None
                        else None,
                    }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        fault = {ValueError: str(error), KeyError: f"no {error}"}.get(
            type(error), f"{type(error).__name__}: {error}"
        )
        raise RowError(
            f"{place} of {path.name} is not in the SQuAD form ({fault}); expected paragraphs "
            "with a context and qas, and in each of these id, question and answers with text and answer_start."
        ) from None


def _optional(part: Row, name: str) -> list[Row]:
    """The list of that name; none is as good as an empty one, but one under another name would be lost in silence."""
    if name not in part and (
        other := [
            key
            for key, value in part.items()
            if isinstance(value, list) and key != "plausible_answers"
        ]
        or difflib.get_close_matches(name, part, 1)
    ):
        raise ValueError(f"no {name!r}, but {other[0]!r}")
    return _objects(part.get(name, []), name)


def _objects(found: Any, name: str) -> list[Row]:
    if not isinstance(found, list):
        raise ValueError(f"{name!r} is {_spoken(found)}, not a list")
    if wrong := [value for value in found if not isinstance(value, dict)]:
        raise ValueError(f"{name!r} has {_spoken(wrong[0])} in it, not an object")
    return found


def _text(part: Row, name: str) -> str:
    if not isinstance(part[name], str):
        raise ValueError(f"{name!r} is {_spoken(part[name])}, not a text")
    return str(part[name])


def _start(value: Any) -> int:
    whole = (
        isinstance(value, int)
        or (isinstance(value, float) and value.is_integer())
        or (isinstance(value, str) and value.isdecimal())
    )
    if isinstance(value, bool) or not whole:
        raise ValueError(f"the answer_start {value!r} is no number of characters")
    return int(value)


def _spoken(value: Any) -> str:
    return {
        list: "a list",
        dict: "an object",
        str: "a text",
        int: "a number",
        float: "a number",
    }.get(type(value), repr(value))


PARSERS: dict[str, Parser] = {".csv": _csv, ".tsv": _tsv, ".json": _json, ".jsonl": _jsonl}

"""Read a table of texts from a file or a hub, and say precisely what is wrong with it."""

import codecs
import contextlib
import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa

from peftcls.schema import KindError, feature_of, merge_kind, shape_value

Row: TypeAlias = dict[str, Any]
Parser: TypeAlias = Callable[[Path, str, Sequence[str] | None], Iterator[Row]]
READERS = {".csv", ".tsv", ".json", ".jsonl", ".parquet"}
WIDEST_FIELD_CHARACTERS = 16 * 1024 * 1024


class RowError(ValueError):
    """Something is wrong with a row, a column or a whole table; the message says what, where and what to do."""


def read_rows(source: str | Path, *, split: str | None = None, encoding: str | None = None,
              columns: Sequence[str] | None = None) -> datasets.Dataset:
    """Read a csv, tsv, json, jsonl or parquet file, or a data set on the hub, as a memory-mapped table.

    Values of csv and tsv files stay the strings they are: "0012" is not a number and "NA" is not a gap. A csv file
    follows RFC 4180; in a tsv file quotes are characters like any other unless every one of them is well-formed
    quoting. SQuAD-format json is flattened to one row a question. The file is read through once for errors before
    anything is kept.

    Args:
        source: a path, or the name of a data set on the hub.
        split: which split of a hub data set; required there when it has several.
        encoding: of a text file; UTF-8 (with or without a byte order mark) unless given.
        columns: names for the columns of a csv or tsv file that has no header line.

    Raises:
        RowError: the file is missing, empty, in another encoding, ragged, or holds a line that is not JSON.
    """
    path = Path(source)
    if path.suffix.lower() not in READERS or not path.is_file():
        return _read_hub(str(source), split, path)
    with _quiet():
        rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path, _with_mark(encoding), columns)
    return name_source(rows, path.name)


def as_dataset(rows: datasets.Dataset | Iterable[Mapping[str, Any]], name: str = "rows") -> datasets.Dataset:
    """The rows as a `datasets.Dataset`: itself where they are one, otherwise built from a list of mappings."""
    if isinstance(rows, datasets.Dataset):
        return rows
    listed = [] if isinstance(rows, str | Mapping) else list(rows)
    if not listed or not all(isinstance(row, Mapping) for row in listed):
        raise RowError(f"expected a datasets.Dataset or a list of mappings such as {{'text': '...'}}, found {str(rows)[:80]!r}.")
    names = list(dict.fromkeys(column for row in listed for column in row))
    try:
        return name_source(datasets.Dataset.from_dict({n: [row.get(n) for row in listed] for n in names}), name)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise RowError(f"{name} cannot be made a table: {error}; write each column in one kind of value.") from None


def name_source(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Remember where the rows come from, for the messages about them."""
    rows.info.description = name
    return rows


def source_name(rows: datasets.Dataset) -> str:
    """The file (or the given name) that the rows come from."""
    return rows.info.description or "rows"


def require_columns(rows: datasets.Dataset, columns: Iterable[str], reader: str) -> None:
    """Raise a RowError that names the first of `columns` that the rows do not have."""
    columns = list(columns)
    for column in columns:
        if column not in rows.column_names:
            raise RowError(f"row 1 of {source_name(rows)} has no column {column!r}; it has {rows.column_names}. "
                           f"{reader} needs {columns}.")


def _read_hub(name: str, split: str | None, path: Path) -> datasets.Dataset:
    if path.exists() or path.suffix.lower() in READERS or name.startswith((".", "/", "~")):
        found = "a folder" if path.is_dir() else "a file of another kind" if path.exists() else "nothing there"
        raise RowError(f"cannot read {name}: expected a file ending in {', '.join(sorted(READERS))}, found {found}.")
    try:
        found = datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        raise RowError(f"cannot read {name}: there is no such file here, and as a data set on the hub: {error}") from None
    if not isinstance(found, datasets.Dataset):
        raise RowError(f"{name} has the splits {sorted(found)}; choose one: read_rows({name!r}, split=...).")
    return name_source(found, name if split is None else f"{name} ({split})")


def _read_text(path: Path, encoding: str, columns: Sequence[str] | None) -> datasets.Dataset:
    parse: Parser = {".csv": _csv, ".tsv": _tsv, ".json": _json, ".jsonl": _jsonl}[path.suffix.lower()]
    kinds: dict[str, Any] = {}
    number = 0
    for number, row in enumerate(parse(path, encoding, columns), 1):
        for name, value in row.items():
            try:
                kinds[name] = merge_kind(kinds.get(name), value)
            except KindError as error:
                raise RowError(f"row {number} of {path.name} has in column {name!r} {error}; write the column in one way.") from None
    if not number or not kinds:
        raise RowError(f"{path.name} has no rows: expected at least one with a column.")
    # The key stands for content and reading, so that an edited file is never answered from the cache.
    key = hashlib.sha256(repr((path.suffix, encoding, columns, kinds)).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            key.update(block)

    def generate() -> Iterator[Row]:
        for row in parse(path, encoding, columns):
            yield {name: shape_value(row.get(name), kind) for name, kind in kinds.items()}

    features = datasets.Features({name: feature_of(kind) for name, kind in kinds.items()})
    return datasets.Dataset.from_generator(generate, features=features, fingerprint=key.hexdigest()[:32])


def _read_parquet(path: Path) -> datasets.Dataset:
    try:
        rows = datasets.Dataset.from_parquet(str(path))
    except (pa.ArrowException, datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise RowError(f"{path.name} is not a parquet file: {error.__cause__ or error}") from None
    if len(rows) == 0:
        raise RowError(f"{path.name} has no rows: expected at least one with a column.")
    return rows


def _with_mark(encoding: str | None) -> str:
    """The encoding, where UTF-8 also takes the byte order mark that spreadsheets write before it."""
    try:
        return "utf-8-sig" if encoding is None or codecs.lookup(encoding).name == "utf-8" else encoding
    except LookupError:
        raise RowError(f"encoding={encoding!r} is not the name of an encoding; try 'utf-8', 'latin-1' or 'cp1252'.") from None


@contextlib.contextmanager
def _open(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    """The lines of a text file; a byte that is not in `encoding` is a RowError with its line."""
    start = path.read_bytes()[:4]
    if encoding == "utf-8-sig" and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RowError(f"{path.name} is in UTF-16, expected UTF-8; pass encoding='utf-16'.")
    try:
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        line = _line_of_bad_byte(path, encoding)
        raise RowError(f"line {line} of {path.name} has the byte 0x{error.object[error.start]:02x}, which is not "
                       f"{encoding.removesuffix('-sig').upper()}; save the file as UTF-8 or pass its encoding, "
                       "for example encoding='latin-1'.") from None
    except UnicodeError as error:
        raise RowError(f"{path.name} is not {encoding.upper()}: {error}; pass its encoding.") from None


def _line_of_bad_byte(path: Path, encoding: str) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def _table(path: Path, encoding: str, columns: Sequence[str] | None, **dialect: Any) -> Iterator[Row]:
    csv.field_size_limit(WIDEST_FIELD_CHARACTERS)
    with _open(path, encoding) as lines:
        reader = csv.reader(lines, strict=True, **dialect)
        try:
            header = list(columns) if columns else next(reader, None)
            if not header:
                raise RowError(f"{path.name} is empty: expected a line with the names of the columns.")
            if doubled := [name for name in header if header.count(name) > 1]:
                raise RowError(f"{path.name} has the column {doubled[0]!r} {header.count(doubled[0])} times; name each once.")
            number = 0
            for fields in reader:
                if not fields:  # an empty line
                    continue
                number += 1
                if len(fields) != len(header):
                    raise RowError(f"row {number} of {path.name} (line {reader.line_num}) has {len(fields)} fields, expected "
                                   f"{len(header)} ({', '.join(header)[:200]}); put quotes around a text that holds a separator.")
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise RowError(f"line {reader.line_num} of {path.name} is not valid {path.suffix[1:]}: {error}; "
                           "a quote inside a quoted text is written twice.") from None


def _csv(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    return _table(path, encoding, columns)


def _tsv(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    quoting: Any = csv.QUOTE_MINIMAL if _is_quoted(path, encoding) else csv.QUOTE_NONE
    return _table(path, encoding, columns, delimiter="\t", quoting=quoting)


def _is_quoted(path: Path, encoding: str) -> bool:
    """Whether a writer of quoted tables could have written the file; otherwise its quotes are text (as in SMS Spam)."""
    with _open(path, encoding) as lines:
        record: list[str] = []
        reader = csv.reader((record.append(line) or line for line in lines), delimiter="\t", strict=True)  # type: ignore[func-returns-value]
        try:
            for fields in reader:
                raw = "".join(record).rstrip("\r\n")
                record.clear()
                for field in fields:
                    quoted = '"' + field.replace('"', '""') + '"'
                    written = quoted if raw.startswith(quoted) else field
                    if not raw.startswith(written) or (written is field and '"' in field) or raw[len(written):][:1] not in ("", "\t"):
                        return False
                    raw = raw[len(written) + 1:]
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
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RowError(f"row {number} of {path.name} (line {line_number}) is not JSON: {_json_fault(error)}; "
                               "expected one object a line.") from None
            if not isinstance(row, dict):
                raise RowError(f"row {number} of {path.name} (line {line_number}) is {_spoken(row)}, expected an object "
                               'such as {"text": "..."}.')
            yield row


def _json(path: Path, encoding: str, columns: Sequence[str] | None) -> Iterator[Row]:
    with _open(path, encoding) as lines:
        text = "".join(lines)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{path.name} is not JSON: {_json_fault(error)}; if it holds one object a line, name it .jsonl.") from None
    found = found["data"] if isinstance(found, dict) and "data" in found else found
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise RowError(f"{path.name} is {_spoken(found)}, expected a list of objects or the SQuAD form.")
    return _squad(found, path) if found and "paragraphs" in found[0] else iter(found)


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in line {error.lineno} at character {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _squad(articles: list[Row], path: Path) -> Iterator[Row]:
    """One row a question, over all articles and paragraphs; the columns are those of the Hub's `squad`."""
    place = ""
    try:
        for a, article in enumerate(articles, 1):
            place = f"article {a}"
            for p, paragraph in enumerate(article["paragraphs"], 1):
                place = f"article {a}, paragraph {p}"
                for q, question in enumerate(paragraph.get("qas", []), 1):
                    place = f"article {a}, paragraph {p}, question {q}"
                    answers = question.get("answers") or []
                    yield {"id": str(question["id"]), "title": article.get("title", ""), "context": paragraph["context"],
                           "question": question["question"],
                           "answers": {"text": [answer["text"] for answer in answers],
                                       "answer_start": [int(answer["answer_start"]) for answer in answers]}}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RowError(f"{place} of {path.name} is not in the SQuAD form ({type(error).__name__}: {error}); expected paragraphs "
                       "with a context and qas, and in each of these id, question and answers with text and answer_start.") from None


def _spoken(value: Any) -> str:
    return {list: "a list", dict: "an object", str: "a text", int: "a number", float: "a number"}.get(type(value), repr(value))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for a file that is read in a moment."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

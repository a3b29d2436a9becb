"""Read a table of texts from a file or a hub, and say precisely what is wrong with it."""

import codecs
import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from peftcls.argument_checks import check_argument_types
from peftcls.data.column_types import KindError, feature_of, merge_kind, shape_value
from peftcls.data.formats import PARSERS, Row
from peftcls.errors import RowError

READERS = {*PARSERS, ".parquet"}


def read_rows(
    source: str | Path,
    *,
    split: str | None = None,
    encoding: str | None = None,
    columns: Sequence[str] | None = None,
) -> datasets.Dataset:
    """Read a csv, tsv, json, jsonl or parquet file, or a data set on the hub, as a memory-mapped table.

    Values of csv and tsv files stay the strings they are: "0012" is not a number and "NA" is not a gap. A csv file
    follows RFC 4180; where its first line has no comma, semicolons or tabs part its fields. In a tsv file quotes are
    characters like any other unless every one of them is well-formed quoting. SQuAD-format json is flattened to one row
    a question. The file is read through once for errors before anything is kept.

    Args:
        source: a path, or the name of a data set on the hub.
        split: which split of a hub data set; required there when it has several.
        encoding: of a text file; UTF-8 (with or without a byte order mark) unless given.
        columns: names for the columns of a csv or tsv file that has no header line.

    Raises:
        RowError: the file is missing, empty, in another encoding, ragged, or holds a line that is not JSON.
    """
    check_argument_types(
        {"source": source, "split": split, "encoding": encoding, "columns": columns}, read_rows
    )
    if columns is not None and (not columns or not all(isinstance(name, str) for name in columns)):
        raise ValueError(f"columns={columns!r}: expected the names of the columns, each a text.")
    path = Path(source)
    if path.suffix.lower() not in READERS or not path.is_file():
        return _read_hub(str(source), split, path)
    with without_progress_bars():
        rows = (
            _read_parquet(path)
            if path.suffix.lower() == ".parquet"
            else _read_text(path, _with_mark(encoding), columns)
        )
    return name_source(rows, path.name)


def as_dataset(
    rows: datasets.Dataset | Iterable[Mapping[str, Any]], name: str = "rows"
) -> datasets.Dataset:
    """The rows as a `datasets.Dataset`: itself where they are one, otherwise built from a list of mappings."""
    if isinstance(rows, datasets.Dataset):
        return rows
    listed = (
        list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str | Mapping) else []
    )
    if not listed or not all(isinstance(row, Mapping) for row in listed):
        raise RowError(
            f"expected a datasets.Dataset or a list of mappings such as {{'text': '...'}}, found {str(rows)[:80]!r}."
        )
    names = list(dict.fromkeys(column for row in listed for column in row))
    try:
        return name_source(
            datasets.Dataset.from_dict({n: [row.get(n) for row in listed] for n in names}), name
        )
    except (
        pa.ArrowException,
        UnicodeError,
        OverflowError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise RowError(
            f"{name} cannot be made a table: {error}; write each column in one kind of value."
        ) from None


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
            raise RowError(
                f"row 1 of {source_name(rows)} has no column {column!r}; it has {rows.column_names}. "
                f"{reader} needs {columns}."
            )


def _read_hub(name: str, split: str | None, path: Path) -> datasets.Dataset:
    if name == "-":
        raise RowError(
            f"cannot read -: rows are not read from a pipe; expected a file ending in {', '.join(sorted(READERS))}."
        )
    if path.exists() or path.suffix.lower() in READERS or name.startswith((".", "/", "~")):
        if not path.exists() and path.suffix.lower() in READERS:
            raise RowError(
                f"there is no file {name}; check the path, which starts from {Path.cwd()} where it is not absolute."
            )
        found = (
            "a folder"
            if path.is_dir()
            else "a file of another kind"
            if path.exists()
            else "nothing there"
        )
        raise RowError(
            f"cannot read {name}: expected a file ending in {', '.join(sorted(READERS))}, found {found}."
        )
    try:
        found = datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        raise RowError(
            f"cannot read {name}: there is no such file here, and as a data set on the hub: {error}"
        ) from None
    if not isinstance(found, datasets.Dataset):
        raise RowError(
            f"{name} has the splits {sorted(found)}; choose one: read_rows({name!r}, split=...)."
        )
    return name_source(found, name if split is None else f"{name} ({split})")


def _read_text(path: Path, encoding: str, columns: Sequence[str] | None) -> datasets.Dataset:
    parse = PARSERS[path.suffix.lower()]
    kinds: dict[str, Any] = {}
    first: dict[str, int] = {}
    for number, row in enumerate(parse(path, encoding, columns), 1):
        for name, value in row.items():
            try:
                merge_kind("text", name)  # a name is a text that can be written
                if "\0" in name or "\ufeff" in name:
                    raise RowError(
                        f"{path.name} has a column name with a NUL character or a byte order mark in it: {name!r}; it is not a "
                        "table of text in the encoding that was read."
                    )
                kinds[name] = merge_kind(kinds.get(name), value)
            except KindError as error:
                before = (
                    f", where row {first.get(name, number)} has {error.seen}" if error.seen else ""
                )
                raise RowError(
                    f"row {number} of {path.name} has {error.found} in column {name!r}{before}; "
                    "write the column in one way."
                ) from None
            if value is not None:
                first.setdefault(name, number)
    if not kinds:
        below = "below the header" if path.suffix.lower() in {".csv", ".tsv"} else "with a column"
        raise RowError(f"{path.name} has no rows: expected at least one {below}.")
    # The key stands for content and reading, so that an edited file is never answered from the cache.
    key = hashlib.sha256(repr((path.suffix, encoding, columns, kinds)).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            key.update(block)

    def generate() -> Iterator[Row]:
        for row in parse(path, encoding, columns):
            yield {name: shape_value(row.get(name), kind) for name, kind in kinds.items()}

    features = datasets.Features({name: feature_of(kind) for name, kind in kinds.items()})
    return datasets.Dataset.from_generator(
        generate, features=features, fingerprint=key.hexdigest()[:32]
    )


def _read_parquet(path: Path) -> datasets.Dataset:
    try:
        with pq.ParquetFile(path) as file:
            names, count = file.schema_arrow.names, file.metadata.num_rows
        if not names or not count:
            raise RowError(f"{path.name} has no rows: expected at least one with a column.")
        if doubled := [name for name in names if names.count(name) > 1]:
            raise RowError(
                f"{path.name} has the column {doubled[0]!r} {names.count(doubled[0])} times; name each once."
            )
        return datasets.Dataset.from_parquet(str(path))
    except RowError:
        raise
    except (
        pa.ArrowException,
        datasets.exceptions.DatasetGenerationError,
        ValueError,
        TypeError,
        OSError,
    ) as error:
        told = str(error.__cause__ or error).strip().partition("\n")[0]
        raise RowError(
            f"{path.name} is not a parquet file that can be read: {told.rstrip('.')}; write it again, or give it "
            "the ending of what it holds."
        ) from None


def _with_mark(encoding: str | None) -> str:
    """The encoding, where UTF-8 also takes the byte order mark that spreadsheets write before it."""
    try:
        return (
            "utf-8-sig" if encoding is None or codecs.lookup(encoding).name == "utf-8" else encoding
        )
    except LookupError:
        raise RowError(
            f"encoding={encoding!r} is not the name of an encoding; try 'utf-8', 'latin-1' or 'cp1252'."
        ) from None


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """No progress bar for a file that is read in a moment."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

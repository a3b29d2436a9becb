"""Load data: read a table from a file or the hub, with errors that name the row and column."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.fingerprint import generate_random_fingerprint

from peftcls.argument_checks import check_argument_types
from peftcls.data.annotation_formats import holds_conversations, plain_rows
from peftcls.data.bad_lines import BadLines
from peftcls.data.column_types import (
    ColumnType,
    ColumnTypeError,
    check_text,
    convert_value,
    datasets_feature,
    merge_type,
)
from peftcls.data.compression import COMPRESSED, table_suffix
from peftcls.data.encodings import find_encoding
from peftcls.data.file_sets import (
    find_files,
    is_saved_dataset,
    join_tables,
    load_saved,
    name_of_files,
)
from peftcls.data.formats import PARSERS
from peftcls.data.missing_header import warn_of_names
from peftcls.data.row_batches import each_row
from peftcls.data.scratch import check_cache, writing_copies
from peftcls.data.stand_ins import stand_in
from peftcls.data.tables import (
    CONVERSION_ERRORS,
    Rows,
    not_a_table,
    split_of,
    table_of,
    with_class_names,
    without_progress_bars,
)
from peftcls.data.text_files import Row, utf_8_with_mark
from peftcls.data.xlsx_format import read_xlsx
from peftcls.errors import RowError, SeveralSplitsError

logger = logging.getLogger("peftcls")

SUFFIXES = (*PARSERS, ".parquet", ".xlsx")
NOT_TEXT = (".parquet", ".xlsx")
HAVE_HEADER = (".csv", ".tsv", ".xlsx")
MAX_SHOWN_CHARACTERS = 80


def read_rows(
    source: str | Path | Rows,
    *,
    split: str | None = None,
    encoding: str | None = None,
    columns: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """Read a csv, tsv, json, jsonl, parquet or xlsx file, or a data set on the hub, as a table.

    The table is memory-mapped. Values of csv and tsv files stay the strings they are: "0012" is not
    a number and "NA" is not a missing value. A csv file follows RFC 4180; if its first line has no
    comma, the separator is a semicolon or a tab. In a tsv file quotes are characters like any other
    unless every one of them is well-formed quoting. SQuAD-format json is flattened to one row per
    question. The file is read through once for errors before anything is kept. A text file may be
    compressed (rows.csv.gz, or the only file of rows.zip).

    Args:
        source: a path, or the name of a data set on the hub. Of a folder, or a pattern such as
            "rows/*.csv", all files are read, in the order of their names; they must have the same
            columns. A folder may also be one that `save_to_disk` of `datasets` has written. What is
            a table already, such as a DataFrame, a list of mappings or a `DatasetDict`, is taken as
            it is.
        split: which split of a hub data set, a saved one or a `DatasetDict`, or which sheet of a
            workbook; required where there are several.
        encoding: of a text file. Unless given, UTF-8; where a file has another byte order mark, or
            is Chinese text in GBK, that, with a message.
        columns: names for the columns of a csv, tsv or xlsx file without a header line.
        cache_dir: a folder for the copy of a file that is memory-mapped; the cache of `datasets`
            unless given, where the copy stays.

    Raises:
        ValueError: the copy cannot be written into that folder.
        RowError: the file is missing, empty, in another encoding, ragged, or has a line that is not
            JSON.
    """
    if not isinstance(source, str | Path):
        return _given_table(source, split)
    check_argument_types(
        {
            "source": source,
            "split": split,
            "encoding": encoding,
            "columns": columns,
            "cache_dir": cache_dir,
        },
        read_rows,
    )
    if columns is not None and (not columns or not all(isinstance(name, str) for name in columns)):
        raise ValueError(f"columns={columns!r}: expected the names of the columns, each a text.")
    return read_good_rows(
        source, None, split=split, encoding=encoding, columns=columns, cache_dir=cache_dir
    )


def _given_table(source: Rows, split: str | None) -> datasets.Dataset:
    """A table that is no file. Raises a ValueError for what cannot be one."""
    if source is None or isinstance(source, int | float | bytes):
        raise ValueError(f"source={source!r}: expected a text or a path.")
    if split is None:
        return as_dataset(source, "source")
    rows = split_of(source, split)
    if rows is source:
        has_splits = isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict)
        splits = list(source) if has_splits else "no splits"
        raise RowError(f"split={split!r}: this table has {splits}.")
    return as_dataset(rows, split)


def read_good_rows(
    source: str | Path,
    bad_lines: BadLines,
    *,
    split: str | None = None,
    encoding: str | None = None,
    columns: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """Read a table as `read_rows` does, without the lines of a text file that are no rows of it.

    Args:
        source: as of `read_rows`, like all arguments below.
        bad_lines: takes the lines that are left out: with too many or too few fields, or no JSON.
        split: of a data set, or a sheet.
        encoding: of a text file.
        columns: names for the columns.
        cache_dir: for the copy of a file.

    Raises:
        ValueError: as `read_rows`.
        RowError: as `read_rows`, or no line is left.
    """
    path = Path(source)
    if (path / "peftcls.json").is_file():
        raise RowError(
            f"{source} is an adapter folder, expected a file of rows; `peftcls show {source}` says "
            "what is in it."
        )
    if is_saved_dataset(path):
        with without_progress_bars():
            return name_source(with_class_names(load_saved(path, split)), path.name)
    files = find_files(str(source), SUFFIXES)
    if files:
        tables = []
        for file in files:
            bad_lines_of_file: BadLines = None if bad_lines is None else []
            tables.append(
                read_good_rows(
                    file,
                    bad_lines_of_file,
                    encoding=encoding,
                    columns=columns,
                    cache_dir=cache_dir,
                )
            )
            if bad_lines is not None:
                bad_lines += bad_lines_of_file or []
        name = name_of_files(str(source), files, tables)
        return name_source(join_tables(files, tables), name)
    suffix = table_suffix(path)
    if not _is_table(path):
        return _read_from_hub(str(source), split)
    instead = stand_in(path)
    if instead is not None:
        raise RowError(f"{path.name} {instead}.")
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    check_cache(cache)
    with without_progress_bars(), writing_copies(cache):
        if suffix in NOT_TEXT and path.suffix.lower() in COMPRESSED:
            raise RowError(f"{path.name} holds a {suffix} file; unpack it first.")
        if suffix == ".parquet":
            rows = _read_parquet(path, cache)
        elif suffix == ".xlsx":
            parse_sheet = _workbook_parser(split, columns)
            rows = _read_parsed(path, ("xlsx", split, columns), parse_sheet, cache)
        else:
            rows = _read_text(path, suffix, encoding, columns, cache, bad_lines)
    if suffix in HAVE_HEADER:
        warn_of_names(rows, path.name, columns)
    return name_source(rows, path.name)


def as_dataset(rows: Any, name: str = "rows") -> datasets.Dataset:
    """Rows as a `datasets.Dataset`.

    Args:
        rows: a `Dataset`, a `DatasetDict` with one split, an `IterableDataset`, a pandas or polars
            DataFrame, an Arrow table, a mapping of columns to lists of values, or mappings, one a
            row.
        name: what messages call the rows.

    Raises:
        RowError: they are not rows, or a column has values of several types.
    """
    if isinstance(rows, datasets.Dataset):
        return with_class_names(rows)
    table = table_of(rows, name)
    if table is None:
        table = _from_mappings(rows, name)
    if len(table) == 0:
        raise RowError(f"{name} has no rows.")
    return name_source(table, name)


def _described(rows: Any) -> str:
    """What was given instead of rows, and what makes rows of it."""
    if hasattr(rows, "collect"):
        return f"a {type(rows).__name__}: call its collect() first"
    if hasattr(rows, "to_frame"):
        return f"a {type(rows).__name__}, one column alone: give the table that it is from"
    shown = repr(rows)[:MAX_SHOWN_CHARACTERS]
    if isinstance(rows, str | Path):
        return f"{shown}; read a file with read_rows"
    return shown


def _from_mappings(rows: Any, name: str) -> datasets.Dataset:
    row_list: list[Any] = []
    if isinstance(rows, Iterable) and not isinstance(rows, str | Mapping):
        row_list = list(rows)
    if isinstance(rows, list | tuple) and not rows:
        raise RowError(f"{name} has no rows.")
    if not row_list or not all(isinstance(row, Mapping) for row in row_list):
        raise RowError(
            f"{name}: expected a table (a DataFrame, a datasets.Dataset, a dict of columns) or a "
            f"list of mappings such as {{'text': '...'}}, found {_described(rows)}."
        )
    # A dict keeps the order of the columns.
    columns: dict[Any, list[Any]] = {}
    for row in row_list:
        for column in row:
            columns.setdefault(column, [])
    for column, values in columns.items():
        values.extend(row.get(column) for row in row_list)
    try:
        cells = itertools.chain(columns, *columns.values())
        if all(isinstance(cell, str) for cell in cells):
            # `from_dict` hashes what it holds, which can take as long as the model does.
            return datasets.Dataset(pa.table(columns), fingerprint=generate_random_fingerprint())
        return datasets.Dataset.from_dict(columns)
    except CONVERSION_ERRORS as error:
        raise not_a_table(name, error, columns) from None


def name_source(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Store what messages call the rows, and return the rows."""
    rows.info.description = name
    return rows


def source_name(rows: datasets.Dataset) -> str:
    """Return what messages call the rows: their file, or the name from `name_source`."""
    return str(rows.info.description or "rows")


def _read_from_hub(name: str, split: str | None) -> datasets.Dataset:
    check_source(name)
    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        raise RowError(
            f"cannot read {name}: there is no file of this name here, and reading it from the hub "
            f"failed: {error}"
        ) from None
    if not isinstance(rows, datasets.Dataset):
        raise SeveralSplitsError(
            f"{name} has the splits {sorted(rows)}; choose one, such as "
            f"split={next(iter(rows))!r}.",
            tuple(rows),
        )
    rows = _without_conversations(with_class_names(rows), name)
    if split is None:
        return name_source(rows, name)
    return name_source(rows, f"{name} ({split})")


def _without_conversations(table: datasets.Dataset, name: str) -> datasets.Dataset:
    """A table with plain columns, as of a json file, where it holds chats."""
    if not len(table) or not holds_conversations(table[0]):
        return table
    return _from_mappings(list(plain_rows(each_row(table), Path(name))), name)


def _is_table(path: Path) -> bool:
    """Whether there is a file of a kind that is read."""
    return table_suffix(path) in SUFFIXES and path.is_file()


def check_source(name: str) -> None:
    """Raise a RowError for what is no file, folder of files, or name of a data set on the hub."""
    path = Path(name)
    if _is_table(path) or is_saved_dataset(path) or find_files(name, SUFFIXES):
        return
    suffixes = ", ".join(sorted(SUFFIXES))
    if name == "-":
        raise RowError(
            f"cannot read -: rows are not read from a pipe; expected a file ending in {suffixes}."
        )
    exists = path.exists()
    has_known_suffix = path.suffix.lower() in SUFFIXES
    if has_known_suffix and not exists:
        raise RowError(
            f"there is no file {name}; check the path. A relative path starts from {Path.cwd()}."
        )
    if not exists and not name.startswith((".", "/", "~")):
        return
    if path.is_dir():
        found = "a folder"
    elif exists:
        found = "a file of another kind"
    else:
        found = "nothing there"
    raise RowError(f"cannot read {name}: expected a file ending in {suffixes}, found {found}.")


def _read_text(
    path: Path,
    suffix: str,
    encoding: str | None,
    columns: Sequence[str] | None,
    cache: Path,
    bad_lines: BadLines,
) -> datasets.Dataset:
    found = find_encoding(path) if encoding is None else utf_8_with_mark(encoding)

    def parse(file: Path) -> Iterator[Row]:
        if bad_lines is not None:
            # A file is read twice, and each of its bad lines noted once.
            bad_lines.clear()
        row = None
        for row in PARSERS[suffix](file, found, columns, bad_lines):
            yield row
        if row is None and bad_lines:
            raise RowError(f"every row of {file.name} has an error; {bad_lines[0]}")

    return _read_parsed(path, (suffix, found, columns), parse, cache)


def _workbook_parser(
    sheet: str | None, columns: Sequence[str] | None
) -> Callable[[Path], Iterator[Row]]:
    return lambda path: read_xlsx(path, sheet, columns)


def _read_parsed(
    path: Path,
    settings: tuple[Any, ...],
    parse: Callable[[Path], Iterator[Row]],
    cache: Path,
) -> datasets.Dataset:
    """Read a file twice: for the types of its columns and its errors, then for its rows.

    Args:
        path: of the file.
        settings: all that decides how it is read.
        parse: yields its rows.
        cache: the folder for the copy that is memory-mapped.
    """
    column_types = _find_column_types(path, parse(path))
    features = datasets.Features(
        {name: datasets_feature(column_type) for name, column_type in column_types.items()}
    )

    def convert_rows() -> Iterator[Row]:
        for row in parse(path):
            yield {
                name: convert_value(row.get(name), column_type)
                for name, column_type in column_types.items()
            }

    # `datasets` caches the table under this key. It depends on the content and on how it was read,
    # so an edited file is read again.
    key = hashlib.sha256(repr((*settings, column_types, _sum_of_file(path))).encode())
    return datasets.Dataset.from_generator(
        convert_rows,
        features=features,
        fingerprint=key.hexdigest()[:32],
        cache_dir=str(cache),
    )


def _sum_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _find_column_types(path: Path, rows: Iterator[Row]) -> dict[str, ColumnType]:
    """Find the type of each column from all rows.

    Raises:
        RowError: a column has values of two types, or there are no rows.
    """
    column_types: dict[str, ColumnType] = {}
    first_row_with_value: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            try:
                _check_column_name(name, path)
                column_types[name] = merge_type(column_types.get(name), value)
            except ColumnTypeError as error:
                conflict = ""
                if error.seen_type:
                    first_row = first_row_with_value.get(name, number)
                    conflict = f", where row {first_row} has {error.seen_type}"
                raise RowError(
                    f"row {number} of {path.name} has {error.value_type} in column {name!r}"
                    f"{conflict}; use one type of value in a column."
                ) from None
            if value is not None:
                first_row_with_value.setdefault(name, number)
    if not column_types:
        has_header = table_suffix(path) in HAVE_HEADER
        expected = "one below the header" if has_header else "one with a column"
        raise RowError(f"{path.name} has no rows: expected at least {expected}.")
    return column_types


def _check_column_name(name: str, path: Path) -> None:
    check_text(name)
    if "\0" in name or "\ufeff" in name:
        raise RowError(
            f"{path.name} has a column name with a NUL character or a byte order mark in it: "
            f"{name!r}; the file is not a table of text in this encoding."
        )


def _read_parquet(path: Path, cache: Path) -> datasets.Dataset:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            row_count = file.metadata.num_rows
        if not names or not row_count:
            raise RowError(f"{path.name} has no rows: expected at least one with a column.")
        for name in names:
            count = names.count(name)
            if count > 1:
                raise RowError(
                    f"{path.name} has the column {name!r} {count} times; name each once."
                )
        # `datasets` knows a parquet file by its path and its time; the folder, by its content.
        folder = cache / f"parquet-{_sum_of_file(path)}"
        table = with_class_names(datasets.Dataset.from_parquet(str(path), cache_dir=str(folder)))
        return _without_conversations(table, path.name)
    except RowError:
        raise
    except (
        pa.ArrowException,
        datasets.exceptions.DatasetGenerationError,
        ValueError,
        TypeError,
        OSError,
    ) as error:
        cause = error.__cause__ or error
        first_line = str(cause).strip().partition("\n")[0]
        raise RowError(
            f"{path.name} is not a parquet file that can be read: {first_line.rstrip('.')}; "
            "write it again, or give it the file extension of its real format."
        ) from None

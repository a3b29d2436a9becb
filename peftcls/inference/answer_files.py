"""Write rows and their answers to one file: csv, tsv, jsonl or parquet."""

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from peftcls.data.reading import Row
from peftcls.models.adapter_folder import READABLE

OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet", ".tsv")
# How many rows are in memory at a time.
CHUNK_ROWS = 256
Columns = dict[str, pa.DataType]


def check_output(out: Path, source: Path) -> None:
    """Raise ValueError where the output cannot be written, or would replace the rows."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ValueError(
            f"cannot write {out}: expected a file ending in {', '.join(OUTPUT_SUFFIXES)}."
        )
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write {out}: expected a file in a folder that exists.")
    check_writable(out)
    if out.absolute() == source.absolute():
        raise ValueError(
            f"{out} would replace the rows that are answered; give another file for the answers."
        )


def check_writable(out: Path) -> None:
    """Raise ValueError where nothing can be written beside a path."""
    folder = out.absolute().parent
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"cannot write {out}: the folder {folder} cannot be written to; choose another."
        )


def write_output(
    out: Path,
    rows: datasets.Dataset,
    columns: Columns,
    answers: Iterator[list[Any]],
    separator: str,
) -> None:
    """Write rows with their answers; the file is there as a whole, or not at all.

    Args:
        out: its ending says the form.
        rows: whose columns come first.
        columns: the names and types of the answers' columns.
        answers: the values of each row, in the rows' order.
        separator: of a list of labels or keywords, in csv and tsv.
    """
    suffix = out.suffix.lower()
    with written_whole(out) as temporary:
        if suffix == ".parquet":
            _write_parquet(temporary, rows, columns, answers)
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".jsonl":
                _write_jsonl(file, rows, columns, answers)
            else:
                delimiter = "\t" if suffix == ".tsv" else ","
                _write_csv(file, rows, columns, answers, delimiter, separator)


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary file in the output's folder, which gets the output's name at the end."""
    with tempfile.NamedTemporaryFile(
        dir=out.absolute().parent, prefix=".saving-", delete=False
    ) as created:
        temporary = Path(created.name)
    try:
        yield temporary
        temporary.chmod(READABLE)
        os.replace(temporary, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _chunks(rows: datasets.Dataset) -> Iterator[datasets.Dataset]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows.select(range(start, min(start + CHUNK_ROWS, len(rows))))


def _write_parquet(
    path: Path, rows: datasets.Dataset, columns: Columns, answers: Iterator[list[Any]]
) -> None:
    arrow_rows = rows.with_format("arrow")
    schema = arrow_rows[:1].schema.remove_metadata()
    for name, dtype in columns.items():
        schema = schema.append(pa.field(name, dtype))
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(arrow_rows):
            chunk_answers = [next(answers) for _ in range(len(chunk))]
            new_columns = []
            for place, dtype in enumerate(columns.values()):
                new_columns.append(pa.array([values[place] for values in chunk_answers], dtype))
            table = pa.table([*chunk[:].columns, *new_columns], schema=schema)
            writer.write_table(table)


def _write_jsonl(
    file: IO[str], rows: datasets.Dataset, columns: Columns, answers: Iterator[list[Any]]
) -> None:
    for chunk in _chunks(rows):
        for row in chunk:
            answered: Row = {**row, **dict(zip(columns, next(answers), strict=True))}
            file.write(json.dumps(answered, ensure_ascii=False, default=str) + "\n")


def _write_csv(
    file: IO[str],
    rows: datasets.Dataset,
    columns: Columns,
    answers: Iterator[list[Any]],
    delimiter: str,
    separator: str,
) -> None:
    """Write csv or tsv: a list of labels or keywords is one text; other lists are JSON."""
    table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    table.writerow([*rows.column_names, *columns])
    for chunk in _chunks(rows):
        for row in chunk:
            cells = [cell_text(value) for value in row.values()]
            values = [_joined(value, separator) for value in next(answers)]
            table.writerow([*cells, *values])


def cell_text(value: Any) -> Any:
    """A value as a cell of a csv file: a list or an object as JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _joined(value: Any, separator: str) -> Any:
    if isinstance(value, list):
        return f"{separator} ".join(value)
    return value

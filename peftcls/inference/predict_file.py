"""Predict a file: answer all rows of a file and write rows and answers to another one, in chunks.

A table of any length takes the same memory, and an interrupted run can be continued.
"""

import contextlib
import csv
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from peftcls.data.reading import Row, read_rows, require_columns, source_name
from peftcls.data.row_numbers import select_rows
from peftcls.inference.part_lock import locked_for_appending
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import READABLE
from peftcls.models.adapter_manifest import read_manifest
from peftcls.tasks.base import Answer, Task

logger = logging.getLogger("peftcls")

# How many rows an interruption can cost; enough for rows of similar length to share a batch.
CHUNK_ROWS = 256
OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet", ".tsv")
# Written before the names of all new columns where the rows have a column of one of them already.
COLUMN_PREFIX = "predicted_"
PART = ".part"
MAX_SHOWN_ROWS = 5
DEFAULT_SEPARATOR = ";"
Columns = dict[str, pa.DataType]


def predict_file(
    predictor: Predictor,
    directory: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    probabilities: bool = False,
    resume: bool = False,
    encoding: str | None = None,
    names: Sequence[str] | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[int, list[str]]:
    """Answer every row of a file and write all its columns and the answers' to another file.

    Until the end, the answers so far are lines of JSON in the file `out` + ".part". The output
    itself is then written to a temporary file in the same folder, and renamed.

    Args:
        predictor: from `load_predictor(directory)`.
        directory: the adapter folder, so that another adapter cannot continue the run.
        source: a file that `read_rows` reads.
        out: ends in .csv, .tsv, .jsonl or .parquet. A list of labels or keywords is a list; in csv
            and tsv it is a text with ";".
        probabilities: whether each label gets a column with its probability.
        resume: continue from the answers in the ".part" file, if there is one; the result is that
            of the uninterrupted run.
        encoding: of a text file; UTF-8 unless given.
        names: of the columns of a csv or tsv file without a header line.
        split: of a data set on the hub.
        batch_size: at most this many rows at once.
        cache_dir: for the copy of the file, as of `read_rows`.

    Returns:
        The number of rows, and the names of the answers' columns.

    Raises:
        RowError: a row cannot be answered; where that shows before the first answer, nothing is
            written. A row without a text is no error: its answer is empty, and a warning counts
            such rows.
        ValueError: the output cannot be written there, the ".part" belongs to something else, or
            another process is writing into it.
    """
    out = Path(out)
    part = Path(f"{out}{PART}")
    _check_output(out, Path(source))
    rows = read_rows(source, encoding=encoding, columns=names, split=split, cache_dir=cache_dir)
    blank = _blank_rows(predictor.task, rows)
    answerable = rows
    if blank:
        answerable = select_rows(rows, [i for i in range(len(rows)) if i not in blank])
    columns = _new_columns(predictor.task, rows, source, probabilities=probabilities)
    header = {
        "adapter": read_manifest(Path(directory))["sum"],
        "rows": _fingerprint(Path(source), rows),
        "columns": list(columns),
    }
    with locked_for_appending(part) as lines:
        try:
            done = _count_answered(part, header, resume=resume)
            with _progress_bar(len(answerable), done) as progress:
                for answers in predictor.stream(
                    answerable, first=done, chunk_rows=CHUNK_ROWS, batch_size=batch_size
                ):
                    if lines.tell() == 0:
                        lines.write(json.dumps(header) + "\n")
                    for answer in answers:
                        values = predictor.task.answer_values(answer, probabilities=probabilities)
                        lines.write(json.dumps(values, ensure_ascii=False) + "\n")
                    lines.flush()
                    progress.update(len(answers))
            separator = predictor.task.separator or DEFAULT_SEPARATOR
            with part.open(encoding="utf-8") as answered:
                next(answered)  # the header
                values_of_rows = _with_blank_answers(answered, len(rows), blank, len(columns))
                _write_output(out, rows, columns, values_of_rows, separator)
        except BaseException:
            if part.stat().st_size == 0:
                # No row was answered: the rows were refused.
                part.unlink()
            raise
        part.unlink()
    return len(rows), list(columns)


def _blank_rows(task: Task, rows: datasets.Dataset) -> set[int]:
    """The indices of rows that cannot be answered since a text is empty; a warning counts them.

    There are none where that is so of all rows: then something else is wrong.
    """
    require_columns(rows, task.columns(with_target=False), type(task).__name__)
    blank = []
    for index, row in enumerate(rows.select_columns(task.columns(with_target=False))):
        if any(_is_blank(value) for value in row.values()) and task.problem(row, with_target=False):
            blank.append(index)
    if not blank or len(blank) == len(rows):
        return set()
    numbers = [str(index + 1) for index in blank[:MAX_SHOWN_ROWS]]
    more = ", ..." if len(blank) > MAX_SHOWN_ROWS else ""
    logger.warning(
        f"{len(blank)} of {len(rows)} rows of {source_name(rows)} have no text and get no answer: "
        f"rows {', '.join(numbers)}{more}."
    )
    return set(blank)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _with_blank_answers(
    lines: Iterator[str], rows: int, blank: Collection[int], columns: int
) -> Iterator[list[Any]]:
    """The answers of all rows, in their order: those in the lines, and empty ones."""
    for index in range(rows):
        yield [None] * columns if index in blank else json.loads(next(lines))


def _check_output(out: Path, source: Path) -> None:
    """Raise ValueError where the output cannot be written, or would replace the rows."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ValueError(
            f"cannot write {out}: expected a file ending in {', '.join(OUTPUT_SUFFIXES)}."
        )
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write {out}: expected a file in a folder that exists.")
    if out.absolute() == source.absolute():
        raise ValueError(
            f"{out} would replace the rows that are answered; give another file for the answers."
        )


def _new_columns(
    task: Task, rows: datasets.Dataset, source: str | Path, *, probabilities: bool
) -> Columns:
    """The names and types of the answers' columns. Raises ValueError where the rows have them."""
    columns = task.answer_columns(probabilities=probabilities)
    existing = set(rows.column_names)
    if existing & set(columns):
        columns = {COLUMN_PREFIX + name: dtype for name, dtype in columns.items()}
    taken = sorted(existing & set(columns))
    if taken:
        raise ValueError(
            f"{source} has a column {taken[0]!r} already; rename it, so that there is room for "
            "the answers."
        )
    return columns


def _fingerprint(source: Path, rows: datasets.Dataset) -> str:
    """The SHA-256 of a file; of a hub's table its fingerprint."""
    if not source.is_file():
        return str(rows._fingerprint)
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress_bar(rows: int, done: int) -> tqdm:
    return tqdm(
        total=rows,
        initial=done,
        unit="row",
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )


def _count_answered(part: Path, header: dict[str, Any], *, resume: bool) -> int:
    """Count the rows that a partial output has answered, and cut it behind its last whole chunk.

    A run is continued with a whole chunk, so that its batches are those of an uninterrupted run.

    Raises:
        ValueError: there is a partial output and `resume` is not set, or it belongs to other rows.
    """
    if not part.is_file() or part.stat().st_size == 0:
        return 0
    if not resume:
        raise ValueError(
            f"{part} holds answers of a run that was not finished; go on with --resume, "
            "or remove it."
        )
    with part.open("rb") as file:
        first_line = file.readline()
        if not _is_header(first_line, header):
            raise ValueError(
                f"{part} belongs to other rows, another adapter or other settings; remove it, "
                "or choose another output."
            )
        size = len(first_line)
        kept_size = size
        kept_rows = 0
        for number, line in enumerate(file, 1):
            size += len(line)
            if number % CHUNK_ROWS == 0 and line.endswith(b"\n"):
                kept_size = size
                kept_rows = number
    os.truncate(part, kept_size)
    return kept_rows


def _is_header(line: bytes, header: dict[str, Any]) -> bool:
    """Whether the first line of a partial output is whole and says what is expected."""
    try:
        return bool(json.loads(line) == header) and line.endswith(b"\n")
    except ValueError:
        return False


def write_answers(
    out: str | Path, task: Task, rows: datasets.Dataset, answers: Sequence[Answer]
) -> None:
    """Write rows with their answers in new columns, as `predict_file` does.

    Args:
        out: ends in .csv, .tsv, .jsonl or .parquet.
        task: that was answered.
        rows: the rows, with all their columns.
        answers: one for each row.

    Raises:
        ValueError: the output cannot be written there, or the rows have columns of these names.
    """
    path = Path(out)
    _check_output(path, Path(source_name(rows)))
    columns = _new_columns(task, rows, source_name(rows), probabilities=False)
    values = (task.answer_values(answer, probabilities=False) for answer in answers)
    _write_output(path, rows, columns, values, task.separator or DEFAULT_SEPARATOR)


def _write_output(
    out: Path,
    rows: datasets.Dataset,
    columns: Columns,
    answers: Iterator[list[Any]],
    separator: str,
) -> None:
    """Write rows and answers to a temporary file, and give it the output's name."""
    with tempfile.NamedTemporaryFile(
        dir=out.absolute().parent, prefix=".saving-", delete=False
    ) as created:
        temporary = Path(created.name)
    suffix = out.suffix.lower()
    try:
        if suffix == ".parquet":
            _write_parquet(temporary, rows, columns, answers)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                if suffix == ".jsonl":
                    _write_jsonl(file, rows, columns, answers)
                else:
                    delimiter = "\t" if suffix == ".tsv" else ","
                    _write_csv(file, rows, columns, answers, delimiter, separator)
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
            cells = [_cell(value) for value in row.values()]
            values = [_joined(value, separator) for value in next(answers)]
            table.writerow([*cells, *values])


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _joined(value: Any, separator: str) -> Any:
    if isinstance(value, list):
        return f"{separator} ".join(value)
    return value

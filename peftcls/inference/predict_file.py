"""From a file of rows to a file of rows and answers, in chunks, so that a table of any length takes the same memory."""

import contextlib
import csv
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from peftcls.data.reading import Row, read_rows
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import READABLE, read_manifest
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression

CHUNK_ROWS = (
    256  # what an interruption can cost; enough for rows of similar length to be put together
)
ENDINGS = (".csv", ".jsonl", ".parquet", ".tsv")
PREFIX = "predicted_"  # before the names of all answers where the rows have a column of one of them already
PART = ".part"


def predict_file(
    predictor: Predictor,
    directory: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    probabilities: bool = False,
    resume: bool = False,
    encoding: str | None = None,
    batch_size: int | None = None,
) -> tuple[int, list[str]]:
    """Answer every row of a file: all its columns and those of the answers go to another file, in the rows' order.

    While it lasts, the answers so far are lines of JSON in the file `out` + ".part"; the output itself is written at the
    end, beside, and renamed.

    Args:
        predictor: from `load_predictor(directory)`.
        directory: the adapter folder, so that nothing is gone on with by another one.
        source: a file that `read_rows` reads.
        out: ends in .csv, .tsv, .jsonl or .parquet. A list of labels or keywords is a list, in csv and tsv a text with ";".
        probabilities: whether each label gets a column with its probability.
        resume: go on from the answers in the ".part", if there is one; the result is that of the uninterrupted run.
        encoding: of a text file; UTF-8 unless given.
        batch_size: at most this many rows at once.

    Returns:
        The number of rows, and the names of the answers' columns.

    Raises:
        RowError: a row cannot be answered; where that shows before the first answer, nothing is written.
        ValueError: the output cannot be written there, or the ".part" belongs to something else.
    """
    out, part = Path(out), Path(f"{out}{PART}")
    if out.suffix.lower() not in ENDINGS:
        raise ValueError(f"cannot write {out}: expected a file ending in {', '.join(ENDINGS)}.")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write {out}: expected a file in a folder that exists.")
    if out.absolute() == Path(source).absolute():
        raise ValueError(
            f"{out} would replace the rows that are answered; give another file for the answers."
        )
    rows = read_rows(source, encoding=encoding)
    fields = answer_fields(predictor.task, probabilities=probabilities)
    if set(fields) & set(rows.column_names):
        fields = {PREFIX + name: kind for name, kind in fields.items()}
    if taken := sorted(set(fields) & set(rows.column_names)):
        raise ValueError(
            f"{source} has a column {taken[0]!r} already; rename it, so that there is room for the answers."
        )
    head = {
        "adapter": read_manifest(Path(directory))["sum"],
        "rows": _identity(Path(source), rows),
        "columns": list(fields),
    }
    done = _answered(part, head, resume=resume)
    with (
        part.open("a", encoding="utf-8") as lines,
        tqdm(
            total=len(rows),
            initial=done,
            unit="row",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):
        try:
            for answers in predictor.stream(
                rows, first=done, chunk_rows=CHUNK_ROWS, batch_size=batch_size
            ):
                if not lines.tell():
                    lines.write(json.dumps(head) + "\n")
                lines.writelines(
                    json.dumps(
                        answer_values(predictor.task, answer, probabilities=probabilities),
                        ensure_ascii=False,
                    )
                    + "\n"
                    for answer in answers
                )
                lines.flush()
                bar.update(len(answers))
        finally:
            if not lines.tell():
                part.unlink()  # nothing was answered: the rows were refused
    _write(out, rows, fields, part, getattr(predictor.task, "separator", None) or ";")
    part.unlink()
    return len(rows), list(fields)


def answer_fields(task: Task, *, probabilities: bool) -> dict[str, pa.DataType]:
    """The names and types of the columns that a task's answers fill."""
    if isinstance(task, Regression):
        return {"value": pa.float64()}
    if isinstance(task, ExtractiveQA):
        return {
            "text": pa.string(),
            "start": pa.int64(),
            "end": pa.int64(),
            "probability": pa.float64(),
        }
    if isinstance(task, Instruction) and not task.labels:
        return (
            {"text": pa.string()} if task.separator is None else {"keywords": pa.list_(pa.string())}
        )
    each = (
        {f"probability_{label}": pa.float64() for label in getattr(task, "labels", None) or ()}
        if probabilities
        else {}
    )
    if getattr(task, "multi_label", False):
        return {"labels": pa.list_(pa.string()), **each}
    return {"label": pa.string(), "probability": pa.float64(), **each}


def answer_values(task: Task, answer: Answer, *, probabilities: bool) -> list[Any]:
    """The values of one answer, in the order of `answer_fields`; an abstention has no label and its likeliest label's probability."""
    if isinstance(task, Regression):
        return [answer.value]
    if isinstance(task, ExtractiveQA):
        return [answer.text, answer.start, answer.end, answer.probability]
    if isinstance(task, Instruction) and not task.labels:
        return [answer.text if task.separator is None else list(answer.labels or ())]
    shares = answer.probabilities or {}
    each = list(shares.values()) if probabilities else []
    if answer.labels is not None:
        return [list(answer.labels), *each]
    return [answer.label, shares[answer.label] if answer.label else max(shares.values()), *each]


def _identity(source: Path, rows: datasets.Dataset) -> str:
    if not source.is_file():
        return str(rows._fingerprint)
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _answered(part: Path, head: dict[str, Any], *, resume: bool) -> int:
    """How many rows a partial output has answered, whole chunks alone, since those are what the run goes on from."""
    if not part.is_file() or not part.stat().st_size:
        return 0
    if not resume:
        raise ValueError(
            f"{part} holds answers of a run that was not finished; go on with --resume, or remove it."
        )
    with part.open("rb") as file:
        try:
            same = json.loads(first := file.readline()) == head and first.endswith(b"\n")
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"{part} belongs to other rows, another adapter or other settings; remove it, or choose another output."
            )
        kept = seen = len(first)
        done = 0
        for number, line in enumerate(file, 1):
            seen += len(line)
            if number % CHUNK_ROWS == 0 and line.endswith(b"\n"):
                kept, done = seen, number
    os.truncate(part, kept)
    return done


def _write(
    out: Path, rows: datasets.Dataset, fields: dict[str, pa.DataType], part: Path, separator: str
) -> None:
    with tempfile.NamedTemporaryFile(
        dir=out.absolute().parent, prefix=".saving-", delete=False
    ) as beside:
        temporary = Path(beside.name)
    try:
        with part.open(encoding="utf-8") as lines:
            next(lines)  # what the answers belong to
            if out.suffix.lower() == ".parquet":
                _write_parquet(temporary, rows, fields, lines)
            else:
                with temporary.open("w", newline="", encoding="utf-8") as file:
                    _write_text(file, out.suffix.lower(), rows, fields, lines, separator)
        temporary.chmod(READABLE)
        os.replace(temporary, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _chunks(rows: datasets.Dataset) -> Iterator[datasets.Dataset]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows.select(range(start, min(start + CHUNK_ROWS, len(rows))))


def _write_parquet(
    path: Path, rows: datasets.Dataset, fields: dict[str, pa.DataType], lines: Iterator[str]
) -> None:
    plain = rows.with_format("arrow")
    schema = plain[:1].schema.remove_metadata()
    for name, kind in fields.items():
        schema = schema.append(pa.field(name, kind))
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(plain):
            values = list(zip(*(json.loads(next(lines)) for _ in range(len(chunk))), strict=True))
            given = [
                pa.array(column, kind) for column, kind in zip(values, fields.values(), strict=True)
            ]
            writer.write_table(pa.table([*chunk[:].columns, *given], schema=schema))


def _write_text(
    file: IO[str],
    ending: str,
    rows: datasets.Dataset,
    fields: dict[str, pa.DataType],
    lines: Iterator[str],
    separator: str,
) -> None:
    table = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",", lineterminator="\n")
    if ending != ".jsonl":
        table.writerow([*rows.column_names, *fields])
    for chunk in _chunks(rows):
        for row in chunk:
            given: Row = dict(zip(fields, json.loads(next(lines)), strict=True))
            if ending == ".jsonl":
                file.write(json.dumps({**row, **given}, ensure_ascii=False, default=str) + "\n")
            else:
                listed = [
                    f"{separator} ".join(value) if isinstance(value, list) else value
                    for value in given.values()
                ]
                table.writerow([*map(_cell, row.values()), *listed])


def _cell(value: Any) -> Any:
    return (
        json.dumps(value, ensure_ascii=False, default=str)
        if isinstance(value, list | dict)
        else value
    )

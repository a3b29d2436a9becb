"""Predict a file: answer all rows of a file and write rows and answers to another one, in chunks.

A table of any length takes the same memory, an interrupted run can be continued, and the processes
of a launcher share the rows.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from tqdm.auto import tqdm

from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import read_rows, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import row_numbers, select_rows
from peftcls.data.tables import with_column_names
from peftcls.engine.last_words import saying_why_others_end
from peftcls.engine.model_state import state_of
from peftcls.engine.sharding import Shares
from peftcls.inference.answer_files import Columns, check_output, write_output
from peftcls.inference.answer_parts import AnswerParts, Values
from peftcls.inference.int8_layers import is_in_int8
from peftcls.inference.launched import first_enters, launched_processes
from peftcls.inference.predictor import Predictor
from peftcls.logs import shows_bars
from peftcls.models.adapter_manifest import read_manifest
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.encoding import content_sum
from peftcls.tasks.list_cells import DEFAULT_SEPARATOR
from peftcls.tasks.row_checks import check_rows

logger = logging.getLogger("peftcls")

# Written before the names of all new columns where the rows have a column of one of them already.
COLUMN_PREFIX = "predicted_"
PART = ".part"
MAX_SHOWN_ROWS = 5


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
    column_map: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    cache_dir: str | Path | None = None,
    rows: datasets.Dataset | None = None,
) -> tuple[int, list[str]]:
    """Answer every row of a file and write all its columns and the answers' to another file.

    Until the end, the answers so far are in the folder `out` + ".part", a file for each chunk. The
    output itself is then written to a temporary file in the same folder, and renamed. Where a
    launcher started several processes, each answers a share, and the first one writes the output;
    on several machines the output has to be on a disk that they share.

    Args:
        predictor: from `load_predictor(directory)`.
        directory: the adapter folder, so that another adapter cannot continue the run.
        source: a file that `read_rows` reads.
        out: ends in .csv, .tsv, .jsonl or .parquet. A list of labels or keywords is a list; in csv
            and tsv it is a text with ";".
        probabilities: whether each label gets a column with its probability.
        resume: continue from the answers in the ".part" folder, if there is one, on any number of
            processes; the result is that of the uninterrupted run.
        encoding: of a text file; UTF-8 unless given.
        names: of the columns of a csv or tsv file without a header line.
        split: of a data set on the hub.
        column_map: from the new name of a column to the one that it has in the file, and in the
            output.
        batch_size: at most this many rows at once.
        cache_dir: for the copy of the file, as of `read_rows`.
        rows: of the source, where they have been read and some of them left out.

    Returns:
        The number of rows, and the names of the answers' columns.

    Raises:
        RowError: a row cannot be answered; where that shows before the first answer, nothing is
            written. A row without a text is no error: its answer is empty, and a warning counts
            such rows.
        ValueError: the output cannot be written there, the ".part" belongs to something else, or
            another run is writing into it.
        RunStoppedError: in the other processes, where the first one could not begin.
    """
    out = Path(out)
    check_output(out, Path(source))
    file = Path(source) if rows is None else None
    if rows is None:
        rows = read_rows(source, encoding=encoding, columns=names, split=split, cache_dir=cache_dir)
        rows = with_column_names(rows, column_map or {})
    blank = _blank_rows(predictor.task, rows)
    answerable = rows
    if blank:
        answerable = select_rows(rows, [i for i in range(len(rows)) if i not in blank])
    # The output has the file's own names.
    written = rows.rename_columns(dict(column_map or {}))
    columns = _new_columns(predictor.task, written, source, probabilities=probabilities)
    check_rows(predictor.task, answerable, with_target=False)
    about: dict[str, Any] = {
        "adapter": read_manifest(Path(directory))["sum"],
        "rows": _fingerprint(file, rows),
        "columns": list(columns),
    }
    if column_map:
        about["map"] = dict(column_map)
    if is_in_int8(predictor.model):
        about["int8"] = True
    parts = AnswerParts(Path(f"{out}{PART}"), about, len(answerable))

    def answer(start: int, end: int) -> list[Values]:
        answers = predictor.answer_part(answerable, start, end, batch_size=batch_size)
        return [
            predictor.task.answer_values(answer, probabilities=probabilities) for answer in answers
        ]

    predictor.shortened_rows = 0
    with (
        launched_processes() as (process, processes),
        saying_why_others_end(lambda: "while rows were answered", "Go on with --resume."),
        first_enters(parts.opened(resume=resume), process, processes),
    ):
        shows_progress = process == 0 and shows_bars() and sys.stderr.isatty()
        shares = state_of(predictor.model).shares
        if shares is None:
            _fill(parts, answer, process, processes, shows_progress=shows_progress)
        else:
            _fill_together(parts, answer, shares, process, processes)
        if process == 0:
            separator = predictor.task.separator or DEFAULT_SEPARATOR
            answers = _with_blank_answers(parts.read(), len(rows), blank, len(columns))
            write_output(out, written, columns, answers, separator)
            parts.remove()
    return len(rows), list(columns)


def _fill(
    parts: AnswerParts,
    answer: Callable[[int, int], list[Values]],
    process: int,
    processes: int,
    *,
    shows_progress: bool,
) -> None:
    """Answer chunks until none is missing."""
    with tqdm(
        total=parts.rows, unit="row", dynamic_ncols=True, disable=not shows_progress
    ) as progress:
        for start in parts.missing(process, processes):
            if shows_progress:
                progress.update(parts.answered() - progress.n)
            parts.write(start, answer(start, parts.end_of(start)))
        progress.update(parts.rows - progress.n)


def _fill_together(
    parts: AnswerParts,
    answer: Callable[[int, int], list[Values]],
    shares: Shares,
    process: int,
    processes: int,
) -> None:
    """Answer the missing chunks in processes that hold the base together: each as many as another.

    None of them can stand in for one that has died, since none holds the whole base.
    """
    starts = parts.missing_starts()
    # Here they wait for one another, so none has written a chunk before all have looked.
    for own in shares.padded(starts[process::processes]):
        start = starts[0] if own is None else own
        answers = answer(start, parts.end_of(start))
        if own is not None:
            parts.write(own, answers)
    shares.wait()


def _blank_rows(task: Task, rows: datasets.Dataset) -> set[int]:
    """The indices of rows that cannot be answered since a text is empty; a warning counts them.

    There are none where that is so of all rows: then something else is wrong.
    """
    require_columns(rows, task.columns(with_target=False), type(task).__name__)
    blank = []
    columns = task.columns_among(rows.column_names, with_target=False)
    for index, row in enumerate(each_row(rows, columns)):
        if any(_is_blank(value) for value in row.values()) and task.problem(row, with_target=False):
            blank.append(index)
    if not blank or len(blank) == len(rows):
        return set()
    numbers = [str(row_numbers(rows)[index]) for index in blank[:MAX_SHOWN_ROWS]]
    more = ", ..." if len(blank) > MAX_SHOWN_ROWS else ""
    logger.warning(
        f"{len(blank)} of {len(rows)} rows of {source_name(rows)} have no text and get an empty "
        f"answer: {'row' if len(blank) == 1 else 'rows'} {', '.join(numbers)}{more}."
    )
    return set(blank)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _with_blank_answers(
    answers: Iterator[Values], rows: int, blank: Collection[int], columns: int
) -> Iterator[Values]:
    """The answers of all rows, in their order: those that were given, and empty ones."""
    for index in range(rows):
        yield [None] * columns if index in blank else next(answers)


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


def _fingerprint(file: Path | None, rows: datasets.Dataset) -> str:
    """The SHA-256 of a file; where there is no single one with these rows, their checksum."""
    if file is None or not file.is_file():
        return content_sum(rows)
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
    check_output(path, Path(source_name(rows)))
    columns = _new_columns(task, rows, source_name(rows), probabilities=False)
    values = (task.answer_values(answer, probabilities=False) for answer in answers)
    write_output(path, rows, columns, values, task.separator or DEFAULT_SEPARATOR)

"""`peftcls predict`, `evaluate`, `compare` and `try`: answer rows, and score the answers."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pandas as pd
from accelerate.utils import gather_object

from peftcls.cli.label_naming import check_some_label_known, name_labels
from peftcls.cli.seen_rows import note_of_seen_rows
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.sources import Source
from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row
from peftcls.engine.last_words import saying_why_others_end
from peftcls.evaluation import Evaluation, compare_answers, evaluate_answers
from peftcls.inference.answer_parts import count_answered
from peftcls.inference.launched import launched_processes
from peftcls.inference.loading import load_predictor
from peftcls.inference.predict_file import PART, predict_file
from peftcls.inference.predictor import Predictor
from peftcls.tasks.base import Answer, Task, token_limit
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.training import distributed_prediction
from peftcls.training.signals import Signals

MAX_LABELS_SHOWN = 5


def predict_rows(
    *,
    directory: Path,
    file: str,
    out: Path,
    probabilities: bool,
    resume: bool,
    skip_bad_rows: Path | None,
    batch_size: int | None,
    base: str | None,
    device: str | None,
    int8: bool,
    shard: bool | None,
    source: Source,
) -> None:
    """Answer every row of a file."""
    skipped = SkippedRows(skip_bad_rows, [file])
    if skip_bad_rows is not None and skip_bad_rows.absolute() == out.absolute():
        raise ValueError(f"--skip-bad-rows and --out are both {out}; give another file to one.")
    part = Path(f"{out}{PART}")
    replaces = out.is_file()
    is_first = int(os.environ.get("RANK", "0")) == 0
    if resume and is_first and not part.is_dir():
        print(f"there is no {part} to go on from: this begins with the first row.")
    try:
        with Signals().captured():
            predictor = load_predictor(directory, base=base, device=device, shard=shard, int8=int8)
            rows = None
            if skip_bad_rows is not None:
                rows = _answerable_rows(predictor, skipped, source, file, tells=is_first)
            count, columns = predict_file(
                predictor,
                directory,
                file,
                out,
                probabilities=probabilities,
                resume=resume,
                encoding=source.encoding,
                names=source.column_names,
                split=source.split,
                column_map=source.new_names,
                batch_size=batch_size,
                cache_dir=source.copies,
                rows=rows,
            )
    except (KeyboardInterrupt, SystemExit) as stop:
        if is_first:
            name = "SIGTERM" if isinstance(stop, SystemExit) else "Ctrl-C"
            print(f"\n{_stopped_sentence(name, part)}", file=sys.stderr, flush=True)
        raise
    if not is_first:
        return
    remark = ", which was there and is replaced" if replaces else ""
    new_columns = ", ".join(map(repr, columns))
    print(f"{count} rows answered in {out}{remark}; new columns: {new_columns}")
    _warn_of_truncation(predictor, file, predictor.shortened_rows)


def _answerable_rows(
    predictor: Predictor, skipped: SkippedRows, source: Source, file: str, *, tells: bool
) -> datasets.Dataset:
    """The rows of a file without those that cannot be answered, which are written and counted."""
    rows = skipped.read(source, file)
    rows = skipped.left_out(predictor.task, rows, with_target=False, tokenizer=predictor.tokenizer)
    if tells:
        skipped.write()
        print(*skipped.sentences(), sep="\n")
    return rows


def _stopped_sentence(name: str, part: Path) -> str:
    """How far a prediction had come when a signal ended it, and how to continue."""
    answered = count_answered(part)
    if answered is None:
        return f"ended by {name} before the first rows were answered; nothing is written."
    done, rows = answered
    return f"ended by {name}: {done} of {rows} rows are answered, in {part}; go on with --resume."


def evaluate_rows(
    *,
    directory: Path,
    file: str,
    metrics: tuple[str, ...],
    label_names: str | None,
    skip_bad_rows: Path | None,
    as_json: bool,
    batch_size: int | None,
    base: str | None,
    device: str | None,
    int8: bool,
    shard: bool | None,
    source: Source,
) -> None:
    """Score an adapter on the labelled rows of a file; the first of several processes prints."""
    skipped = SkippedRows(skip_bad_rows, [file])
    predictor = load_predictor(directory, base=base, device=device, shard=shard, int8=int8)
    rows = skipped.read(source, file)
    task = predictor.task
    # Before the texts alone are looked for: all columns that are missing are named together.
    require_columns(rows, task.columns(with_target=True), type(task).__name__)
    rows = name_labels(rows, task, label_names, source)
    check_some_label_known(rows, task)
    rows = skipped.left_out(predictor.task, rows, tokenizer=predictor.tokenizer)
    with (
        launched_processes() as (process, _),
        saying_why_others_end(lambda: "while rows were answered", "Start again."),
    ):
        answers = distributed_prediction.predict_rows(predictor, rows, batch_size=batch_size)
        # In shares one row may be read twice, so that all processes read as many.
        shortened_rows = min(len(rows), sum(gather_object([predictor.shortened_rows])))
    if process > 0:
        return
    skipped.write()
    for sentence in skipped.sentences():
        print(sentence, file=sys.stderr)
    evaluation = evaluate_answers(predictor.task, answers, rows, metrics=metrics)
    if as_json:
        print(json.dumps(_evaluation_json(evaluation), indent=1, ensure_ascii=False))
    else:
        print(evaluation)
    _warn_of_truncation(predictor, file, shortened_rows)
    note = note_of_seen_rows(directory, file, rows)
    if note is not None:
        print(note, file=sys.stderr)


def _evaluation_json(evaluation: Evaluation) -> dict[str, object]:
    return {
        "rows": evaluation.rows,
        "scores": evaluation.scores,
        "intervals": evaluation.intervals,
        "labels": _table_json(evaluation.labels),
        "confusion": _table_json(evaluation.confusion),
    }


def _table_json(table: pd.DataFrame | None) -> object:
    return None if table is None else table.to_dict("index")


def _warn_of_truncation(predictor: Predictor, file: str, shortened_rows: int) -> None:
    if not shortened_rows:
        return
    limit = token_limit(predictor.tokenizer, predictor.task.max_length)
    print(
        f"longer than {limit} tokens, and shortened at their end: {shortened_rows} "
        f"of the rows of {Path(file).name} that were read now.",
        file=sys.stderr,
    )


def compare_folders(
    *,
    first: Path,
    second: Path,
    file: str,
    score: str | None,
    metrics: tuple[str, ...],
    label_names: str | None,
    as_json: bool,
    batch_size: int | None,
    base: str | None,
    device: str | None,
    source: Source,
) -> None:
    """Compare two adapters on the labelled rows of a file."""
    rows = source.read(file)
    _, first_answers = _answer_once(first, rows, base=base, device=device, batch_size=batch_size)
    task, second_answers = _answer_once(
        second, rows, base=base, device=device, batch_size=batch_size
    )
    rows = name_labels(rows, task, label_names, source)
    check_some_label_known(rows, task)
    comparison = compare_answers(
        task, first_answers, second_answers, rows, score=score, metrics=metrics
    )
    if as_json:
        print(json.dumps(vars(comparison), indent=1))
    else:
        print(comparison)


def _answer_once(
    directory: Path,
    rows: datasets.Dataset,
    *,
    base: str | None,
    device: str | None,
    batch_size: int | None,
) -> tuple[Task, list[Answer]]:
    """Load a folder, answer the rows, and drop the model: only one is in memory at a time."""
    predictor = load_predictor(directory, base=base, device=device)
    return predictor.task, predictor.predict(rows, batch_size=batch_size)


def try_texts(
    *, directory: Path, context: Path | None, base: str | None, device: str | None
) -> None:
    """Answer texts that are typed or piped in."""
    predictor = load_predictor(directory, base=base, device=device)
    fixed_columns: Row = {}
    if context is not None:
        fixed_columns = _context_column(predictor.task, directory, context)
    typed_columns = [
        name for name in predictor.task.columns(with_target=False) if name not in fixed_columns
    ]
    for row in _typed_rows(typed_columns):
        (answer,) = predictor.predict([{**row, **fixed_columns}])
        print(format_answer(answer), flush=True)


def _context_column(task: Task, directory: Path, context: Path) -> Row:
    """The column of the context, which is the same for all questions, with the file's text."""
    if not isinstance(task, ExtractiveQA):
        raise ValueError(
            f"--context is for a folder that answers questions; {directory} holds a "
            f"{type(task).__name__}."
        )
    try:
        return {task.context: context.read_text(encoding="utf-8-sig")}
    except UnicodeDecodeError:
        raise ValueError(
            f"{context} is not a text in UTF-8; save the document as plain text in UTF-8."
        ) from None


def _typed_rows(columns: list[str]) -> Iterator[Row]:
    """Rows from standard input, until it ends or a row begins with an empty line."""
    if len(columns) > 1 and sys.stdin.isatty():
        print(f"a row has {len(columns)} lines: {', '.join(columns)}; an empty line ends it.")
    while True:
        row = _typed_row(columns)
        if row is None:
            return
        yield row


def _typed_row(columns: list[str]) -> Row | None:
    """One row: a line for each column, or one line with tabs between the columns; None at the end.

    Raises:
        ValueError: the input ends, or has an empty line, within a row.
    """
    row: Row = {}
    for name in columns:
        if sys.stdin.isatty():
            print(f"{name}> ", end="", flush=True)
        line = sys.stdin.readline().rstrip("\r\n")
        cells = line.split("\t")
        if not row and len(columns) > 1 and len(cells) == len(columns):
            return dict(zip(columns, cells, strict=True))
        if line.strip():
            row[name] = line.strip()
        elif row:
            raise ValueError(
                f"the last row has {', '.join(map(repr, row))} and no {name!r}; give each of "
                f"{columns} a line of its own, or all of them in one line with tabs between them."
            )
        else:
            return None
    return row


def format_answer(answer: Answer) -> str:
    """An answer as one line of text."""
    if answer.value is not None:
        return f"{answer.value:.6g}"
    if answer.probabilities is not None:
        return _format_labels(answer, answer.probabilities)
    if answer.labels is not None:
        return "; ".join(answer.labels) or "(no keywords)"
    return _format_text(answer)


def _format_labels(answer: Answer, probabilities: dict[str, float]) -> str:
    """The label or labels, and the labels of highest probability."""
    name = answer.label if answer.labels is None else ", ".join(answer.labels)
    descending = pd.Series(probabilities).sort_values(ascending=False, kind="stable")
    likeliest = descending[:MAX_LABELS_SHOWN]
    listed = ", ".join(f"{label} {probability:.3f}" for label, probability in likeliest.items())
    return f"{name or '(no label)'}   {listed}"


def _format_text(answer: Answer) -> str:
    """The text with its probability, and where it stands in the context."""
    details = ""
    if answer.probability is not None:
        details += f"   {answer.probability:.3f}"
    if answer.start is not None:
        details += f", characters {answer.start} to {answer.end}"
    return f"{answer.text or '(no answer)'}{details}"

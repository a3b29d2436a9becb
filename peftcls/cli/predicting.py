"""`peftcls predict`, `evaluate`, `compare` and `try`: what a folder answers, and how good that is."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from peftcls.data.reading import Row, read_rows
from peftcls.evaluation import compare_answers, evaluate_answers
from peftcls.inference.loading import load_predictor
from peftcls.inference.predict_file import PART, predict_file
from peftcls.inference.predictor import Predictor
from peftcls.tasks.base import Answer, token_limit
from peftcls.tasks.extractive_qa import ExtractiveQA

SHOWN_LABELS = 5


def predict_rows(
    *,
    directory: Path,
    file: str,
    out: Path,
    probabilities: bool,
    resume: bool,
    batch_size: int | None,
    base: str | None,
    encoding: str | None,
) -> None:
    """Answer a file."""
    predictor, replaced = load_predictor(directory, base=base), out.is_file()
    if resume and not Path(f"{out}{PART}").is_file():
        print(f"there is no {out}{PART} to go on from: this begins with the first row.")
    try:
        count, columns = predict_file(
            predictor,
            directory,
            file,
            out,
            probabilities=probabilities,
            resume=resume,
            encoding=encoding,
            batch_size=batch_size,
        )
    except KeyboardInterrupt:
        if Path(f"{out}{PART}").is_file():
            print(f"\nthe answers so far are in {out}{PART}; go on with --resume.", file=sys.stderr)
        raise
    print(
        f"{count} rows answered in {out}{', which was there and is replaced' if replaced else ''}; new columns: "
        f"{', '.join(map(repr, columns))}"
    )
    _tell_shortened(predictor, file)


def evaluate_rows(
    *,
    directory: Path,
    file: str,
    as_json: bool,
    batch_size: int | None,
    base: str | None,
    encoding: str | None,
) -> None:
    """Score a folder on a file."""
    predictor, rows = load_predictor(directory, base=base), read_rows(file, encoding=encoding)
    scores = evaluate_answers(predictor.task, predictor.predict(rows, batch_size=batch_size), rows)
    tables = {
        name: None if table is None else table.to_dict("index")
        for name, table in (("labels", scores.labels), ("confusion", scores.confusion))
    }
    found = {"rows": scores.rows, "scores": scores.scores, "intervals": scores.intervals, **tables}
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else scores)
    _tell_shortened(predictor, file)


def _tell_shortened(predictor: Predictor, file: str) -> None:
    if predictor.shortened_rows:
        most = token_limit(predictor.tokenizer, getattr(predictor.task, "max_length", 0))
        print(
            f"longer than {most} tokens, and shortened at their end: {predictor.shortened_rows} of the rows of {Path(file).name} "
            "that were read now.",
            file=sys.stderr,
        )


def compare_folders(
    *,
    first: Path,
    second: Path,
    file: str,
    score: str | None,
    as_json: bool,
    batch_size: int | None,
    base: str | None,
    encoding: str | None,
) -> None:
    """Compare two folders on a file, one model in memory at a time."""
    rows, answers = read_rows(file, encoding=encoding), []
    for directory in (first, second):
        predictor = load_predictor(directory, base=base)
        answers.append(predictor.predict(rows, batch_size=batch_size))
        task = predictor.task
        del predictor
    found = compare_answers(task, answers[0], answers[1], rows, score=score)
    print(json.dumps(vars(found), indent=1) if as_json else found)


def try_texts(*, directory: Path, context: Path | None, base: str | None) -> None:
    """Answer what is typed, or piped in."""
    predictor = load_predictor(directory, base=base)
    fixed: Row = {}
    columns = predictor.task.columns(with_target=False)
    if context is not None:
        if not isinstance(predictor.task, ExtractiveQA):
            raise ValueError(
                f"--context is for a folder that answers questions; {directory} holds a {type(predictor.task).__name__}."
            )
        try:
            fixed = {predictor.task.context: context.read_text(encoding="utf-8-sig")}
        except UnicodeDecodeError:
            raise ValueError(
                f"{context} is not a text in UTF-8; save the document as plain text in UTF-8."
            ) from None
    for row in _typed([name for name in columns if name not in fixed]):
        print(spoken(predictor.predict([{**row, **fixed}])[0]), flush=True)


def _typed(columns: list[str]) -> Iterator[Row]:
    """Rows of one line a column, or of one line with tabs between the columns, until a line is empty or there is none.

    Raises:
        ValueError: the input ends, or has an empty line, within a row.
    """
    if len(columns) > 1 and sys.stdin.isatty():
        print(f"a row has {len(columns)} lines: {', '.join(columns)}; an empty line ends it.")
    while True:
        row: Row = {}
        for name in columns:
            if sys.stdin.isatty():
                print(f"{name}> ", end="", flush=True)
            line = sys.stdin.readline().rstrip("\r\n")
            parts = line.split("\t")
            if not row and len(columns) > 1 and len(parts) == len(columns):
                row = dict(zip(columns, parts, strict=True))
                break
            if not line.strip():
                if row:
                    raise ValueError(
                        f"the last row has {', '.join(map(repr, row))} and no {name!r}; give each of {columns} a line of its "
                        "own, or all of them in one line with tabs between them."
                    )
                return
            row[name] = line.strip()
        yield row


def spoken(answer: Answer) -> str:
    """An answer in a line."""
    if answer.value is not None:
        return f"{answer.value:.6g}"
    if answer.probabilities is not None:
        likeliest = pd.Series(answer.probabilities).sort_values(ascending=False, kind="stable")[
            :SHOWN_LABELS
        ]
        shares = ", ".join(f"{name} {share:.3f}" for name, share in likeliest.items())
        named = ", ".join(answer.labels) if answer.labels is not None else answer.label
        return f"{named or '(no label)'}   {shares}"
    if answer.labels is not None:
        return "; ".join(answer.labels) or "(no keywords)"
    place: Any = f"   {answer.probability:.3f}" if answer.probability is not None else ""
    if answer.start is not None:
        place += f", characters {answer.start} to {answer.end}"
    return f"{answer.text or '(no answer)'}{place}"

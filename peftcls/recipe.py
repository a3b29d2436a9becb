"""What every recipe shares: its options, its table of scores, and predictions for an unlabelled file."""

import argparse
import csv
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import pandas as pd

from peftcls.baselines import baselines
from peftcls.data.reading import RowError, read_rows, source_name
from peftcls.demo import sample
from peftcls.errors import RunStoppedError
from peftcls.evaluation import Evaluation, evaluate_answers
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import READABLE
from peftcls.models.base_model import load_base
from peftcls.models.state import base_facts
from peftcls.report import THIS_RUN, Meter, write_report
from peftcls.report.files import check_out_folder
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.row_checks import check_rows
from peftcls.training.run_info import describe_model
from peftcls.training.run_report import describe_run
from peftcls.training.signals import EXIT_CODES
from peftcls.training.trainer import Trainer

RESAMPLES = 500


def recipe_options(
    description: str | None,
    *,
    data: str,
    out: str,
    epochs: int,
    learning_rate: float,
    kind: str = "csv",
    **more: list[str] | str,
) -> argparse.Namespace:
    """The command line of a recipe.

    Args:
        description: the recipe's docstring.
        data: the name of the sample data that are used where no file is given, for example "papers".
        out: the adapter folder unless given.
        epochs: unless given.
        learning_rate: unless given.
        kind: the ending of the sample files.
        more: options of this recipe alone: a list of values, the first of them unless given, or the help of a free text.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train",
        help="rows to learn from (csv, tsv, json, jsonl, parquet, hub id); sample data unless given",
    )
    parser.add_argument("--valid", help="rows that decide which step was best")
    parser.add_argument(
        "--test",
        help="rows for the table at the end; the validation rows where --train is given and this is not",
    )
    parser.add_argument(
        "--model", default="demo", help="base model: demo, a local folder or a hub id"
    )
    parser.add_argument("--quantize", choices=["8bit", "4bit"], help="hold the base in 8 or 4 bits")
    parser.add_argument("--out", default=out, help=f"adapter folder ({out})")
    parser.add_argument(
        "--epochs", type=int, default=epochs, help=f"passes over the training rows ({epochs})"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=learning_rate,
        help=f"peak learning rate ({learning_rate})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of new weights, order and dropout (0)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps on the longest rows, for memory and time; nothing is written",
    )
    parser.add_argument("--predict", help="a file of rows without labels to answer when trained")
    parser.add_argument(
        "--predictions", default="predictions.csv", help="where the answers go (predictions.csv)"
    )
    for name, values in more.items():
        if isinstance(values, str):
            parser.add_argument(f"--{name}", help=values)
        else:
            parser.add_argument(
                f"--{name}", choices=values, default=values[0], help=f"({values[0]})"
            )
    options = parser.parse_args()
    options.meter = Meter()
    if options.train is None:
        options.train, given = str(sample(f"{data}_train.{kind}")), options.valid or options.test
        options.valid = options.valid or str(sample(f"{data}_validation.{kind}"))
        options.test = options.test or (
            options.valid if given else str(sample(f"{data}_test.{kind}"))
        )
    options.test = options.test or options.valid
    return options


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe; what is wrong, or stops a run, is told in its sentence, without a traceback. Exit codes as of `peftcls`."""
    try:
        main()
    except (ValueError, FloatingPointError, RunStoppedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_CODES[signal.SIGINT])


def only_rehearse(trainer: Trainer, options: argparse.Namespace, train: datasets.Dataset) -> bool:
    """Whether there is to be a dry run alone; it is done and told then."""
    if options.dry_run:
        trainer.accelerator.print(
            describe_model(trainer.model, trainer.task), trainer.rehearse(train), sep="\n"
        )
    return bool(options.dry_run)


def find_columns(rows: datasets.Dataset, *wanted: str) -> list[str]:
    """The rows' own names of the wanted columns, which may differ from them in upper and lower case."""
    own = {name.casefold(): name for name in rows.column_names}
    if missing := [name for name in wanted if name.casefold() not in own]:
        raise RowError(
            f"{source_name(rows)} has no column {missing[0]!r}; it has {rows.column_names}. This recipe needs {list(wanted)}."
        )
    return [own[name.casefold()] for name in wanted]


def check_first(task: Task, options: argparse.Namespace, test: datasets.Dataset | None) -> None:
    """What would fail after the training is refused before it: test rows, and the file to answer.

    Raises:
        RowError: a test row has no text or an unknown label, or the file to answer lacks a column.
        ValueError: the predictions cannot be written where they should go, or --out holds somebody else's files.
    """
    check_out_folder(Path(options.out))
    if test is not None:
        check_rows(task, test)
    if options.predict:
        check_rows(task, read_rows(options.predict), with_target=False)
        if (path := Path(options.predictions)).is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"--predictions {path}: expected a file in a folder that exists.")


def score_table(task: Task, test: datasets.Dataset, evaluations: Mapping[str, Evaluation]) -> str:
    """Two scores of each system on the test rows with their 95 % bootstrap intervals."""
    rows = []
    for system, found in evaluations.items():
        row = {"system": system}
        for name in task.score_names[:2]:
            low, high = found.intervals[name]
            row[name] = f"{100 * found.scores[name]:5.1f}"
            row[f"95 % interval of {name}"] = f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append(row)
    return f"{len(test)} rows of {source_name(test)}\n" + pd.DataFrame(rows).to_string(index=False)


def finish_recipe(
    trainer: Trainer,
    options: argparse.Namespace,
    train: datasets.Dataset,
    test: datasets.Dataset | None,
    others: dict[str, list[Answer] | None],
) -> None:
    """Answer the unlabelled file if there is one, print the table of scores on the test rows, and write the report."""
    if options.predict:
        rows = read_rows(options.predict)
        answers = trainer.predict(rows)
        if trainer.accelerator.is_main_process:
            write = write_spans if isinstance(trainer.task, ExtractiveQA) else write_submission
            write(options.predictions, rows, answers)
            print(f"{len(rows)} answers written to {options.predictions}")
    if test is not None:
        valid = read_rows(options.valid) if options.valid else None
        report_scores(
            trainer,
            train,
            valid,
            test,
            {name: found for name, found in others.items() if found},
            options.meter,
        )


def report_scores(
    trainer: Trainer,
    train: datasets.Dataset,
    valid: datasets.Dataset | None,
    test: datasets.Dataset,
    others: Mapping[str, Sequence[Answer]],
    meter: Meter,
) -> Evaluation:
    """Print the scores on the test rows beside those of other systems, and write the report into the adapter folder.

    Args:
        trainer: after `fit`.
        train: the rows that were learnt from.
        valid: the rows that decided which step was best.
        test: the rows to answer.
        others: the answers of systems besides those that need no transformer.
        meter: made when the program began.

    Returns:
        The scores of this run with their intervals.
    """
    task, started = trainer.task, time.perf_counter()
    answers = trainer.predict(test)
    taken = {f"to answer {len(test)} rows": time.perf_counter() - started}
    found = evaluate_answers(task, answers, test, resamples=RESAMPLES)
    if trainer.accelerator.is_main_process:
        systems = {**others, **baselines(task, train, test)}
        evaluations = {
            THIS_RUN: found,
            **{
                name: evaluate_answers(task, own, test, resamples=RESAMPLES)
                for name, own in systems.items()
            },
        }
        print(f"{score_table(task, test, evaluations)}\n\n{THIS_RUN}: {found}")
        page = write_report(
            trainer.output_dir,
            task=task,
            train=train,
            valid=valid,
            test=test,
            answers=answers,
            systems=systems,
            evaluations=evaluations,
            resamples=RESAMPLES,
            run=describe_run(trainer, meter, seconds=taken),
            count_tokens=lambda text: len(trainer.tokenizer(text, verbose=False)["input_ids"]),
        )
        print(f"\nthe report of this run is {page}")
    return found


def ask_untrained(
    trainer: Trainer, name: str, task: Task, rows: datasets.Dataset | None
) -> list[Answer] | None:
    """Zero-shot answers of a base model that is only asked by prompt; None where it is not a causal language model."""
    if rows is None:
        return None
    try:
        model, tokenizer = load_base(name, task)
    except ValueError:
        return None
    return (
        Predictor(model.to(trainer.accelerator.device), task, tokenizer).predict(rows)
        if base_facts(model).causal
        else None
    )


def write_submission(path: str | Path, rows: datasets.Dataset, answers: Sequence[Answer]) -> None:
    """Write `uuid,Keywords,label` for every row: what was answered, and what the file already held of the other."""
    lines = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        keywords = (
            "; ".join(answer.labels) if answer.labels is not None else row.get("Keywords") or ""
        )
        lines.append([row.get("uuid", number), keywords, answer.label or row.get("label") or ""])
    _write_csv(Path(path), ["uuid", "Keywords", "label"], lines)


def write_spans(path: str | Path, rows: datasets.Dataset, answers: Sequence[Answer]) -> None:
    """Write `id,text,start,end,probability` for every question; text, start and end are empty where there is no answer."""
    _write_csv(
        Path(path),
        ["id", "text", "start", "end", "probability"],
        [
            [row.get("id", number), a.text, a.start, a.end, a.probability]
            for number, (row, a) in enumerate(zip(rows, answers, strict=True), 1)
        ],
    )


def _write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Beside first, then in place, so that no half of a file is ever there."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, newline="", encoding="utf-8"
    ) as beside:
        csv.writer(beside, lineterminator="\n").writerows([header, *lines])
    os.chmod(beside.name, READABLE)
    os.replace(beside.name, path)

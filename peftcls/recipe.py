"""What all recipes share: options, checks, the dry run, the score table, answers to a file."""

import argparse
import csv
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import pandas as pd
import torch

from peftcls.baselines import baselines
from peftcls.data.reading import RowError, read_rows, source_name
from peftcls.demo import sample
from peftcls.engine.model_state import base_facts
from peftcls.errors import RunStoppedError
from peftcls.evaluation import Evaluation, evaluate_answers
from peftcls.inference.predict_file import write_answers
from peftcls.inference.predictor import Predictor
from peftcls.logs import show_messages
from peftcls.models.adapter_folder import READABLE
from peftcls.models.base_model import load_base
from peftcls.models.lora_injection import DEFAULT_RANK
from peftcls.processors import thread_limit
from peftcls.report import THIS_RUN, Meter, write_report
from peftcls.report.files import check_out_folder
from peftcls.report.write import read_verdict
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.row_checks import check_rows
from peftcls.training.config import TrainConfig
from peftcls.training.judgement import PROBE, answers_at_start, weaknesses
from peftcls.training.run_info import describe_model
from peftcls.training.run_report import describe_run
from peftcls.training.signals import EXIT_CODES
from peftcls.training.trainer import Trainer

# Bootstrap samples for each interval.
RESAMPLES = 500
# Scores in the printed table; the report has all of them.
MAX_SCORES_SHOWN = 2


def recipe_options(
    description: str | None,
    *,
    data: str,
    out: str,
    epochs: int | None = None,
    learning_rate: float | None = None,
    max_length: int = 512,
    kind: str = "csv",
    **more: list[str] | str,
) -> argparse.Namespace:
    """Parse the command line of a recipe.

    Args:
        description: the recipe's docstring.
        data: the name of the sample data that are used if no file is given, for example "papers".
        out: the default adapter folder.
        epochs: the default number of epochs; by `TrainConfig.for_task` unless given.
        learning_rate: the default learning rate; by `TrainConfig.for_task` unless given.
        max_length: the default number of tokens that are read at once.
        kind: the ending of the sample files.
        more: further options: a list of choices, of which the first is the default, or the help
            of a free text.

    Returns:
        The options, and as `meter` a Meter that started now.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_data_options(parser)
    _add_model_options(parser, max_length=max_length)
    _add_training_options(parser, out=out, epochs=epochs, learning_rate=learning_rate)
    parser.add_argument("--predict", help="a file of rows without labels to answer when trained")
    parser.add_argument(
        "--predictions", default="predictions.csv", help="where the answers go (predictions.csv)"
    )
    parser.add_argument(
        "--submission",
        action="store_true",
        help="write the answers in the form of the challenge (uuid, Keywords, label; for documents "
        "id and answer), not beside the file's own columns",
    )
    for name, values in more.items():
        if isinstance(values, str):
            parser.add_argument(f"--{name}", help=values)
        else:
            default = values[0]
            parser.add_argument(f"--{name}", choices=values, default=default, help=f"({default})")
    options = parser.parse_args()
    options.meter = Meter()
    if options.train is None:
        _use_sample_data(options, data, kind)
    if not options.test:
        options.test = options.valid
    return options


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        help="rows to learn from (csv, tsv, json, jsonl, parquet, hub id); default: sample data",
    )
    parser.add_argument("--valid", help="rows that decide which step was best")
    parser.add_argument(
        "--test",
        help="rows for the table at the end; the validation rows if only --train is given",
    )


def _add_model_options(parser: argparse.ArgumentParser, *, max_length: int) -> None:
    parser.add_argument(
        "--model",
        default="demo",
        help="base model: demo, minilm, smollm2, a local folder or a hub id",
    )
    parser.add_argument("--quantize", choices=["8bit", "4bit"], help="hold the base in 8 or 4 bits")
    parser.add_argument(
        "--max-length",
        type=int,
        default=max_length,
        help=f"tokens that are read at once ({max_length})",
    )
    parser.add_argument(
        "--rank",
        type=int,
        default=DEFAULT_RANK,
        help=f"of the adapter's matrices ({DEFAULT_RANK})",
    )
    parser.add_argument(
        "--top-layers",
        type=int,
        help="how many layers, from the top, get an adapter; those below are computed once (all)",
    )


def _add_training_options(
    parser: argparse.ArgumentParser, *, out: str, epochs: int | None, learning_rate: float | None
) -> None:
    parser.add_argument("--out", default=out, help=f"adapter folder ({out})")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="rows of a step, over all processes; chosen by the kind of work",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=epochs,
        help="passes over the training rows; chosen by the kind of work and the rows unless given",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=learning_rate,
        help="peak learning rate; chosen by the kind of work",
    )
    parser.add_argument("--seed", type=int, default=0, help="of new weights, order and dropout (0)")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in --out"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps on the longest rows, for memory and time; nothing is written",
    )


def _use_sample_data(options: argparse.Namespace, data: str, kind: str) -> None:
    """Fill in sample files. Validation rows that were given are test rows, too."""
    has_own_rows = options.valid or options.test
    options.train = str(sample(f"{data}_train.{kind}"))
    if not options.valid:
        options.valid = str(sample(f"{data}_validation.{kind}"))
    if not options.test and not has_own_rows:
        options.test = str(sample(f"{data}_test.{kind}"))


def adapter_layers(options: argparse.Namespace) -> list[int] | None:
    """The layers that get an adapter, as `attach_lora` takes them; None for all.

    Raises:
        ValueError: --top-layers is less than one.
    """
    if options.top_layers is None:
        return None
    if options.top_layers < 1:
        raise ValueError(f"--top-layers {options.top_layers}: expected at least 1.")
    return list(range(-options.top_layers, 0))


def train_config(options: argparse.Namespace, task: Task, train: datasets.Dataset) -> TrainConfig:
    """The settings of a run: those of the command line, others by `TrainConfig.for_task`."""
    return TrainConfig.for_task(
        options.out,
        task,
        rows=len(train),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )


def read_tables(
    options: argparse.Namespace,
) -> tuple[datasets.Dataset, datasets.Dataset | None, datasets.Dataset | None]:
    """The training, validation and test rows; None where there is no file."""
    train = read_rows(options.train)
    valid = None if options.valid is None else read_rows(options.valid)
    test = None if options.test is None else read_rows(options.test)
    return train, valid, test


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe; an error is one sentence without a traceback. Exit codes as of `peftcls`."""
    show_messages()
    limit = thread_limit()
    if limit is not None:
        torch.set_num_threads(min(limit, torch.get_num_threads()))
    try:
        main()
    except (ValueError, FloatingPointError, RunStoppedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_CODES[signal.SIGINT])


def only_dry_run(trainer: Trainer, options: argparse.Namespace, train: datasets.Dataset) -> bool:
    """Do and print a dry run if the options ask for one; return whether they do."""
    if not options.dry_run:
        return False
    description = describe_model(trainer.model, trainer.task)
    dry_run = trainer.dry_run(train)
    trainer.accelerator.print(description, dry_run, sep="\n")
    return True


def only_rehearse(trainer: Trainer, options: argparse.Namespace, train: datasets.Dataset) -> bool:
    """The former name of `only_dry_run`, for one version."""
    warnings.warn("only_rehearse is now called only_dry_run.", DeprecationWarning, stacklevel=2)
    return only_dry_run(trainer, options, train)


def find_columns(rows: datasets.Dataset, *names: str) -> list[str]:
    """The table's spelling of column names, which may differ in upper and lower case.

    Raises:
        RowError: a column is missing.
    """
    by_lower_case = {name.casefold(): name for name in rows.column_names}
    for name in names:
        if name.casefold() not in by_lower_case:
            raise RowError(
                f"{source_name(rows)} has no column {name!r}; it has {rows.column_names}. "
                f"This recipe needs {list(names)}."
            )
    return [by_lower_case[name.casefold()] for name in names]


def check_first(task: Task, options: argparse.Namespace, test: datasets.Dataset | None) -> None:
    """Check before training what would fail after it: output folder, test rows, file to answer.

    Raises:
        RowError: a test row has no text or an unknown label, or the file to answer lacks a column.
        ValueError: the predictions cannot be written to their path, or --out holds other files.
    """
    check_out_folder(Path(options.out))
    if test is not None:
        check_rows(task, test)
    if options.predict:
        check_rows(task, read_rows(options.predict), with_target=False)
        path = Path(options.predictions)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"--predictions {path}: expected a file in a folder that exists.")


def score_table(task: Task, test: datasets.Dataset, evaluations: Mapping[str, Evaluation]) -> str:
    """The first scores of each system on the test rows with their 95 % bootstrap intervals."""
    lines = []
    for system, evaluation in evaluations.items():
        line = {"system": system}
        for name in task.score_names[:MAX_SCORES_SHOWN]:
            low, high = evaluation.intervals[name]
            line[name] = f"{100 * evaluation.scores[name]:5.1f}"
            line[f"95 % interval of {name}"] = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(line)
    table = pd.DataFrame(lines).to_string(index=False)
    return f"{len(test)} rows of {source_name(test)}\n{table}"


def finish_recipe(
    trainer: Trainer,
    options: argparse.Namespace,
    train: datasets.Dataset,
    test: datasets.Dataset | None,
    others: dict[str, list[Answer] | None],
) -> None:
    """Answer the file of --predict, print the scores on the test rows, and write the report.

    Args:
        trainer: after `fit`.
        options: of `recipe_options`.
        train: the rows that were trained on.
        test: the rows to score; None for no scores.
        others: the answers of other systems to the test rows, by name; None or empty to leave out.
    """
    if options.predict:
        _answer_file(trainer, options.predict, options.predictions, options.submission)
    if test is None:
        return
    valid = read_rows(options.valid) if options.valid else None
    present = {name: answers for name, answers in others.items() if answers}
    report_scores(trainer, train, valid, test, present, options.meter)


def _answer_file(trainer: Trainer, source: str, predictions: str, as_submission: bool) -> None:
    rows = read_rows(source)
    answers = trainer.predict(rows)
    if not trainer.accelerator.is_main_process:
        return
    if not as_submission:
        write_answers(predictions, trainer.task, rows, answers)
    elif trainer.task.answer_kind == "span":
        write_spans(predictions, rows, answers)
    else:
        write_submission(predictions, rows, answers)
    print(f"{len(rows)} answers written to {predictions}")


def report_scores(
    trainer: Trainer,
    train: datasets.Dataset,
    valid: datasets.Dataset | None,
    test: datasets.Dataset,
    others: Mapping[str, Sequence[Answer]],
    meter: Meter,
) -> Evaluation:
    """Print the test scores of this run and of other systems, and write the report.

    The report goes into the adapter folder.

    Args:
        trainer: after `fit`.
        train: the rows that were trained on.
        valid: the rows that decided which step was best.
        test: the rows to answer.
        others: the answers of other systems, besides the baselines without a transformer.
        meter: made when the program began.

    Returns:
        The scores of this run with their intervals.
    """
    task = trainer.task
    started = time.perf_counter()
    answers = trainer.predict(test)
    seconds = {f"to answer {len(test)} rows": time.perf_counter() - started}
    metrics = trainer.config.own_metrics
    evaluation = evaluate_answers(task, answers, test, metrics=metrics, resamples=RESAMPLES)
    probe_answers = answers_at_start(trainer, test)
    if not trainer.accelerator.is_main_process:
        return evaluation

    systems = {**others, **baselines(task, train, test)}
    if probe_answers is not None:
        systems[PROBE] = probe_answers
    evaluations = {THIS_RUN: evaluation}
    for name, system_answers in systems.items():
        evaluations[name] = evaluate_answers(
            task,
            system_answers,
            test,
            metrics=metrics.for_answers(system_answers),
            resamples=RESAMPLES,
        )
    print(f"{score_table(task, test, evaluations)}\n\n{THIS_RUN}: {evaluation}")
    for sentence in weaknesses(trainer, train, valid):
        print(f"\n{sentence}")

    def count_tokens(text: str) -> int:
        return len(trainer.tokenizer(text, verbose=False)["input_ids"])

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
        run=describe_run(trainer, meter, seconds=seconds),
        count_tokens=count_tokens,
    )
    verdict = read_verdict(trainer.output_dir)
    if verdict:
        print(f"\n{verdict}")
    print(f"\nthe report of this run is {page}")
    return evaluation


def ask_untrained(
    trainer: Trainer, name: str, task: Task, rows: datasets.Dataset | None
) -> list[Answer] | None:
    """Zero-shot answers of a base model to a prompt; None if it is no causal language model.

    Args:
        trainer: says on which device the model runs.
        name: of the base model.
        task: the instruction that asks for the label.
        rows: the rows to answer; None for no answers.
    """
    if rows is None:
        return None
    try:
        model, tokenizer = load_base(name, task)
    except ValueError:
        return None
    if not base_facts(model).causal:
        return None
    return Predictor(model.to(trainer.accelerator.device), task, tokenizer).predict(rows)


def write_submission(path: str | Path, rows: datasets.Dataset, answers: Sequence[Answer]) -> None:
    """Write `uuid,Keywords,label` for every row.

    A row's answer fills one of the last two columns; the other is taken from the row if it has it.
    """
    lines = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        if answer.labels is None:
            keywords = row.get("Keywords") or ""
        else:
            keywords = "; ".join(answer.labels)
        label = answer.label or row.get("label") or ""
        lines.append([row.get("uuid", number), keywords, label])
    _write_csv(Path(path), ["uuid", "Keywords", "label"], lines)


def write_spans(path: str | Path, rows: datasets.Dataset, answers: Sequence[Answer]) -> None:
    """Write `id,text,start,end,probability` for every question.

    The columns text, start and end are empty if there is no answer.
    """
    lines = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        question_id = row.get("id", number)
        lines.append([question_id, answer.text, answer.start, answer.end, answer.probability])
    _write_csv(Path(path), ["id", "text", "start", "end", "probability"], lines)


def _write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Write a temporary file and rename it, so that the path never holds half of a file."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, newline="", encoding="utf-8"
    ) as temporary:
        csv.writer(temporary, lineterminator="\n").writerows([header, *lines])
    os.chmod(temporary.name, READABLE)
    os.replace(temporary.name, path)

"""`peftcls train`: from a file of rows to an adapter folder with scores, report and model card."""

import dataclasses
from typing import Any

from transformers import PreTrainedTokenizerBase

from peftcls.cli.finishing import finish
from peftcls.cli.folds import train_in_folds
from peftcls.cli.running import train
from peftcls.cli.seeds import train_other_seeds
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.tables import Files, Tables, examine, print_once, split_rows, tell_skipped
from peftcls.cli.train_setup import (
    TrainOptions,
    build_model,
    check_options,
    given_candidate,
    load_and_prepare,
    load_skipping_tokenizer,
    read_training_file,
    train_config,
)
from peftcls.models.pretrained_io import check_base
from peftcls.report import Meter
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.own_metrics import OwnMetrics
from peftcls.training.config import TrainConfig
from peftcls.training.prepare import Prepared
from peftcls.training.run_info import describe_model
from peftcls.training.search import Candidate, search
from peftcls.training.trainer import Trainer

DEMO_NOTE = (
    "the base is the tiny demo base, for trying the command; real ones are --model minilm and, for "
    "keywords and instructions, --model smollm2"
)


def train_file(options: TrainOptions) -> None:
    """Train on a file, save the adapter, and print the scores on the test rows.

    Raises:
        RowError: something is wrong with a row or a table.
        ValueError: something is wrong with an option.
    """
    check_options(options)
    check_base(options.base)
    if options.start is not None and options.model is None:
        print_once(f"the base is {options.base}, as --start names it")
    elif options.model is None:
        print_once(DEMO_NOTE)
    skipped = SkippedRows(options.skip_bad_rows, [options.file, options.valid, options.test])
    meter = Meter()
    if options.folds:
        train_in_folds(options, skipped, meter)
        return
    task, tables = _read_rows(options, skipped)
    examination = examine(task, tables)
    tell_skipped(skipped, writes=not options.dry_run)
    OwnMetrics(options.config["metrics"]).try_on(task, tables.test)
    config = train_config(options, task, len(tables.train))
    other_seeds = None
    if options.seeds and not options.dry_run:
        other_seeds = train_other_seeds(options, task, tables, examination, config)
    base, tokenizer, rows = load_and_prepare(options, task, tables, examination, seed=options.seed)
    candidate = given_candidate(options, config)
    if options.search and not options.dry_run:
        candidate = _search(base, task, tokenizer, config, rows, options.search)
        config = dataclasses.replace(config, learning_rate=candidate.learning_rate)
    model = build_model(options, task, base, candidate, seed=options.seed)
    with Trainer(model, task, tokenizer, config) as trainer:
        if options.dry_run:
            print_once(f"{describe_model(model, task)}\n{trainer.dry_run(rows)}")
            return
        train(trainer, rows, resume=options.resume, calibrate=options.calibrate)
        finish(
            trainer,
            tables,
            meter,
            file=options.file,
            push_to_hub=options.push_to_hub,
            other_seeds=other_seeds,
        )


def _read_rows(options: TrainOptions, skipped: SkippedRows) -> tuple[Task, Tables]:
    """Read, check and split the rows; the task has learnt from the training rows."""
    unlearnt_task, rows = read_training_file(options, skipped)
    task = unlearnt_task.learn(rows)
    files = Files(
        options.file,
        options.valid,
        options.test,
        options.source,
        options.seed,
        group=options.group,
        label_names=options.label_names,
        skipped=skipped,
        offers_folds=True,
    )
    tables = split_rows(files, task, rows, load_skipping_tokenizer(options))

    # The rows that were put aside teach the task nothing except the names of their labels.
    if isinstance(unlearnt_task, Classification):
        unlearnt_task = dataclasses.replace(unlearnt_task, labels=task.labels)
    return unlearnt_task.learn(tables.train), tables


def _search(
    base: Any,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    rows: Prepared,
    trials: int,
) -> Candidate:
    """The best of so many settings, by the validation rows; all of them are printed."""
    found = search(base, task, tokenizer, config, rows, trials=trials)
    print_once(
        f"{found}\nchosen on {len(rows.valid_rows or ())} validation rows: {found.best.name}"
    )
    return found.best

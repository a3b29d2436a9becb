"""`peftcls train --folds`: scores by cross-validation, and an adapter trained on all rows."""

import dataclasses
from collections.abc import Mapping, Sequence

import datasets

from peftcls.baselines import baselines
from peftcls.cli.finishing import finish_folder
from peftcls.cli.seeds import scratch_folder
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.tables import print_once, tell_skipped
from peftcls.cli.train_setup import (
    TrainOptions,
    build_model,
    given_candidate,
    load_run_base,
    load_skipping_tokenizer,
    read_training_file,
    train_config,
)
from peftcls.data.reading import source_name
from peftcls.data.row_numbers import name_part, select_rows
from peftcls.engine.model_state import base_facts
from peftcls.evaluation import Evaluation, evaluate_answers
from peftcls.quality.examine import refuse_errors
from peftcls.recipe import RESAMPLES, score_table
from peftcls.report import THIS_RUN, Meter, write_report
from peftcls.report.write import read_verdict
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.tasks.row_checks import check_rows
from peftcls.training.cross_validation import CrossValidation, assign_rows, cross_validate
from peftcls.training.judgement import PROBE
from peftcls.training.prepare import prepare
from peftcls.training.run_info import describe_model
from peftcls.training.run_report import describe_run
from peftcls.training.trainer import Trainer

MAX_SHOWN_DOUBTS = 5


def train_in_folds(options: TrainOptions, skipped: SkippedRows, meter: Meter) -> None:
    """Score the run by cross-validation, then train on all rows and save that adapter.

    Args:
        options: of the run.
        skipped: takes the rows with errors, where they are to be left out.
        meter: made when the command began.

    Raises:
        RowError: something is wrong with a row or the table.
        ValueError: something is wrong with an option.
    """
    assert options.folds is not None, "--folds is given"
    task, rows = _read_rows(options, skipped)
    examination = refuse_errors(task, rows)
    tell_skipped(skipped, writes=not options.dry_run)
    # All that can be wrong with the folds is found before a base is loaded.
    assign_rows(task, rows, options.folds, options.seed, options.group)
    base, tokenizer = load_run_base(options, task, seed=options.seed)
    config = train_config(options, task, len(rows))
    model = build_model(options, task, base, given_candidate(options, config), seed=options.seed)
    cache = options.source.cache
    prepared = prepare(
        task,
        rows,
        None,
        tokenizer,
        base_facts(model),
        examination=examination,
        cache_dir=cache,
    )
    if options.dry_run:
        with Trainer(model, task, tokenizer, config) as trainer:
            print_once(f"{describe_model(model, task)}\n{trainer.dry_run(prepared)}")
        return
    with scratch_folder(options.out, "folds") as folder:
        found = cross_validate(
            model,
            task,
            tokenizer,
            dataclasses.replace(config, output_dir=folder, cache_dir=cache),
            rows,
            folds=options.folds,
            group=options.group,
        )
    with Trainer(model, task, tokenizer, config) as trainer:
        print_once(f"training on all {len(rows)} rows, with the settings of the folds")
        trainer.fit(prepared)
        if trainer.accelerator.is_main_process:
            _finish(trainer, found, rows, options, meter)


def _read_rows(options: TrainOptions, skipped: SkippedRows) -> tuple[Task, datasets.Dataset]:
    """The checked rows of FILE, and the task that has learnt from them."""
    unlearnt_task, rows = read_training_file(options, skipped)
    task = unlearnt_task.learn(rows)
    tokenizer = load_skipping_tokenizer(options)
    rows = skipped.left_out(task, rows, training=True, tokenizer=tokenizer)
    check_rows(task, rows, training=True)
    return unlearnt_task.learn(rows), rows


def _finish(
    trainer: Trainer,
    found: CrossValidation,
    rows: datasets.Dataset,
    options: TrainOptions,
    meter: Meter,
) -> None:
    """Print the scores of the folds, write report and model card, and push the folder if asked."""
    task = trainer.task
    name = source_name(rows)
    scored = name_part(
        rows.select(range(len(rows))),
        f"{name}, each answered by a fold that was not trained on it",
    )
    systems = _baselines_of_folds(task, rows, found.fold_of)
    if found.probe_answers is not None:
        systems[PROBE] = found.probe_answers
    evaluations = _evaluate(trainer, found.answers, systems, scored)
    print(f"{score_table(task, scored, evaluations)}\n\n{THIS_RUN}: {evaluations[THIS_RUN]}")
    print(f"\n{found}{_tell_doubts(found)}")
    page = write_report(
        options.out,
        task=task,
        train=rows,
        test=scored,
        answers=found.answers,
        systems=systems,
        evaluations=evaluations,
        resamples=RESAMPLES,
        crossed=True,
        run=describe_run(trainer, meter),
        count_tokens=lambda text: len(trainer.tokenizer(text, verbose=False)["input_ids"]),
    )
    verdict = read_verdict(options.out)
    if verdict:
        print(f"\n{verdict}")
    print(f"\nthe report of this run is {page}")
    facts = {
        "learnt from": f"{len(rows)} rows ({name})",
        "test rows": f"{source_name(scored)} ({options.folds} folds)",
    }
    finish_folder(
        options.out,
        scores=evaluations[THIS_RUN],
        facts=facts,
        file=options.file,
        push_to_hub=options.push_to_hub,
    )


def _baselines_of_folds(
    task: Task, rows: datasets.Dataset, fold_of: Sequence[int]
) -> dict[str, list[Answer]]:
    """The answers of the baselines to all rows, each fitted without the rows of the same fold."""
    by_system: dict[str, dict[int, Answer]] = {}
    for fold in sorted(set(fold_of)):
        held = [row for row, own in enumerate(fold_of) if own == fold]
        others = [row for row, own in enumerate(fold_of) if own != fold]
        answered = baselines(task, select_rows(rows, others), select_rows(rows, held))
        for name, answers in answered.items():
            by_system.setdefault(name, {}).update(zip(held, answers, strict=True))
    # A system that could not be fitted in one of the folds has no answer to some rows.
    return {
        name: [answers[row] for row in range(len(rows))]
        for name, answers in by_system.items()
        if len(answers) == len(rows)
    }


def _evaluate(
    trainer: Trainer,
    answers: Sequence[Answer],
    systems: Mapping[str, Sequence[Answer]],
    rows: datasets.Dataset,
) -> dict[str, Evaluation]:
    """The scores of the folds and of the baselines, with intervals."""
    metrics = trainer.config.own_metrics
    evaluations = {}
    for name, given in {THIS_RUN: answers, **systems}.items():
        own = metrics if name == THIS_RUN else metrics.for_answers(given)
        evaluations[name] = evaluate_answers(
            trainer.task, given, rows, metrics=own, resamples=RESAMPLES
        )
    return evaluations


def _tell_doubts(found: CrossValidation) -> str:
    """The rows whose own label is least likely, one a line: look there for wrong labels."""
    doubted = [doubt for doubt in found.doubts if doubt.given != doubt.label]
    if not doubted:
        return ""
    lines = ["", "rows whose label is doubted most:"]
    for doubt in doubted[:MAX_SHOWN_DOUBTS]:
        lines.append(
            f"  row {doubt.row}: {doubt.label!r} has the probability {doubt.probability:.2f}, "
            f"the answer is {doubt.given!r}"
        )
    return "\n".join(lines)

"""`peftcls learn-on`: train an adapter further on new rows, and show what was forgotten."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from peftcls.cli.finishing import finish
from peftcls.cli.label_naming import name_labels
from peftcls.cli.running import train
from peftcls.cli.seen_rows import note_of_seen_rows
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.sources import Source
from peftcls.cli.tables import Files, Tables, examine, print_once, split_rows, tell_skipped
from peftcls.cli.train_setup import check_output
from peftcls.data.row_numbers import select_rows
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_manifest import read_manifest, read_task
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.report import Meter
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.decisions import PLAIN
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.prompts import MIN_NEW_TOKENS
from peftcls.tasks.row_checks import check_rows
from peftcls.training.config import TrainConfig
from peftcls.training.continual import (
    Scores,
    add_old_rows,
    choose_replayed,
    compare_scores,
    learn_on,
)
from peftcls.training.prepare import prepare
from peftcls.training.trainer import Trainer

OLD = "rows of --replay"
LITTLE_LOSS = 0.02
# Fewer rows cannot show that an adapter has forgotten little.
MIN_SCORED_ROWS = 50
NO_OLD_ROWS = (
    "no old rows are given: an adapter that learns only from new rows may forget the old ones, and "
    "no score of this run would show it. Give rows of its first training with --replay FILE, or "
    "train anew on old and new rows together with peftcls train."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnOnOptions:
    """The options of `peftcls learn-on`; their meaning is in its help."""

    directory: Path
    file: str
    replay: str | None
    replay_share: float
    label_names: str | None
    valid: str | None
    test: str | None
    group: str | None
    skip_bad_rows: Path | None
    base: str | None
    config: Mapping[str, Any]
    calibrate: bool
    out: Path
    resume: bool
    overwrite: bool
    source: Source


def learn_on_file(options: LearnOnOptions) -> None:
    """Train a folder's adapter on further rows, save it, and print its scores before and after.

    Raises:
        RowError: something is wrong with a row or a table.
        ValueError: something is wrong with an option or with the folder.
    """
    check_output(options.out, replaces=options.overwrite, resumes=options.resume)
    read = [options.file, options.valid, options.test, options.replay]
    skipped = SkippedRows(options.skip_bad_rows, read)
    meter = Meter()
    tables, old_rows = _read_rows(options, skipped)
    model, task, tokenizer = learn_on(options.directory, tables.train, base=options.base)
    examination = examine(task, tables)
    tell_skipped(skipped, writes=True)
    if old_rows is None:
        print_once(NO_OLD_ROWS)
    elif note := note_of_seen_rows(options.directory, str(options.replay), old_rows):
        print_once(f"{note} The score before is of such rows too.")
    rows = prepare(
        task,
        tables.train,
        tables.valid,
        tokenizer,
        base_facts(model),
        examination=examination,
        cache_dir=options.source.cache,
    )
    # A head that was trained before learns by its answers.
    config = TrainConfig.for_task(
        options.out, task, rows=len(tables.train), objective="answers", **options.config
    )
    with Trainer(model, task, tokenizer, config) as trainer:
        before = _scores(trainer, tables, old_rows)
        train(trainer, rows, resume=options.resume, calibrate=options.calibrate)
        after = _scores(trainer, tables, old_rows)
        score = task.score_names[0]
        print_once(compare_scores(before, after, scores=[score]))
        if old_rows is not None:
            advise_on_forgetting(score, before[OLD][score], after[OLD][score], options.replay_share)
        finish(trainer, tables, meter, file=options.file)


def _read_rows(
    options: LearnOnOptions, skipped: SkippedRows
) -> tuple[Tables, datasets.Dataset | None]:
    """The rows of the run, and the old rows that are scored; None without --replay."""
    rows = skipped.read(options.source, options.file, use="train")
    manifest = read_manifest(options.directory)
    saved_task = read_task(options.directory, manifest)
    rows = name_labels(rows, saved_task, options.label_names, options.source)
    # What cannot be read must not teach the task a label.
    rows = skipped.left_out(_with_any_label(saved_task), rows, training=True)
    task = saved_task.extended(rows)
    files = Files(
        options.file,
        options.valid,
        options.test,
        options.source,
        int(options.config["seed"]),
        label_names=options.label_names,
        group=options.group,
        skipped=skipped,
        replays=options.replay is not None,
    )
    tokenizer = None
    if options.skip_bad_rows is not None:
        tokenizer = load_tokenizer_only(options.base or manifest["base"]["name"])
    tables = split_rows(files, task, rows, tokenizer)
    if options.replay is None:
        return tables, None
    old_rows = skipped.read_other(options.source, options.replay, use="train")
    old_rows = name_labels(old_rows, task, options.label_names, options.source)
    old_rows = skipped.left_out(task, old_rows, tokenizer=tokenizer)
    check_rows(task, old_rows)
    share = options.replay_share
    replayed, others = choose_replayed(tables.train, old_rows, share=share, seed=files.seed)
    tables.train = add_old_rows(tables.train, old_rows, replayed)
    return tables, _scored_old_rows(old_rows, len(replayed), others)


def _scored_old_rows(
    old_rows: datasets.Dataset, replayed: int, others: Sequence[int]
) -> datasets.Dataset:
    """The old rows that show what was forgotten: those not trained on again, if they are enough."""
    trained_on = f"{replayed} of the {len(old_rows)} rows of --replay are trained on again"
    if len(others) < MIN_SCORED_ROWS:
        print_once(
            f"{trained_on}. Too few others are left, so all of them are scored; their score after "
            "the run is a little too high."
        )
        return old_rows
    print_once(f"{trained_on}; {len(others)} others show what was forgotten.")
    return select_rows(old_rows, others)


def _with_any_label(task: Task) -> Task:
    """A task that reads rows with labels that it does not know yet."""
    if isinstance(task, Classification):
        return dataclasses.replace(task, labels=None, decisions=PLAIN)
    if isinstance(task, Instruction) and task.labels:
        return dataclasses.replace(
            task, labels=None, decisions=PLAIN, max_new_tokens=MIN_NEW_TOKENS
        )
    return task


def _scores(trainer: Trainer, tables: Tables, old_rows: datasets.Dataset | None) -> Scores:
    """The scores on the new test rows, and on the old rows if there are any."""
    scores = {"new test rows": trainer.evaluate(tables.test)}
    if old_rows is not None:
        scores[OLD] = trainer.evaluate(old_rows)
    return scores


def advise_on_forgetting(score: str, before: float, after: float, share: float) -> None:
    """Say what helps where the old rows are answered clearly worse than before."""
    if after >= before - LITTLE_LOSS:
        return
    print_once(
        f"the adapter has forgotten some of what it knew: on the rows of --replay its {score} was "
        f"{before:.2f} and is {after:.2f}. To forget less, give a larger --replay-share (it was "
        f"{share:g}) or more rows in --replay, or train anew on old and new rows together with "
        "peftcls train."
    )

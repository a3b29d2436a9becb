"""`peftcls learn-on`: train an adapter further on new rows, and show what was forgotten."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from peftcls.cli.finishing import finish
from peftcls.cli.label_naming import name_labels
from peftcls.cli.running import train
from peftcls.cli.sources import Source
from peftcls.cli.tables import Files, Tables, examine, print_once, split_rows
from peftcls.cli.train_setup import check_output
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_manifest import read_manifest, read_task
from peftcls.report import Meter
from peftcls.tasks.row_checks import check_rows
from peftcls.training.config import TrainConfig
from peftcls.training.continual import Scores, compare_scores, learn_on, with_replay
from peftcls.training.prepare import prepare
from peftcls.training.trainer import Trainer

OLD = "rows of --replay"
LITTLE_LOSS = 0.02


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
    meter = Meter()
    tables, old_rows = _read_rows(options)
    model, task, tokenizer = learn_on(options.directory, tables.train, base=options.base)
    examination = examine(task, tables)
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
            _advise(before[OLD][score], after[OLD][score], options.replay_share)
        finish(trainer, tables, meter, file=options.file)


def _read_rows(options: LearnOnOptions) -> tuple[Tables, datasets.Dataset | None]:
    """The rows of the run, and the old rows that were not replayed; None without --replay."""
    rows = options.source.read(options.file)
    saved_task = read_task(options.directory, read_manifest(options.directory))
    rows = name_labels(rows, saved_task, options.label_names)
    task = saved_task.extended(rows)
    files = Files(
        options.file,
        options.valid,
        options.test,
        options.source,
        int(options.config["seed"]),
        label_names=options.label_names,
        group=options.group,
    )
    tables = split_rows(files, task, rows)
    if options.replay is None:
        return tables, None
    old_rows = options.source.read_other(options.replay)
    check_rows(task, old_rows)
    tables.train = with_replay(tables.train, old_rows, share=options.replay_share, seed=files.seed)
    return tables, old_rows


def _scores(trainer: Trainer, tables: Tables, old_rows: datasets.Dataset | None) -> Scores:
    """The scores on the new test rows, and on the old rows if there are any."""
    scores = {"new test rows": trainer.evaluate(tables.test)}
    if old_rows is not None:
        scores[OLD] = trainer.evaluate(old_rows)
    return scores


def _advise(before: float, after: float, share: float) -> None:
    """Say what helps where the old rows are answered clearly worse than before."""
    if after < before - LITTLE_LOSS:
        print_once(
            f"the rows of --replay are answered worse than before: give a larger --replay-share "
            f"(it was {share:g}), or train anew on all rows together."
        )

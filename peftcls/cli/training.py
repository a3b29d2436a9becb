"""`peftcls train`: from a file of rows to an adapter folder with scores, report and model card."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from peftcls.cli.column_guessing import guess_columns
from peftcls.cli.finishing import finish
from peftcls.cli.label_naming import name_labels
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.sources import Source
from peftcls.cli.tables import (
    Files,
    Tables,
    examine,
    labels_remark,
    print_once,
    split_rows,
    tell_skipped,
)
from peftcls.cli.task_building import task_for
from peftcls.engine.model_choices import Quantize
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.base_model import load_base
from peftcls.models.lora_injection import DEFAULT_RANK, attach_lora
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.models.trainable import Part, train_only
from peftcls.report import Meter
from peftcls.report.files import check_out_folder
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.own_metrics import OwnMetrics
from peftcls.training.config import TrainConfig
from peftcls.training.prepare import Prepared, log_warnings, prepare
from peftcls.training.run_info import describe_model
from peftcls.training.search import Candidate, search
from peftcls.training.trainer import Trainer

# A whole pretrained model needs smaller steps than a new adapter.
LEARNING_RATE_OF_ALL = 5e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `peftcls train`; their meaning is in its help.

    `task_settings`, `adapter` and `config` are the settings of the task, of `attach_lora` and of
    `TrainConfig`, by name; None where an option is not given.
    """

    file: str
    out: Path
    kind: str | None
    text: tuple[str, ...]
    label: str | None
    label_names: str | None
    valid: str | None
    test: str | None
    skip_bad_rows: Path | None
    model: str
    quantize: Quantize | None
    dtype: str | None
    part: Part | None
    task_settings: Mapping[str, Any]
    adapter: Mapping[str, Any]
    config: Mapping[str, Any]
    search: int | None
    calibrate: bool
    resume: bool
    overwrite: bool
    dry_run: bool
    push_to_hub: str | None
    source: Source

    @property
    def seed(self) -> int:
        """Of the rows put aside, new weights and order."""
        return int(self.config["seed"])

    @property
    def given_adapter(self) -> dict[str, Any]:
        """The settings of the adapter that are given."""
        return {name: value for name, value in self.adapter.items() if value is not None}


def train_file(options: TrainOptions) -> None:
    """Train on a file, save the adapter, and print the scores on the test rows.

    Raises:
        RowError: something is wrong with a row or a table.
        ValueError: something is wrong with an option.
    """
    _check_options(options)
    skipped = SkippedRows(options.skip_bad_rows, [options.file, options.valid, options.test])
    meter = Meter()
    task, tables = _read_rows(options, skipped)
    examination = examine(task, tables)
    tell_skipped(skipped, writes=not options.dry_run)
    OwnMetrics(options.config["metrics"]).try_on(task, tables.test)
    base, tokenizer = load_base(
        options.model,
        task,
        quantize=options.quantize,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        seed=options.seed,
    )
    rows = prepare(
        task,
        tables.train,
        tables.valid,
        tokenizer,
        base_facts(base),
        examination=examination,
        cache_dir=options.source.cache,
    )
    config = _train_config(options, task, len(tables.train))
    candidate = Candidate(
        config.learning_rate,
        options.adapter["rank"] or DEFAULT_RANK,
        adapter_targets(options.adapter["targets"]),
    )
    if options.search and not options.dry_run:
        candidate = _search(base, task, tokenizer, config, rows, options.search)
        config = dataclasses.replace(config, learning_rate=candidate.learning_rate)
    model = _build_model(options, task, base, candidate)
    with Trainer(model, task, tokenizer, config) as trainer:
        if options.dry_run:
            print_once(f"{describe_model(model, task)}\n{trainer.dry_run(rows)}")
            return
        train(trainer, rows, resume=options.resume, calibrate=options.calibrate)
        finish(trainer, tables, meter, file=options.file, push_to_hub=options.push_to_hub)


def _check_options(options: TrainOptions) -> None:
    given = ", ".join(f"--{name}" for name in options.given_adapter)
    if options.part and given:
        raise ValueError(
            f"--part trains the model itself; it cannot be used with {given}, which "
            "is for an adapter."
        )
    if options.search and (options.part or set(options.given_adapter) - {"dropout"}):
        raise ValueError(
            "--search tries ranks and targets of a LoRA adapter; it cannot be used with "
            f"{given or '--part'}."
        )
    check_output(options.out, replaces=options.resume or options.overwrite or options.dry_run)


def check_output(folder: Path, *, replaces: bool) -> None:
    """Raise ValueError where a run cannot write its folder, or would replace an adapter in it.

    Args:
        folder: the value of --out.
        replaces: whether an adapter may be replaced.
    """
    check_out_folder(folder)
    manifest = folder / MANIFEST
    if replaces or not manifest.is_file():
        return
    saved = datetime.datetime.fromtimestamp(manifest.stat().st_mtime)
    raise ValueError(
        f"{folder} holds an adapter already, saved on {saved:%Y-%m-%d at %H:%M} (peftcls show "
        f"{folder}). Choose another --out, or replace it with --overwrite."
    )


def _read_rows(options: TrainOptions, skipped: SkippedRows) -> tuple[Task, Tables]:
    """Read, check and split the rows; the task has learnt from the training rows."""
    rows = options.source.read(options.file)
    columns = guess_columns(
        rows,
        kind=options.kind,
        text=options.text,
        label=options.label,
        separator=options.task_settings["separator"],
    )
    unlearnt_task = task_for(columns, options.task_settings)
    rows = name_labels(rows, unlearnt_task, options.label_names)
    # What cannot be read must not teach the task its labels; what does not fit is found afterwards.
    rows = skipped.left_out(unlearnt_task, rows, training=True)
    task = unlearnt_task.learn(rows)
    print_once(f"{columns}{labels_remark(task)}")
    files = Files(
        options.file,
        options.valid,
        options.test,
        options.source,
        options.seed,
        label_names=options.label_names,
        skipped=skipped,
    )
    tokenizer = load_tokenizer_only(options.model) if options.skip_bad_rows else None
    tables = split_rows(files, task, rows, tokenizer)

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


def _build_model(options: TrainOptions, task: Task, base: Any, candidate: Candidate) -> Any:
    """The base model with an adapter, or with a part of its own to train."""
    if options.part:
        return train_only(base, task, options.part)
    settings = options.given_adapter
    settings |= {"rank": candidate.rank, "targets": candidate.targets, "seed": options.seed}
    if "layers" in settings:
        settings["layers"] = parse_layers(settings["layers"])
    return attach_lora(base, task, **settings)


def parse_layers(layers: str) -> list[int]:
    """The numbers of --layers.

    Raises:
        ValueError: they are no whole numbers with commas between them.
    """
    try:
        return [int(number) for number in layers.split(",")]
    except ValueError:
        raise ValueError(
            f"--layers {layers!r}: expected numbers of layers with commas between them, from 0, "
            "or negative ones for those from the top: --layers -2,-1."
        ) from None


def adapter_targets(targets: str | None) -> Any:
    """The value of --targets: one of the known groups of modules, or a list of module names."""
    if targets is None or targets in ("attention", "all-linear"):
        return targets
    return targets.split(",")


def _train_config(options: TrainOptions, task: Task, rows: int) -> TrainConfig:
    settings = dict(options.config)
    if settings["learning_rate"] is None and options.part == "all":
        settings["learning_rate"] = LEARNING_RATE_OF_ALL
    return TrainConfig.for_task(options.out, task, rows=rows, **settings)


def train(trainer: Trainer, rows: Prepared, *, resume: bool, calibrate: bool) -> None:
    """Train, and fit the task's decisions.

    Args:
        trainer: of the run.
        rows: of the run.
        resume: continue from the newest checkpoint.
        calibrate: fit temperature and thresholds. The threshold below which a question gets no
            answer is always fitted.
    """
    if trainer.accelerator.is_main_process:
        log_warnings(rows.examination)
    trainer.fit(rows, resume=resume)
    task = trainer.task
    valid = rows.valid_rows
    assert valid is not None, "the command always has validation rows"
    if isinstance(task, ExtractiveQA) and task.unanswerable:
        calibrate = any(task.answerable(valid))
    if calibrate:
        trainer.calibrate(valid)

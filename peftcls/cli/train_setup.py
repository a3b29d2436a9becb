"""What every kind of `peftcls train` begins with: options, rows, task, base, model and settings."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.cli.column_guessing import guess_columns
from peftcls.cli.label_naming import name_labels
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.sources import Source
from peftcls.cli.tables import Tables, labels_remark, print_once
from peftcls.cli.task_building import task_for
from peftcls.data.column_names import find_column
from peftcls.engine.launcher import launcher_asks_for_shares
from peftcls.engine.model_choices import Quantize
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.adapter_start import attach_adapter, read_start
from peftcls.models.base_model import load_base
from peftcls.models.folder_safety import ADAPTER_CONFIG
from peftcls.models.lora_injection import DEFAULT_RANK, attach_lora, check_method_in_shares
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.models.trainable import Part, train_only
from peftcls.quality.findings import Examination
from peftcls.report.files import METRICS, check_out_folder
from peftcls.tasks.base import Task
from peftcls.training.checkpoint import find_checkpoints
from peftcls.training.config import TrainConfig
from peftcls.training.prepare import Prepared, prepare
from peftcls.training.search import Candidate

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
    group: str | None
    skip_bad_rows: Path | None
    model: str | None
    quantize: Quantize | None
    shard: bool | None
    dtype: str | None
    part: Part | None
    start: Path | None
    task_settings: Mapping[str, Any]
    adapter: Mapping[str, Any]
    config: Mapping[str, Any]
    search: int | None
    folds: int | None
    seeds: int | None
    calibrate: bool
    resume: bool
    overwrite: bool
    dry_run: bool
    push_to_hub: str | None
    source: Source

    @property
    def base(self) -> str:
        """The name of the base model: that of the adapter to start from, unless one is given.

        Raises:
            ValueError: the adapter to start from cannot be one, or names no base.
        """
        if self.model is not None or self.start is None:
            return self.model or "demo"
        settings, _ = read_start(self.start)
        name: str | None = settings.get("base_model_name_or_path")
        if not name:
            raise ValueError(f"--start {self.start} does not name its base; give it as --model.")
        return name

    @property
    def seed(self) -> int:
        """Of the rows put aside, new weights and order."""
        return int(self.config["seed"])

    @property
    def given_adapter(self) -> dict[str, Any]:
        """The settings of the adapter that are given."""
        return {name: value for name, value in self.adapter.items() if value is not None}


def check_options(options: TrainOptions) -> None:
    """Raise ValueError for options that exclude each other, and for an --out that cannot be."""
    given = ", ".join(f"--{name}" for name in options.given_adapter)
    if options.part and given:
        raise ValueError(
            f"--part trains the model itself; it cannot be used with {given}, which "
            "is for an adapter."
        )
    if options.start is not None:
        own = {f"--{name}": name != "dropout" for name in options.given_adapter}
        _refuse_beside(
            "--start has an adapter with its own rank, scale and layers",
            {"--part": options.part, "--search": options.search, **own},
        )
        read_start(options.start)
    if options.search and (options.part or set(options.given_adapter) - {"dropout"}):
        raise ValueError(
            "--search tries ranks and targets of a LoRA adapter; it cannot be used with "
            f"{given or '--part'}."
        )
    if options.folds:
        _refuse_beside(
            "--folds holds out each row once and trains on all rows at the end, so no rows choose "
            "or measure beside them",
            {
                "--valid": options.valid,
                "--test": options.test,
                "--search": options.search,
                "--seeds": options.seeds,
                "--calibrate": options.calibrate,
                "--patience": options.config["patience"],
                "--monitor": options.config["monitor"],
                "--resume": options.resume,
            },
        )
    if options.seeds:
        _refuse_beside(
            "--seeds repeats one run with the same settings, from its first step",
            {"--search": options.search, "--resume": options.resume},
        )
    if options.shard or launcher_asks_for_shares():
        check_method_in_shares(options.adapter["method"])
    check_output(options.out, replaces=options.overwrite or options.dry_run, resumes=options.resume)


def _refuse_beside(reason: str, others: Mapping[str, Any]) -> None:
    """Raise ValueError if any of these options is given."""
    given = [name for name, value in others.items() if value]
    if given:
        raise ValueError(f"{reason}; it cannot be used with {', '.join(given)}.")


def check_output(folder: Path, *, replaces: bool, resumes: bool) -> None:
    """Raise ValueError where a run would write among a user's files, or replace an adapter.

    Args:
        folder: the value of --out.
        replaces: whether an adapter may be replaced.
        resumes: whether the run continues from a checkpoint; beside an adapter there must be one.
    """
    check_out_folder(folder)
    manifest = folder / MANIFEST
    if replaces:
        return
    if not manifest.is_file():
        if (folder / ADAPTER_CONFIG).is_file() and not resumes:
            raise ValueError(
                f"{folder} holds an adapter that another program wrote ({ADAPTER_CONFIG}). Choose "
                "another --out, or replace it with --overwrite."
            )
        return
    if resumes:
        _check_unfinished(folder)
        return
    saved = datetime.datetime.fromtimestamp(manifest.stat().st_mtime)
    raise ValueError(
        f"{folder} holds an adapter already, saved on {saved:%Y-%m-%d at %H:%M} (peftcls show "
        f"{folder}). Choose another --out, or replace it with --overwrite."
    )


def _check_unfinished(folder: Path) -> None:
    """Raise ValueError where the run of an adapter in a folder has no step left to take."""
    if find_checkpoints(folder):
        return
    choice = "Choose another --out, or replace it with --overwrite."
    if not (folder / METRICS).is_file():
        choice = (
            "It has no report: the run was ended just before that, or was not one of this command. "
            f"Score it with peftcls evaluate {folder} FILE, or replace it with --overwrite."
        )
    raise ValueError(
        f"{folder} holds a finished adapter and no checkpoint: there is nothing to resume. {choice}"
    )


def read_training_file(
    options: TrainOptions, skipped: SkippedRows
) -> tuple[Task, datasets.Dataset]:
    """The task before it has learnt, and the rows of FILE that it can read.

    What was guessed is printed.

    Args:
        options: of the run.
        skipped: takes the rows that the task cannot read, where they are to be left out.
    """
    rows = skipped.read(options.source, options.file, use="train")
    settings = dict(options.task_settings)
    other_columns = []
    if settings["weight"] is not None:
        settings["weight"] = find_column(rows, settings["weight"])
        other_columns.append(settings["weight"])
    if options.group is not None:
        other_columns.append(find_column(rows, options.group))
    columns = guess_columns(
        rows,
        kind=options.kind,
        text=options.text,
        label=options.label,
        separator=settings["separator"],
        other_columns=other_columns,
    )
    task = task_for(columns, settings)
    rows = name_labels(rows, task, options.label_names, options.source)
    # What cannot be read must not teach the task its labels; what does not fit is found afterwards.
    rows = skipped.left_out(task, rows, training=True)
    print_once(f"{columns}{labels_remark(task.learn(rows))}")
    return task, rows


def load_skipping_tokenizer(options: TrainOptions) -> PreTrainedTokenizerBase | None:
    """The tokenizer of --model where rows that do not fit are left out; None where none is."""
    return load_tokenizer_only(options.base) if options.skip_bad_rows else None


def load_run_base(
    options: TrainOptions, task: Task, *, seed: int
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base model of --model with its tokenizer; the seed draws a new head."""
    return load_base(
        options.base,
        task,
        quantize=options.quantize,
        shard=options.shard,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        seed=seed,
    )


def load_and_prepare(
    options: TrainOptions, task: Task, tables: Tables, examination: Examination, *, seed: int
) -> tuple[Any, PreTrainedTokenizerBase, Prepared]:
    """The base model and its tokenizer, as of `load_run_base`, and the rows, encoded for it."""
    base, tokenizer = load_run_base(options, task, seed=seed)
    rows = prepare(
        task,
        tables.train,
        tables.valid,
        tokenizer,
        base_facts(base),
        examination=examination,
        cache_dir=options.source.cache,
    )
    return base, tokenizer, rows


def train_config(options: TrainOptions, task: Task, rows: int) -> TrainConfig:
    """The settings of the run: those that are given, and defaults for so many training rows."""
    settings = dict(options.config)
    if settings["learning_rate"] is None and options.part == "all":
        settings["learning_rate"] = LEARNING_RATE_OF_ALL
    return TrainConfig.for_task(options.out, task, rows=rows, **settings)


def given_candidate(options: TrainOptions, config: TrainConfig) -> Candidate:
    """The settings that --search would choose, as they are without it."""
    return Candidate(
        config.learning_rate,
        options.adapter["rank"] or DEFAULT_RANK,
        adapter_targets(options.adapter["targets"]),
    )


def build_model(
    options: TrainOptions, task: Task, base: Any, candidate: Candidate, *, seed: int
) -> Any:
    """The base model with an adapter, or with a part of its own to train."""
    if options.part:
        return train_only(base, task, options.part)
    if options.start is not None:
        dropout = options.adapter["dropout"]
        return attach_adapter(base, task, options.start, dropout=dropout, seed=seed)
    settings = options.given_adapter
    settings |= {"rank": candidate.rank, "targets": candidate.targets, "seed": seed}
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
    return [name.strip() for name in targets.split(",")]

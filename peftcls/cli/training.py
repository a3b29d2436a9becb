"""`peftcls train`: from a file of rows to an adapter folder with scores, report and model card."""

import dataclasses
import datetime
import hashlib
import os
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from peftcls.cli.column_guessing import guess_columns
from peftcls.cli.folders import push_folder
from peftcls.cli.sources import Source
from peftcls.cli.task_building import parse_labels, task_for
from peftcls.data.reading import name_source, source_name
from peftcls.engine.model_choices import Pooling, Quantize
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.adapter_methods import Method
from peftcls.models.base_model import load_base
from peftcls.models.lora_injection import DEFAULT_RANK, attach_lora
from peftcls.models.model_card import is_own_card, write_card
from peftcls.models.trainable import Part, train_only
from peftcls.quality.examine import refuse_errors
from peftcls.quality.findings import Examination
from peftcls.recipe import report_scores
from peftcls.report import Meter
from peftcls.report.files import check_out_folder
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.row_checks import check_rows
from peftcls.tasks.splitting import split_off
from peftcls.training.config import TrainConfig
from peftcls.training.prepare import Prepared, log_warnings, prepare
from peftcls.training.run_info import describe_model, first_labels
from peftcls.training.search import Candidate, search
from peftcls.training.trainer import Trainer

# The share of all rows that is put aside for validation, and for the test.
HELD_OUT_SHARE = 0.15
# A whole pretrained model needs smaller steps than a new adapter.
LEARNING_RATE_OF_ALL = 5e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `peftcls train`; their meaning is in its help."""

    file: str
    out: Path
    kind: str | None
    text: tuple[str, ...]
    label: str | None
    labels: str | None
    prompt: str | None
    class_weight: str | None
    valid: str | None
    test: str | None
    model: str
    quantize: Quantize | None
    method: Method | None
    rank: int | None
    targets: str | None
    part: Part | None
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    search: int | None
    pooling: Pooling | None
    max_length: int | None
    max_new_tokens: int | None
    seed: int
    resume: bool
    overwrite: bool
    dry_run: bool
    trackers: tuple[str, ...]
    push_to_hub: str | None
    source: Source


@dataclasses.dataclass
class Tables:
    """The rows of a run: to train on, to choose the best epoch by, and to score."""

    train: datasets.Dataset
    valid: datasets.Dataset
    test: datasets.Dataset


def train_file(options: TrainOptions) -> None:
    """Train on a file, save the adapter, and print the scores on the test rows.

    Raises:
        RowError: something is wrong with a row or a table.
        ValueError: something is wrong with an option.
    """
    _check_options(options)
    meter = Meter()
    task, tables = _read_rows(options)
    examination = _examine(task, tables)
    base, tokenizer = load_base(options.model, task, quantize=options.quantize, seed=options.seed)
    rows = prepare(
        task, tables.train, tables.valid, tokenizer, base_facts(base), examination=examination
    )
    config = _train_config(options, task, len(tables.train))
    candidate = Candidate(
        config.learning_rate, options.rank or DEFAULT_RANK, _adapter_targets(options.targets)
    )
    if options.search and not options.dry_run:
        candidate = _search(base, task, tokenizer, config, rows, options.search)
        config = dataclasses.replace(config, learning_rate=candidate.learning_rate)
    model = _build_model(options, task, base, candidate)
    with Trainer(model, task, tokenizer, config) as trainer:
        if options.dry_run:
            _print_once(f"{describe_model(model, task)}\n{trainer.dry_run(rows)}")
            return
        _train(trainer, rows, resume=options.resume)
        _finish(trainer, tables, options, meter)


def _check_options(options: TrainOptions) -> None:
    if options.part and (options.method or options.rank or options.targets):
        raise ValueError(
            "--part trains the model itself; it cannot be used with --method, --rank or "
            "--targets, which are options of an adapter."
        )
    if options.search and (options.part or options.method or options.rank or options.targets):
        raise ValueError(
            "--search tries ranks and targets of a LoRA adapter; it cannot be used with --part, "
            "--method, --rank or --targets."
        )
    check_out_folder(options.out)
    if not (options.resume or options.overwrite or options.dry_run):
        _refuse_to_replace(options.out)


def _refuse_to_replace(folder: Path) -> None:
    """Raise ValueError where a run would replace an adapter."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    saved = datetime.datetime.fromtimestamp(manifest.stat().st_mtime)
    raise ValueError(
        f"{folder} holds an adapter already, saved on {saved:%Y-%m-%d at %H:%M} (peftcls show "
        f"{folder}). Choose another --out, or replace it with --overwrite."
    )


# Step 1: rows and task


def _read_rows(options: TrainOptions) -> tuple[Task, Tables]:
    """Read, check and split the rows; the task has learnt from the training rows."""
    rows = options.source.read(options.file)
    columns = guess_columns(rows, kind=options.kind, text=options.text, label=options.label)
    unlearnt_task = task_for(
        columns,
        labels=parse_labels(options.labels),
        prompt=options.prompt,
        max_length=options.max_length,
        class_weight=options.class_weight,
        pooling=options.pooling,
        max_new_tokens=options.max_new_tokens,
    )
    task = unlearnt_task.learn(rows)
    _print_once(f"{columns}{_labels_remark(task)}")
    tables = _split_rows(options, task, rows)

    # The rows that were put aside teach the task nothing except the names of their labels.
    if isinstance(unlearnt_task, Classification):
        unlearnt_task = dataclasses.replace(unlearnt_task, labels=task.labels)
    return unlearnt_task.learn(tables.train), tables


def _examine(task: Task, tables: Tables) -> Examination:
    """Examine all rows, print the findings that concern test rows, and return the others.

    Raises:
        RowError: the examination found an error.
    """
    examination = refuse_errors(task, tables.train, tables.valid, tables.test)
    other_findings = []
    for finding in examination.findings:
        if "test" not in finding.split:
            other_findings.append(finding)
        elif finding.severity != "note":
            _print_once(f"{finding.severity}: {finding.sentence}")
    other_rows = {
        split: count for split, count in examination.split_rows.items() if split != "test"
    }
    return Examination.of(other_findings, other_rows)


def _labels_remark(task: Task) -> str:
    if not task.labels:
        return ""
    return f" ({len(task.labels)} labels: {first_labels(task.labels)})"


def _split_rows(options: TrainOptions, task: Task, rows: datasets.Dataset) -> Tables:
    """The checked rows of the given files; what has no file is split off the training rows."""
    check_rows(task, rows, training=True)
    valid = _read_checked(task, options.valid, options.source)
    test = _read_checked(task, options.test, options.source)
    if test is None:
        rows, test = _put_aside(options, task, rows, HELD_OUT_SHARE, "test")
        valid_share = HELD_OUT_SHARE / (1 - HELD_OUT_SHARE)
    else:
        valid_share = HELD_OUT_SHARE
    if valid is None:
        rows, valid = _put_aside(options, task, rows, valid_share, "valid")
    name_source(rows, f"{source_name(rows)}, training rows")
    name_source(valid, f"{source_name(valid)}, validation rows")
    name_source(test, f"{source_name(test)}, test rows")
    return Tables(train=rows, valid=valid, test=test)


def _read_checked(task: Task, file: str | None, source: Source) -> datasets.Dataset | None:
    if not file:
        return None
    rows = source.read_other(file)
    check_rows(task, rows)
    return rows


def _put_aside(
    options: TrainOptions, task: Task, rows: datasets.Dataset, share: float, name: str
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split a share off the rows, and say so: the rows that are left, and those put aside."""
    left, aside = split_off(task, rows, share, name=name, seed=options.seed)
    _print_once(
        f"put {len(aside)} rows of {options.file} aside for --{name} (seed {options.seed}"
        f"{_stratification_remark(task)}, the same text never on both sides)"
    )
    return left, aside


def _stratification_remark(task: Task) -> str:
    if task.answer_kind == "number":
        return ", spread over all numbers"
    if task.labels:
        return ", the same share of every label"
    return ""


# Step 2: model


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
    _print_once(
        f"{found}\nchosen on {len(rows.valid_rows or ())} validation rows: {found.best.name}"
    )
    return found.best


def _build_model(options: TrainOptions, task: Task, base: Any, candidate: Candidate) -> Any:
    """The base model with an adapter, or with a part of its own to train."""
    if options.part:
        return train_only(base, task, options.part)
    return attach_lora(
        base,
        task,
        rank=candidate.rank,
        targets=candidate.targets,
        method=options.method or "lora",
        seed=options.seed,
    )


def _adapter_targets(targets: str | None) -> Any:
    """The value of --targets: one of the known groups of modules, or a list of module names."""
    if targets is None or targets in ("attention", "all-linear"):
        return targets
    return targets.split(",")


def _train_config(options: TrainOptions, task: Task, rows: int) -> TrainConfig:
    rate = options.learning_rate
    if rate is None and options.part == "all":
        rate = LEARNING_RATE_OF_ALL
    return TrainConfig.for_task(
        options.out,
        task,
        rows=rows,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=rate,
        seed=options.seed,
        trackers=options.trackers,
    )


# Step 3: training


def _train(trainer: Trainer, rows: Prepared, *, resume: bool) -> None:
    """Train, and fit the threshold below which a question gets no answer."""
    if trainer.accelerator.is_main_process:
        log_warnings(rows.examination)
    trainer.fit(rows, resume=resume)
    task = trainer.task
    valid = rows.valid_rows
    if not isinstance(task, ExtractiveQA) or not task.unanswerable or valid is None:
        return
    if any(task.answerable(valid)):
        trainer.calibrate(valid)


# Step 4: scores and model card


def _finish(trainer: Trainer, tables: Tables, options: TrainOptions, meter: Meter) -> None:
    """Print the scores, write the report and the model card, and push the folder if asked to."""
    scores = report_scores(trainer, tables.train, tables.valid, tables.test, {}, meter)
    if not trainer.accelerator.is_main_process:
        return
    out = options.out
    card = write_card(out, scores=scores, about=_card_facts(options.file, tables))
    if not is_own_card(card):
        print(f"note: {card} is no model card of peftcls; it was left as it is.")
    print(f"the adapter is in {out}; next: peftcls predict {out} FILE --out ANSWERS.csv")
    if options.push_to_hub:
        push_folder(directory=out, repository=options.push_to_hub, private=False)


def _card_facts(file: str, tables: Tables) -> dict[str, str]:
    """Facts for the model card: the rows, their number, and the checksum of the training file."""
    facts = {
        "learnt from": f"{len(tables.train)} rows ({source_name(tables.train)})",
        "the best epoch chosen by": f"{len(tables.valid)} rows ({source_name(tables.valid)})",
        "test rows": source_name(tables.test),
    }
    if Path(file).is_file():
        with open(file, "rb") as training_file:
            digest = hashlib.file_digest(training_file, "sha256")
        facts["SHA-256 of the training file"] = digest.hexdigest()
    return facts


def _print_once(message: str) -> None:
    """Print, on the first process only where torchrun started several."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(message, flush=True)

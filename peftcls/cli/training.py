"""`peftcls train`: from a file to an adapter folder and a table of scores."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import datasets

from peftcls.cli.column_guessing import guess_columns, listed_labels, task_for
from peftcls.cli.folders import push_folder
from peftcls.data.reading import name_source, read_rows, source_name
from peftcls.models.adapter_methods import Method
from peftcls.models.base_model import load_base
from peftcls.models.model_card import is_own_card, write_card
from peftcls.models.state import Quantize
from peftcls.models.trainable import Part, attach_lora, train_only
from peftcls.quality.examine import refuse_errors
from peftcls.recipe import report_scores
from peftcls.report import Meter
from peftcls.report.files import check_out_folder
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.regression import Regression
from peftcls.tasks.row_checks import check_rows
from peftcls.tasks.splitting import split_off
from peftcls.training.config import TrainConfig
from peftcls.training.run_info import describe_model, first_labels
from peftcls.training.trainer import Trainer

SHARE = 0.15  # of the rows that is put aside for validation, and for the test
RANK, DROPOUT = 16, 0.05
RATE, RATE_OF_ALL = 1e-3, 5e-5  # a whole pretrained model is moved more gently than a new adapter


def train_file(
    *,
    file: str,
    out: Path,
    kind: str | None,
    text: tuple[str, ...],
    label: str | None,
    labels: str | None,
    prompt: str | None,
    class_weight: str | None,
    valid: str | None,
    test: str | None,
    model: str,
    quantize: Quantize | None,
    method: Method | None,
    rank: int | None,
    targets: str | None,
    part: Part | None,
    epochs: int,
    batch_size: int,
    learning_rate: float | None,
    max_length: int | None,
    seed: int,
    resume: bool,
    dry_run: bool,
    trackers: tuple[str, ...],
    push_to_hub: str | None,
    encoding: str | None,
) -> None:
    """Train on a file, save, and print the scores; every argument is an option of `peftcls train`."""
    if part and (method or rank or targets):
        raise ValueError(
            "--part trains the model itself, --method, --rank and --targets are of an adapter; leave out one or the others."
        )
    check_out_folder(out)
    meter, rows = Meter(), read_rows(file, encoding=encoding)
    columns = guess_columns(rows, kind=kind, text=text, label=label)
    named = listed_labels(labels)
    plain = task_for(
        columns, labels=named, prompt=prompt, max_length=max_length, class_weight=class_weight
    )
    task = plain.learn(rows)
    names = getattr(task, "labels", None)
    _say(str(columns) + (f" ({len(names)} labels: {first_labels(names)})" if names else ""))
    check_rows(task, rows, training=True)
    tables = {
        "train": rows,
        **{
            name: read_rows(given, encoding=encoding)
            for name, given in (("valid", valid), ("test", test))
            if given
        },
    }
    for name in ("valid", "test"):
        if name in tables:
            check_rows(task, tables[name])
    for name, share in (("test", SHARE), ("valid", SHARE if test else SHARE / (1 - SHARE))):
        if name not in tables:
            tables["train"], tables[name] = split_off(
                task, tables["train"], share, name=name, seed=seed
            )
            _say(
                f"put {len(tables[name])} rows of {file} aside for --{name} (seed {seed}{_how(task)}, the same text never on both sides)"
            )
    for name, told in (("train", "training"), ("valid", "validation"), ("test", "test")):
        name_source(tables[name], f"{source_name(tables[name])}, {told} rows")
    if isinstance(
        plain, Classification
    ):  # of the rows put aside, nothing is learnt but the names of their labels
        plain = dataclasses.replace(plain, labels=names)
    task = plain.learn(tables["train"])
    for found in refuse_errors(task, tables["train"], tables["valid"], tables["test"]).findings:
        if found.severity != "note" and "test" in found.split:  # the trainer tells the rest
            _say(f"{found.severity}: {found.sentence}")

    loaded, tokenizer = load_base(model, task, quantize=quantize, seed=seed)
    if part:
        trained: Any = train_only(loaded, task, part)
    else:
        where: Any = targets if targets in (None, "attention", "all-linear") else targets.split(",")
        rank = rank or RANK
        trained = attach_lora(
            loaded,
            task,
            rank=rank,
            alpha=2 * rank,
            dropout=DROPOUT,
            targets=where,
            method=method or "lora",
            seed=seed,
        )
    rate = learning_rate or (RATE_OF_ALL if part == "all" else RATE)
    config = TrainConfig(
        out, epochs=epochs, batch_size=batch_size, learning_rate=rate, seed=seed, trackers=trackers
    )
    with Trainer(trained, task, tokenizer, config) as trainer:
        if dry_run:
            _say(f"{describe_model(trained, task)}\n{trainer.rehearse(tables['train'])}")
            return
        trainer.fit(tables["train"], tables["valid"], resume=resume)
        if (
            isinstance(task, ExtractiveQA)
            and task.unanswerable
            and any(task.answerable(tables["valid"]))
        ):
            trainer.calibrate(tables["valid"])  # when to give no answer
        scores = report_scores(trainer, tables["train"], tables["valid"], tables["test"], {}, meter)
        if trainer.accelerator.is_main_process:
            card = write_card(out, scores=scores, about=_about(file, tables))
            if not is_own_card(card):
                print(f"note: {card} is no model card of peftcls; it was left as it is.")
            print(f"the adapter is in {out}; next: peftcls predict {out} FILE --out ANSWERS.csv")
            if push_to_hub:
                push_folder(directory=out, repository=push_to_hub, private=False)


def _say(sentence: str) -> None:
    """Once, also where torchrun started several processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(sentence, flush=True)


def _how(task: Task) -> str:
    if isinstance(task, Regression):
        return ", spread over all numbers"
    return ", the same share of every label" if getattr(task, "labels", None) else ""


def _about(file: str, tables: dict[str, datasets.Dataset]) -> dict[str, str]:
    """Lines for the model card: which rows, how many, and the sum of the file by which they are known again."""
    told = {
        "learnt from": f"{len(tables['train'])} rows ({source_name(tables['train'])})",
        "the best epoch chosen by": f"{len(tables['valid'])} rows ({source_name(tables['valid'])})",
        "test rows": source_name(tables["test"]),
    }
    if Path(file).is_file():
        with open(file, "rb") as opened:
            told["SHA-256 of the training file"] = hashlib.file_digest(opened, "sha256").hexdigest()
    return told

"""Cross-validation: every row is answered by a model that has not learnt from it, with one base in memory."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import as_dataset
from peftcls.models.state import base_facts
from peftcls.models.trainable import copy_tensors, put_tensors, trained_parameters
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.encoding import encode_table
from peftcls.tasks.row_checks import check_rows
from peftcls.training.config import TrainConfig
from peftcls.training.frozen_tables import computed_once
from peftcls.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Doubt:
    """How likely the fold that had not seen a row finds the row's own label."""

    row: int
    """Its number, from 1."""
    label: str
    given: str | None
    probability: float
    """Of the row's own label."""


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """The out-of-fold answers, in the rows' order, and what follows from them."""

    answers: list[Answer]
    fold_of: list[int]
    """The fold, from 0, that answered each row."""
    scores: dict[str, float]
    fold_scores: list[dict[str, float]]
    doubts: list[Doubt]
    """All rows that have one label, those that are doubted most first; the place to look for wrong labels."""


def cross_validate(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    *,
    folds: int = 5,
    resume: bool = False,
) -> CrossValidation:
    """Train once a fold, each time from the model's present weights, and answer the rows that were left out.

    The base stays where it is; only the trained parameters are put back between folds, and at the end. Layers below all
    that is trained are computed once for all folds. The held-out rows choose nothing (no best step, no early stopping), so
    the scores are not too kind. The adapter of each fold is saved in `output_dir`/fold-NUMBER.

    Args:
        model: from `attach_lora` or `train_only`.
        task: with its labels learnt from all rows.
        tokenizer: from `load_base`.
        config: of each fold's training; its seed also cuts the folds.
        rows: at least one for each fold, labels spread over the folds alike.
        folds: how many parts the rows are cut into.
        resume: go on within a fold that was interrupted; finished folds are trained again.

    Raises:
        ValueError: there are fewer rows of a label than folds, or fewer than two folds.
        RowError: rows that cannot be learnt from.
    """
    table = as_dataset(rows)
    if not isinstance(folds, int) or not 2 <= folds <= len(table):
        raise ValueError(
            f"folds={folds!r}: expected a whole number of at least 2 and at most the {len(table)} rows."
        )
    check_rows(task, table, training=True)
    if labelled := bool(getattr(task, "labels", None)) and not getattr(task, "multi_label", False):
        counts = Counter(task.gold_of(row)[0] for row in table)
        label, fewest = min(counts.items(), key=lambda pair: pair[1])
        if fewest < folds:
            raise ValueError(
                f"folds={folds}: only {fewest} rows have the label {label!r}, expected one for each fold at least; use "
                "fewer folds, or leave the label out."
            )
    parameters = trained_parameters(model)
    start = copy_tensors(parameters)
    answers: dict[int, Answer] = {}
    fold_of, fold_scores = [0] * len(table), []
    trainers = [
        Trainer(
            model,
            task,
            tokenizer,
            dataclasses.replace(config, output_dir=Path(config.output_dir) / f"fold-{fold}"),
        )
        for fold in range(folds)
    ]  # the first moves the model to where it is trained
    accelerator = trainers[0].accelerator
    encoded = encode_table(task, table, tokenizer, base_facts(model).fingerprint)
    try:
        with computed_once(
            model,
            task,
            tokenizer,
            [encoded],
            folder=Path(config.output_dir),
            rows=config.micro_batch_size,
            shown=accelerator.is_main_process,
        ):
            for fold, (trainer, held) in enumerate(
                zip(trainers, _parts(task, table, folds, config.seed, labelled), strict=True)
            ):
                put_tensors(parameters, start)
                trainer.fit(table.select(sorted(set(range(len(table))) - set(held))), resume=resume)
                found = trainer.predict(table.select(held))
                answers |= zip(held, found, strict=True)
                fold_scores.append(task.score(found, table.select(held)))
                for row in held:
                    fold_of[row] = fold
    finally:
        put_tensors(parameters, start)
    ordered = [answers[i] for i in range(len(table))]
    return CrossValidation(
        ordered, fold_of, task.score(ordered, table), fold_scores, _doubts(task, ordered, table)
    )


def _parts(
    task: Task, table: datasets.Dataset, folds: int, seed: int, labelled: bool
) -> list[list[int]]:
    gold = [task.gold_of(row) for row in table] if labelled else []
    cut = StratifiedKFold if labelled else KFold
    places = list(range(len(table)))
    return [
        held.tolist()
        for _, held in cut(folds, shuffle=True, random_state=seed).split(
            places, [name for (name,) in gold] or None
        )
    ]


def _doubts(task: Task, answers: list[Answer], table: datasets.Dataset) -> list[Doubt]:
    found = []
    for number, (answer, row) in enumerate(zip(answers, table, strict=True), 1):
        gold = task.gold_of(row)
        if answer.probabilities and answer.labels is None and len(gold) == 1:
            found.append(Doubt(number, gold[0], answer.label, answer.probabilities[gold[0]]))
    return sorted(found, key=lambda doubt: doubt.probability)

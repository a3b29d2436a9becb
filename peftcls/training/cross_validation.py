"""Cross-validation: each row is answered by a model that was not trained on it."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import as_dataset, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.tables import Rows, split_of
from peftcls.engine.model_state import base_facts
from peftcls.errors import RowError
from peftcls.models.trainable import copy_tensors, put_tensors, trained_parameters
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.tasks.grouping import spread_groups
from peftcls.tasks.splitting import row_groups, stratum_of_rows
from peftcls.training.config import TrainConfig
from peftcls.training.distributed_prediction import score_gathered
from peftcls.training.frozen_tables import caching_tables
from peftcls.training.judgement import answers_at_start
from peftcls.training.prepare import log_warnings, prepare
from peftcls.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Doubt:
    """How likely a row's label is, by the fold that was not trained on the row.

    Attributes:
        row: its number, from 1.
        label: of the row.
        given: the label that the fold gave; None for an abstention.
        probability: of the row's own label.
    """

    row: int
    label: str
    given: str | None
    probability: float


@dataclasses.dataclass(frozen=True, repr=False)
class CrossValidation:
    """The out-of-fold answers, in the rows' order, and their scores.

    Attributes:
        answers: one for each row.
        fold_of: the fold, from 0, that answered each row.
        scores: of all answers.
        fold_scores: of each fold's answers.
        doubts: all rows with one label, the least likely labels first: look there for wrong ones.
        probe_answers: of the linear probe that each fold began with; None where there is none.
    """

    answers: list[Answer]
    fold_of: list[int]
    scores: dict[str, float]
    fold_scores: list[dict[str, float]]
    doubts: list[Doubt]
    probe_answers: list[Answer] | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.answers)} rows in {len(self.fold_scores)} folds"]
        for name, value in self.scores.items():
            of_folds = [scores[name] for scores in self.fold_scores]
            lines.append(
                f"{name:<18} {value:8.4f}   folds {min(of_folds):.4f} to {max(of_folds):.4f}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def cross_validate(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    rows: Rows,
    *,
    folds: int = 5,
    group: str | None = None,
    resume: bool = False,
) -> CrossValidation:
    """Train once for each fold, and answer the rows of that fold, which were left out.

    Each fold starts from the model's present weights. The base model stays in memory; only the
    trained parameters are put back between folds, and at the end. Frozen layers are computed once
    for all folds. The held-out rows choose nothing (no best step, no early stopping), so the
    scores are not optimistic. The adapter of each fold is saved in `output_dir`/fold-NUMBER.

    Args:
        model: from `attach_lora` or `train_only`.
        task: with its labels learnt from all rows.
        tokenizer: from `load_base`.
        config: of each fold's training; its seed also assigns rows to folds.
        rows: at least one for each fold; each label is spread evenly over the folds. Rows with the
            same text are held out together.
        folds: how many parts the rows are divided into.
        group: a column; rows with the same value in it, such as those of a customer, are held out
            together too. Labels are then spread as evenly as the groups allow.
        resume: continue within a fold that was interrupted; finished folds are trained again.

    Raises:
        ValueError: there are fewer rows of a label, or fewer groups, than folds, or fewer than two
            folds.
        RowError: rows that cannot be trained on, no such column, or no value in it.
    """
    table = as_dataset(split_of(rows, "train"))
    if not isinstance(folds, int) or not 2 <= folds <= len(table):
        raise ValueError(
            f"folds={folds!r}: expected a whole number of at least 2 and at most the {len(table)} "
            "rows."
        )
    prepared = prepare(task, table, None, tokenizer, base_facts(model), cache_dir=config.cache_dir)
    held_out = assign_rows(task, table, folds, config.seed, group)
    _check_folds(task, table, held_out)
    metrics = config.own_metrics
    metrics.try_on(task, table)
    parameters = trained_parameters(model)
    start = copy_tensors(parameters)
    trainers = [
        Trainer(model, task, tokenizer, _fold_config(config, fold)) for fold in range(folds)
    ]
    is_main_process = trainers[0].accelerator.is_main_process
    if is_main_process:
        log_warnings(prepared.examination)
    answers: dict[int, Answer] = {}
    of_probes: dict[int, Answer] = {}
    fold_scores = []
    try:
        with caching_tables(
            model,
            task,
            tokenizer,
            prepared.tables,
            folder=Path(config.output_dir),
            max_rows=config.micro_batch_size,
            shows_progress=is_main_process,
        ):
            for trainer, held in zip(trainers, held_out, strict=True):
                put_tensors(parameters, start)
                trainer.fit(prepared.select(_others(table, held)), resume=resume)
                held_rows = table.select(held)
                fold_answers = trainer.predict(held_rows)
                answers |= zip(held, fold_answers, strict=True)
                of_probes |= zip(held, answers_at_start(trainer, held_rows) or (), strict=False)
                fold_scores.append(score_gathered(task, fold_answers, held_rows, metrics))
    finally:
        put_tensors(parameters, start)
    ordered = [answers[i] for i in range(len(table))]
    is_probed = len(of_probes) == len(table)
    return CrossValidation(
        answers=ordered,
        fold_of=_fold_of(held_out),
        scores=score_gathered(task, ordered, table, metrics),
        fold_scores=fold_scores,
        doubts=_doubts(task, ordered, table),
        probe_answers=[of_probes[i] for i in range(len(table))] if is_probed else None,
    )


def _fold_config(config: TrainConfig, fold: int) -> TrainConfig:
    return dataclasses.replace(config, output_dir=Path(config.output_dir) / f"fold-{fold}")


def assign_rows(
    task: Task, table: datasets.Dataset, folds: int, seed: int, group: str | None = None
) -> list[list[int]]:
    """The rows that each fold holds out, by index; with one label a row, stratified by label.

    Args:
        task: with its labels learnt.
        table: rows that can be trained on.
        folds: their number.
        seed: of the choice.
        group: the column whose values keep rows together, beside their texts.

    Raises:
        ValueError: there are fewer rows of a label, or fewer groups, than folds.
        RowError: there is no such column, or no value in it.
    """
    labels = None
    if task.answer_kind == "label":
        columns = task.columns(with_target=True)
        labels = [task.gold_of(row)[0] for row in each_row(table, columns)]
        _check_label_counts(labels, folds)
    groups = row_groups(task, table, group)
    if len(set(groups)) == len(table):
        return _assign_single_rows(labels, len(table), folds, seed)
    _check_group_count(len(set(groups)), folds, group)
    fold_of = spread_groups(groups, stratum_of_rows(task, table), [1 / folds] * folds, seed=seed)
    if labels is not None:
        _check_labels_are_spread(labels, fold_of)
    held_out: list[list[int]] = [[] for _ in range(folds)]
    for row, fold in enumerate(fold_of):
        held_out[fold].append(row)
    return held_out


def _assign_single_rows(
    labels: Sequence[str] | None, rows: int, folds: int, seed: int
) -> list[list[int]]:
    """The rows that each fold holds out, where each row may go to any fold."""
    splitter = KFold(folds, shuffle=True, random_state=seed)
    if labels is not None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [held.tolist() for _, held in splitter.split(list(range(rows)), labels)]


def _check_group_count(groups: int, folds: int, column: str | None) -> None:
    """Raise ValueError if there are fewer groups than folds."""
    if groups < folds:
        what = "different texts" if column is None else f"groups by column {column!r} and by text"
        raise ValueError(
            f"folds={folds}: the rows have only {groups} {what}, which stay together; use fewer "
            "folds, or more rows."
        )


def _check_labels_are_spread(labels: Sequence[str], fold_of: Sequence[int]) -> None:
    """Raise ValueError if no other fold has rows of a label."""
    folds_of: dict[str, set[int]] = {}
    for label, fold in zip(labels, fold_of, strict=True):
        folds_of.setdefault(label, set()).add(fold)
    for label, folds in folds_of.items():
        if len(folds) == 1:
            raise ValueError(
                f"all rows with the label {label!r} are held out together, since they belong "
                "together; no fold could learn it. Leave the label out, or add rows of others."
            )


def _check_label_counts(labels: Sequence[str], folds: int) -> None:
    """Raise ValueError if a label has fewer rows than there are folds."""
    counts = Counter(labels)
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] < folds:
        raise ValueError(
            f"folds={folds}: only {counts[rarest]} rows have the label {rarest!r}, expected one "
            "for each fold at least; use fewer folds, or leave the label out."
        )


def _others(table: datasets.Dataset, held: Sequence[int]) -> list[int]:
    """The rows that are trained on while these are held out, by index."""
    return sorted(set(range(len(table))) - set(held))


def _check_folds(task: Task, table: datasets.Dataset, held_out: Sequence[Sequence[int]]) -> None:
    """Raise RowError if the rows left for a fold cannot be trained on as a table of their own."""
    for fold, held in enumerate(held_out):
        problem = task.table_problem(table.select(_others(table, held)))
        if problem:
            raise RowError(f"without the rows of fold {fold}, {source_name(table)} {problem}.")


def _fold_of(held_out: Sequence[Sequence[int]]) -> list[int]:
    """The fold that each row was held out from."""
    fold_of: dict[int, int] = {}
    for fold, held in enumerate(held_out):
        fold_of |= dict.fromkeys(held, fold)
    return [fold_of[row] for row in sorted(fold_of)]


def _doubts(task: Task, answers: Sequence[Answer], table: datasets.Dataset) -> list[Doubt]:
    """The rows with one label each, those whose label is least likely first."""
    doubts = []
    for number, (answer, row) in enumerate(zip(answers, table, strict=True), 1):
        if not answer.probabilities or answer.labels is not None:
            continue
        gold = task.gold_of(row)
        if len(gold) == 1:
            label = gold[0]
            doubts.append(Doubt(number, label, answer.label, answer.probabilities[label]))
    return sorted(doubts, key=lambda doubt: doubt.probability)

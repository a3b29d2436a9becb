"""Sweep: several trainings on one base in memory, over learning rates, ranks or methods."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import as_dataset
from peftcls.data.tables import Rows, with_validation_split
from peftcls.engine.frozen_layers import find_frozen_layers
from peftcls.engine.model_state import base_facts
from peftcls.evaluation import Comparison, compare_with_best
from peftcls.metrics import Interval, rank_scores
from peftcls.models.trainable import copy_tensors, put_tensors, trained_parameters
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.training.config import TrainConfig
from peftcls.training.frozen_tables import caching_tables, sharing_cached_table
from peftcls.training.prepare import Prepared, log_warnings, prepare
from peftcls.training.trainer import Trainer

logger = logging.getLogger("peftcls")


@dataclasses.dataclass(frozen=True)
class Trained:
    """One training of a sweep.

    Attributes:
        name: of its configuration.
        directory: the adapter folder.
        scores: of its best step on the validation rows, which also chose the step.
        intervals: the 95 % bootstrap intervals of the scores.
        answers: to the validation rows.
        best_step: the step with these scores.
        history: losses and scores during the training.
        against_best: the best training compared with this one, on the same rows; None for the
            best training itself.
    """

    name: str
    directory: Path
    scores: dict[str, float]
    intervals: dict[str, Interval]
    answers: list[Answer]
    best_step: int | None
    history: list[dict[str, float]]
    against_best: Comparison | None


def sweep(
    model: torch.nn.Module | Mapping[str, torch.nn.Module],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    configs: Mapping[str, TrainConfig],
    train_rows: Rows | Prepared,
    valid_rows: Rows | None = None,
    *,
    resume: bool = False,
) -> list[Trained]:
    """Train once for each configuration, each time from the model's present weights.

    Each result is the same as that of `Trainer.fit` by itself. But the base is in memory only
    once, rows are checked and encoded once, and frozen layers are computed once for all trainings
    with as many of them: a sweep over ten learning rates of a head computes the states of the
    table once, not ten times an epoch.

    Args:
        model: from `attach_lora` or `train_only`; its trained weights are put back between
            trainings, and at the end. Or a model for each name; they may share one base in memory,
            see `share_base`.
        task: with its labels learnt.
        tokenizer: from `load_base`.
        configs: of each training, by name; each with an `output_dir` of its own.
        train_rows: as for `Trainer.fit`; or what `prepare` made of these and valid_rows.
        valid_rows: they choose each training's best step, and the order of the results. So the
            score of the best training is a little optimistic, the more so the more trainings are
            compared; use other rows for a score to report.
        resume: continue within a training that was interrupted; finished ones are trained again.

    Returns:
        The trainings, the best one first.

    Raises:
        ValueError: names, folders or monitors do not fit together.
        RowError: rows that cannot be trained on.
    """
    models = dict(model) if isinstance(model, Mapping) else dict.fromkeys(configs, model)
    _check_configs(models, configs)
    _check_judges(task, configs)
    starts = {name: copy_tensors(trained_parameters(models[name])) for name in configs}
    trainers = {
        name: Trainer(models[name], task, tokenizer, config) for name, config in configs.items()
    }
    is_main_process = next(iter(trainers.values())).accelerator.is_main_process
    # How rows are encoded depends on the tokenizer, not on the base: once is enough for all.
    first_model = next(iter(models.values()))
    first_config = next(iter(configs.values()))
    prepared = _prepare(
        train_rows, valid_rows, task, tokenizer, first_model, first_config.cache_dir
    )
    if prepared is not train_rows and is_main_process:
        log_warnings(prepared.examination)
    valid = prepared.valid_rows
    assert valid is not None, "a sweep has validation rows"
    results: dict[str, Trained] = {}
    try:
        for names in _groups_by_frozen_layers(models, configs):
            owner = trainers[names[0]]
            with caching_tables(
                owner.model,
                task,
                tokenizer,
                prepared.tables,
                folder=owner.output_dir.parent,
                max_rows=owner.config.micro_batch_size,
                shows_progress=is_main_process,
            ):
                for name in names:
                    if is_main_process:
                        logger.info(f"{name}: training {len(results) + 1} of {len(configs)}")
                    put_tensors(trainers[name].parameters, starts[name])
                    results[name] = _train(name, trainers[name], owner, prepared, resume=resume)
    finally:
        for name, start in starts.items():
            put_tensors(trainers[name].parameters, start)
    monitor = first_config.monitor_for(task, len(valid))
    return _best_first([results[name] for name in configs], task, valid, monitor, first_config)


def _prepare(
    train_rows: Any,
    valid_rows: Any,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    model: torch.nn.Module,
    cache_dir: str | Path | None,
) -> Prepared:
    """Check, examine and encode the rows, unless that was done before."""
    train_rows, valid_rows = with_validation_split(train_rows, valid_rows)
    if isinstance(train_rows, Prepared):
        prepared = train_rows
    elif valid_rows is None:
        raise ValueError("valid_rows is None, expected rows that choose the best training.")
    else:
        train = as_dataset(train_rows, "train_rows")
        valid = as_dataset(valid_rows, "valid_rows")
        prepared = prepare(task, train, valid, tokenizer, base_facts(model), cache_dir=cache_dir)
    if prepared.valid_rows is None:
        raise ValueError("the prepared rows have no validation rows, which choose the best one.")
    return prepared


def _check_configs(
    models: Mapping[str, torch.nn.Module], configs: Mapping[str, TrainConfig]
) -> None:
    """Raise ValueError if names or folders do not fit together."""
    if not configs:
        raise ValueError("configs is empty, expected a TrainConfig for each training, by name.")
    if set(models) != set(configs):
        raise ValueError(
            f"there are models for {sorted(models)} and configs for {sorted(configs)}, expected "
            "the same names."
        )
    names_by_folder: dict[Path, str] = {}
    for name, config in configs.items():
        other = names_by_folder.setdefault(Path(config.output_dir).absolute(), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} have the same output_dir {str(config.output_dir)!r}, "
                "expected a folder for each."
            )


def _check_judges(task: Task, configs: Mapping[str, TrainConfig]) -> None:
    """Raise ValueError unless one score decides which step and which training is best."""
    monitors = {config.monitor or task.monitor for config in configs.values()}
    if len(monitors) > 1:
        raise ValueError(
            f"the trainings are judged by {sorted(monitors)}, expected one monitor, so that one of "
            "them can be the best."
        )
    metrics = {config.own_metrics.names for config in configs.values()}
    if len(metrics) > 1:
        raise ValueError(
            f"the trainings have the metrics {sorted(metrics)}, expected the same for all of them."
        )


def _groups_by_frozen_layers(
    models: Mapping[str, torch.nn.Module], names: Iterable[str]
) -> list[list[str]]:
    """The names of the trainings, grouped by the frozen layers whose states they can share."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        frozen = find_frozen_layers(models[name])
        frozen_count = frozen[1] if frozen else 0
        key = (base_facts(models[name]).fingerprint, frozen_count)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _train(
    name: str, trainer: Trainer, owner: Trainer, prepared: Prepared, *, resume: bool
) -> Trained:
    """Run one training, with the states of frozen layers that were cached for the owner."""
    assert prepared.valid_inputs is not None, "a sweep has validation rows"
    with sharing_cached_table(
        owner.model, trainer.model, trainer.task, trainer.tokenizer, prepared.train
    ):
        scores = trainer.fit(prepared, resume=resume)
        answers = trainer.predict_encoded(prepared.valid_inputs)
    return Trained(
        name=name,
        directory=trainer.output_dir,
        scores=scores,
        intervals={},
        answers=answers,
        best_step=trainer.progress.best_step,
        history=trainer.progress.history,
        against_best=None,
    )


def _best_first(
    results: Sequence[Trained],
    task: Task,
    valid: datasets.Dataset,
    monitor: str,
    config: TrainConfig,
) -> list[Trained]:
    """Sort trainings as a training chooses its best step; add intervals and comparisons."""
    lower_is_better = config.is_lower_better(monitor)

    def rank(one: Trained) -> tuple[float, float]:
        return rank_scores(one.scores, monitor, lower_is_better=lower_is_better)

    ordered = sorted(results, key=rank, reverse=True)
    judged = compare_with_best(
        task,
        [one.answers for one in ordered],
        valid,
        score=monitor,
        metrics=config.own_metrics,
    )
    completed = []
    for one, (intervals, comparison) in zip(ordered, judged, strict=True):
        against_best = comparison if one is not ordered[0] else None
        completed.append(dataclasses.replace(one, intervals=intervals, against_best=against_best))
    return completed

"""Several trainings on one base in memory: over rates, ranks or methods; what is frozen in all of them is computed once."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import as_dataset
from peftcls.engine.frozen_cache import frozen_layers
from peftcls.evaluation import Comparison, beside_best
from peftcls.metrics import LOWER_IS_BETTER, Interval
from peftcls.models.state import base_facts
from peftcls.models.trainable import copy_tensors, put_tensors, trained_parameters
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.encoding import encode_table, encoded_once
from peftcls.training.config import TrainConfig
from peftcls.training.frozen_tables import computed_for, computed_once
from peftcls.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Trained:
    """One training of a sweep."""

    name: str
    directory: Path
    """The adapter folder."""
    scores: dict[str, float]
    """Of its best step, on the validation rows, which chose the step too."""
    intervals: dict[str, Interval]
    """95 % bootstrap intervals of these."""
    answers: list[Answer]
    """To the validation rows."""
    best_step: int | None
    history: list[dict[str, float]]
    """Losses and scores on the way."""
    against_best: Comparison | None
    """The best training against this one, on the same rows; None for itself."""


def sweep(
    model: torch.nn.Module | Mapping[str, torch.nn.Module],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    configs: Mapping[str, TrainConfig],
    train_rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    valid_rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    *,
    resume: bool = False,
) -> list[Trained]:
    """Train once for each configuration, each time from the model's present weights. Each result is that of `Trainer.fit` alone.

    The base is in memory once, rows are encoded once, and layers that are frozen in all trainings with as many of them are
    computed once: a sweep over ten rates of a head alone reads the table once, not ten times an epoch.

    Args:
        model: from `attach_lora` or `train_only`; its trained weights are put back between trainings, and at the end. Or a
            model for each name, on one base or not: see `share_base`.
        task: with its labels learnt.
        tokenizer: from `load_base`.
        configs: of each training, by name; each with an `output_dir` of its own.
        train_rows: as for `Trainer.fit`.
        valid_rows: they choose each training's best step, and the order of the results. So the best one's score is a little
            kind, the more so the more are compared; a number to be quoted needs rows of its own.
        resume: go on within a training that was interrupted; finished ones are trained again.

    Returns:
        The trainings, the best one first.

    Raises:
        ValueError: names, folders or monitors that do not go together.
        RowError: rows that cannot be learnt from.
    """
    models = dict(model) if isinstance(model, Mapping) else dict.fromkeys(configs, model)
    monitor = _check(models, task, configs)
    train, valid = as_dataset(train_rows, "train_rows"), as_dataset(valid_rows, "valid_rows")
    starts = {name: copy_tensors(trained_parameters(models[name])) for name in configs}
    trainers = {
        name: Trainer(models[name], task, tokenizer, config) for name, config in configs.items()
    }
    accelerator = next(iter(trainers.values())).accelerator
    found: dict[str, Trained] = {}
    try:
        with encoded_once():
            for names in _alike(models, configs):
                owner, config = models[names[0]], configs[names[0]]
                tables = [
                    encode_table(task, rows, tokenizer, base_facts(owner).fingerprint)
                    for rows in (train, valid)
                ]
                with computed_once(
                    owner,
                    task,
                    tokenizer,
                    tables,
                    folder=Path(config.output_dir).parent,
                    rows=config.micro_batch_size,
                    shown=accelerator.is_main_process,
                ):
                    for name in names:
                        accelerator.print(f"{name}: training {len(found) + 1} of {len(configs)}")
                        put_tensors(trained_parameters(models[name]), starts[name])
                        with computed_for(owner, models[name], task, tokenizer, tables[0]):
                            found[name] = _train(name, trainers[name], train, valid, resume)
    finally:
        for name, start in starts.items():
            put_tensors(trained_parameters(models[name]), start)
    return _ordered([found[name] for name in configs], task, valid, monitor)


def _check(
    models: Mapping[str, torch.nn.Module], task: Task, configs: Mapping[str, TrainConfig]
) -> str:
    """The score that decides. Raises ValueError."""
    if not configs:
        raise ValueError("configs is empty, expected a TrainConfig for each training, by name.")
    if set(models) != set(configs):
        raise ValueError(
            f"there are models for {sorted(models)} and configs for {sorted(configs)}, expected the same names."
        )
    folders: dict[Path, str] = {}
    for name, config in configs.items():
        if (other := folders.setdefault(Path(config.output_dir).absolute(), name)) != name:
            raise ValueError(
                f"{other!r} and {name!r} have the same output_dir {str(config.output_dir)!r}, expected a folder for each."
            )
    monitors = {config.monitor or task.monitor for config in configs.values()}
    if len(monitors) > 1:
        raise ValueError(
            f"the trainings are judged by {sorted(monitors)}, expected one monitor, so that one of them can be the best."
        )
    return monitors.pop()


def _alike(
    models: Mapping[str, torch.nn.Module], configs: Mapping[str, TrainConfig]
) -> list[list[str]]:
    """The names, those together that can read the same states of frozen layers."""
    groups: dict[Any, list[str]] = {}
    for name in configs:
        layers = frozen_layers(models[name])
        groups.setdefault((base_facts(models[name]).fingerprint, layers and layers[1]), []).append(
            name
        )
    return list(groups.values())


def _train(
    name: str, trainer: Trainer, train: datasets.Dataset, valid: datasets.Dataset, resume: bool
) -> Trained:
    scores = trainer.fit(train, valid, resume=resume)
    return Trained(
        name,
        trainer.output_dir,
        scores,
        {},
        trainer.predict(valid),
        trainer.progress.best_step,
        trainer.progress.history,
        None,
    )


def _ordered(
    found: list[Trained], task: Task, valid: datasets.Dataset, monitor: str
) -> list[Trained]:
    sign = -1 if monitor in LOWER_IS_BETTER else 1
    ordered = sorted(
        found, key=lambda one: (-sign * one.scores[monitor], one.scores.get("loss", 0.0))
    )  # as in a training
    judged = beside_best(task, [one.answers for one in ordered], valid, score=monitor)
    return [
        dataclasses.replace(
            one, intervals=intervals, against_best=comparison if one is not ordered[0] else None
        )
        for one, (intervals, comparison) in zip(ordered, judged, strict=True)
    ]

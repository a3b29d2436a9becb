"""Search for a learning rate, a rank and targets, by successive halving on validation rows."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.data.tables import Rows
from peftcls.models.lora_injection import DEFAULT_RANK, attach_lora
from peftcls.models.peft_library import PeftModel
from peftcls.models.weight_sharing import share_base
from peftcls.tasks.base import Task
from peftcls.training.config import TrainConfig
from peftcls.training.prepare import Prepared
from peftcls.training.sweep import Trained, sweep

logger = logging.getLogger("peftcls")

RATE_FACTORS = (0.2, 5.0)
"""The learning rates that are tried, as factors of the default; their logarithm is uniform."""
RANKS = (4, 8, 16, 32)
FIRST_SHARE = 0.25
"""The share of the epochs that all candidates get in the first round."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings that are tried."""

    learning_rate: float
    rank: int
    targets: Any

    @property
    def name(self) -> str:
        """The settings as a short text, which is also the name of a folder."""
        return f"rate {self.learning_rate:.2g}, rank {self.rank}, {self.targets}"


@dataclasses.dataclass(frozen=True, repr=False)
class Found:
    """The result of a search.

    Args:
        best: the settings with the best validation score in the last round.
        rounds: the trainings of each round, each round's best one first.
    """

    best: Candidate
    rounds: list[list[Trained]]

    def __str__(self) -> str:
        lines = []
        for number, trainings in enumerate(self.rounds, 1):
            lines.append(f"round {number}")
            for trained in trainings:
                score, value = next(iter(trained.scores.items()))
                low, high = trained.intervals[score]
                lines.append(
                    f"  {score} {100 * value:5.1f} ({100 * low:.1f} to {100 * high:.1f})  "
                    f"{trained.name}"
                )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def search(
    base: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    train_rows: Rows | Prepared,
    valid_rows: Rows | None = None,
    *,
    trials: int = 8,
) -> Found:
    """Try settings of an adapter, and find those with the best score on validation rows.

    The first candidate has the given learning rate and the default rank and targets; the others are
    drawn around it. All train for a quarter of the epochs; the better half trains again, twice as
    long, until one is left or all epochs are trained (successive halving: Jamieson and Talwalkar
    2016, "Non-stochastic Best Arm Identification", section 3). The base is in memory once, and
    frozen layers are computed once a round. Nothing is left in `output_dir`.

    The best score is optimistic, the more so the more candidates there are: report a score on other
    rows.

    Args:
        base: from `load_base`; without an adapter, and frozen.
        task: with its labels learnt.
        tokenizer: from `load_base`.
        config: of a training with all epochs; its seed also draws the candidates.
        train_rows: as for `Trainer.fit`; or what `prepare` made of these and valid_rows.
        valid_rows: they choose the settings.
        trials: how many candidates there are.

    Raises:
        ValueError: there are fewer than two candidates.
        RowError: rows that cannot be trained on.
    """
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 2:
        raise ValueError(f"trials={trials!r}: expected a whole number of at least 2.")
    candidates = draw_candidates(config.learning_rate, trials, config.seed)
    folder = Path(config.output_dir) / "search"
    rounds = []
    share = FIRST_SHARE
    try:
        while True:
            epochs = max(round(config.epochs * min(share, 1.0)), 1)
            logger.info(f"search: {len(candidates)} candidates, {epochs} epochs each")
            models, configs = _models_and_configs(base, task, config, candidates, epochs, folder)
            trainings = sweep(models, task, tokenizer, configs, train_rows, valid_rows)
            rounds.append(trainings)
            by_name = {candidate.name: candidate for candidate in candidates}
            ranked = [by_name[trained.name] for trained in trainings]
            candidates = ranked[: max(len(ranked) // 2, 1)]
            # One that is left alone has nothing to be compared with.
            if share >= 1 or len(candidates) == 1:
                return Found(ranked[0], rounds)
            share *= 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def draw_candidates(rate: float, count: int, seed: int) -> list[Candidate]:
    """The default settings, and others drawn around them; no two are the same.

    Args:
        rate: the default learning rate.
        count: of the candidates.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    low, high = (np.log(rate * factor) for factor in RATE_FACTORS)
    candidates = {"": Candidate(rate, DEFAULT_RANK, "attention")}
    while len(candidates) < count:
        candidate = Candidate(
            learning_rate=float(f"{np.exp(random.uniform(low, high)):.2g}"),
            rank=int(random.choice(RANKS)),
            targets="attention" if random.random() < 0.5 else "all-linear",
        )
        if candidate != candidates[""]:
            candidates[candidate.name] = candidate
    return list(candidates.values())


def _models_and_configs(
    base: PreTrainedModel,
    task: Task,
    config: TrainConfig,
    candidates: list[Candidate],
    epochs: int,
    folder: Path,
) -> tuple[dict[str, PeftModel], dict[str, TrainConfig]]:
    """A model on the shared base, and the settings of its training, by each candidate's name."""
    models = {}
    configs = {}
    for candidate in candidates:
        models[candidate.name] = attach_lora(
            share_base(base),
            task,
            rank=candidate.rank,
            targets=candidate.targets,
            seed=config.seed,
        )
        configs[candidate.name] = dataclasses.replace(
            config,
            output_dir=folder / candidate.name,
            epochs=epochs,
            learning_rate=candidate.learning_rate,
        )
    return models, configs

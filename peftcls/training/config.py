"""How to optimise: the settings of a training run."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from peftcls.argument_checks import check_argument_types
from peftcls.training.lr_schedule import Schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to optimise. The batch is what matters to the mathematics; how much of it is in memory at once follows.

    Args:
        output_dir: the adapter folder; while the run lasts, checkpoints are kept in it too.
        epochs: passes over the training rows.
        batch_size: rows of an optimizer step, over all processes.
        micro_batch_size: at most this many rows in memory at once, in each process.
        micro_batch_tokens: at most this many tokens in memory at once, with the padding that is computed; without either, a
            number that suits the device.
        learning_rate: its peak.
        weight_decay: of AdamW, on matrices alone, never on norms and biases.
        warmup: the share of the steps over which the learning rate rises.
        schedule: what it does then: "linear" or "cosine" to zero, or "constant".
        max_grad_norm: a longer gradient is cut to this length.
        max_skipped_steps: leave out a step whose loss or gradient is not finite, at most so many in the whole run; it need not be begun
            again without the rows. Such rows are named each time.
        gradient_checkpointing: hold the states between layers alone and compute the rest again on the way back: less memory,
            about a third more time, the same weights.
        cuda_graphs: on a GPU, record what is done for a small batch of a shape and replay it: the same sums, several times faster.
        eval_every: steps between evaluations and checkpoints; an epoch unless given.
        patience: stop after this many evaluations in a row without a better score.
        monitor: the score that decides; the task's own unless given.
        log_every: steps between two entries of the log.
        seed: of the order of the rows and of dropout.
        trackers: names of Accelerate's trackers, for example ("tensorboard",).

    Raises:
        ValueError: all settings that cannot be, at once.
    """

    output_dir: str | Path
    epochs: int = 3
    batch_size: int = 16
    micro_batch_size: int | None = None
    micro_batch_tokens: int | None = None
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.06
    schedule: Schedule = "linear"
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 0
    gradient_checkpointing: bool = False
    cuda_graphs: bool = True
    eval_every: int | None = None
    patience: int | None = None
    monitor: str | None = None
    log_every: int = 10
    seed: int = 0
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_argument_types(vars(self), TrainConfig)
        whole = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "micro_batch_size": self.micro_batch_size,
            "micro_batch_tokens": self.micro_batch_tokens,
            "eval_every": self.eval_every,
            "patience": self.patience,
            "log_every": self.log_every,
        }
        problems = [
            f"{name}={value!r}: expected a whole number of at least 1"
            for name, value in whole.items()
            if value is not None and (not isinstance(value, int) or value < 1)
        ]
        problems += [
            f"{name}={value!r}: expected a number above 0"
            for name, value in {
                "learning_rate": self.learning_rate,
                "max_grad_norm": self.max_grad_norm,
            }.items()
            if not 0 < value < math.inf
        ]
        problems += [
            f"{name}={value!r}: expected a number of at least 0"
            for name, value in {
                "weight_decay": self.weight_decay,
                "seed": self.seed,
                "max_skipped_steps": self.max_skipped_steps,
            }.items()
            if not 0 <= value < math.inf
        ]
        if not 0 <= self.warmup < 1:
            problems.append(
                f"warmup={self.warmup!r}: expected a share of the steps, from 0 to below 1"
            )
        if self.schedule not in ("linear", "cosine", "constant"):
            problems.append(
                f"schedule={self.schedule!r}: expected 'linear', 'cosine' or 'constant'"
            )
        if problems:
            raise ValueError("TrainConfig: " + "; ".join(problems) + ".")

    def check_scores(self, names: Sequence[str], *, given: bool) -> None:
        """Raise ValueError where the run is to be judged by a score that there is not.

        Args:
            names: of the task's scores.
            given: whether there are validation rows.
        """
        if not given and (self.patience is not None or self.monitor is not None):
            raise ValueError(
                "patience and monitor need a score on validation rows; give fit(train_rows, valid_rows), or leave both out."
            )
        if self.monitor is not None and self.monitor not in names:
            raise ValueError(f"monitor={self.monitor!r}: expected one of {list(names)}.")

"""The settings of a training run."""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Number
from pathlib import Path
from typing import Any, Literal, get_args

from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.data.reading import Row
from peftcls.engine.fast_paths import FastPaths
from peftcls.metrics import NUMBER_ERROR
from peftcls.quality.split_checks import MIN_EVALUATION_ROWS
from peftcls.tasks.base import Task
from peftcls.tasks.descriptions import describe_fields
from peftcls.tasks.own_metrics import Metrics, OwnMetrics
from peftcls.training.data_order import steps_per_epoch
from peftcls.training.defaults import FEW_ROWS, FEW_ROWS_EVAL_EVERY, defaults_for, has_few_rows
from peftcls.training.lr_schedule import Schedule

HeadInit = Literal["probe", "random"]
Objective = Literal["answers", "contrast"]


@names_arguments
@dataclasses.dataclass(frozen=True, repr=False)
class TrainConfig:
    """How to optimize. `batch_size` decides what is learnt; micro-batches only decide the memory.

    `TrainConfig.for_task` chooses epochs, batch size and learning rate by the kind of work and the
    size of the table.

    Args:
        output_dir: the adapter folder; during the run it holds checkpoints too.
        epochs: passes over the training rows.
        head_init: how a new head begins: as the "probe", the best linear head on the states of the
            frozen base (linear probing, then fine-tuning: Kumar et al. 2022, section 3), or with
            "random" weights. With validation rows the probe is the first candidate for the best
            step. Heads that are not new ignore it.
        objective: what the steps lower: the loss of the "answers"; or, for a few rows with one
            label each, the loss of "contrast" (Khosla et al. 2020): states of one label come
            together, and before each evaluation the head becomes the linear probe of the states.
            A head that is not new, and other kinds of work, learn by their answers.
        batch_size: rows of an optimizer step, over all processes.
        micro_batch_size: at most this many rows in memory at once, in each process.
        micro_batch_tokens: at most this many tokens in memory at once, including padding that is
            computed; without either, a number that suits the device.
        learning_rate: the peak learning rate.
        weight_decay: of AdamW, for matrices only, never for norms and biases.
        warmup: the share of the steps over which the learning rate rises.
        schedule: what the learning rate does then: "linear" or "cosine" to zero, or "constant".
        max_grad_norm: a gradient with a larger norm is scaled down to this norm.
        max_skipped_steps: at most this many steps of the run may be skipped because their loss or
            gradient is not finite; one more ends the run. A message names their rows.
        gradient_checkpointing: keep only the states between layers and compute the rest again in
            the backward pass: less memory, about a third more time, the same weights.
        fast_paths: which ways to compute the same in less time may be used.
        eval_every: steps between evaluations and checkpoints; an epoch unless given.
        patience: stop after this many evaluations in a row without a better score.
        monitor: the score that decides which step is best; unless given, the task's own, or
            its loss on fewer than 20 validation rows. One of `metrics` can be it, too.
        metrics: your own, beside the scores of the task: a function f(predictions, references), an
            `evaluate.EvaluationModule`, what `evaluate.combine` returns, an object with `update`
            and `compute` (torchmetrics), or the name of a metric of scikit-learn; or several of
            these, or a mapping from names to them.
        log_every: steps between two entries of the log.
        seed: of the order of the rows and of dropout.
        trackers: names of Accelerate's trackers, for example ("tensorboard",).
        cache_dir: a folder where tokenized rows stay, so that a further run on the same rows finds
            them; unless given, they are removed when the program ends.
        cuda_graphs: deprecated; use fast_paths=FastPaths(cuda_graphs=...).

    Raises:
        ValueError: settings that are not allowed, all of them in one message.
    """

    output_dir: str | Path
    epochs: int = 4
    head_init: HeadInit = "probe"
    objective: Objective = "answers"
    batch_size: int = 16
    micro_batch_size: int | None = None
    micro_batch_tokens: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.06
    schedule: Schedule = "linear"
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 0
    gradient_checkpointing: bool = False
    fast_paths: FastPaths = dataclasses.field(default_factory=FastPaths)
    eval_every: int | None = None
    patience: int | None = None
    monitor: str | None = None
    metrics: Metrics = None
    log_every: int = 10
    seed: int = 0
    trackers: tuple[str, ...] = ()
    cache_dir: str | Path | None = None
    cuda_graphs: dataclasses.InitVar[bool | None] = None

    def __post_init__(self, cuda_graphs: bool | None) -> None:
        check_argument_types(vars(self), TrainConfig)
        problems = self._problems()
        if problems:
            raise ValueError("TrainConfig: " + "; ".join(problems) + ".")
        if cuda_graphs is not None:
            if not isinstance(cuda_graphs, bool):
                raise ValueError(f"cuda_graphs={cuda_graphs!r}: expected True or False.")
            warnings.warn(
                "TrainConfig(cuda_graphs=...) is deprecated; use "
                f"fast_paths=FastPaths(cuda_graphs={cuda_graphs}).",
                DeprecationWarning,
                stacklevel=4,
            )
            both = self.fast_paths & FastPaths(cuda_graphs=cuda_graphs)
            object.__setattr__(self, "fast_paths", both)

    def __repr__(self) -> str:
        return describe_fields(self)

    @classmethod
    def for_task(
        cls, output_dir: str | Path, task: Task, *, rows: int, **settings: Any
    ) -> "TrainConfig":
        """The settings that suit a kind of work and a size of table: batch size, rate, objective...

        They are those of the recipes and of the command.

        Args:
            output_dir: as of the class.
            task: decides the kind of work: a head, spans, a closed set of labels, or a text.
            rows: of the training table; a small one is passed over more often.
            settings: any others of the class, and those to set otherwise; None counts as not given.

        Raises:
            ValueError: as the class.
        """
        if not isinstance(task, Task):
            raise ValueError(f"task={task!r}: expected a task, such as Classification(...).")
        if not isinstance(rows, Integral) or isinstance(rows, bool) or rows < 1:
            shown = rows if isinstance(rows, Number) else type(rows).__name__
            raise ValueError(f"rows={shown}: expected the number of training rows, len(train).")
        given = {name: value for name, value in settings.items() if value is not None}
        is_few = given.get("objective") != "answers" and has_few_rows(task, int(rows))
        defaults = FEW_ROWS if is_few else defaults_for(task)
        batch_size = given.get("batch_size", defaults.batch_size)
        if not isinstance(batch_size, int) or batch_size < 1:
            # Refused below.
            return cls(output_dir, **given)
        chosen: dict[str, Any] = {
            "batch_size": batch_size,
            "learning_rate": defaults.rate_for(int(rows), batch_size),
            "epochs": defaults.epochs_for(int(rows), batch_size),
        }
        if is_few:
            chosen |= {"objective": "contrast", "eval_every": FEW_ROWS_EVAL_EVERY}
        return cls(output_dir, **{**chosen, **given})

    def _problems(self) -> list[str]:
        """A sentence for each setting that is not allowed."""
        counts = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "micro_batch_size": self.micro_batch_size,
            "micro_batch_tokens": self.micro_batch_tokens,
            "eval_every": self.eval_every,
            "patience": self.patience,
            "log_every": self.log_every,
        }
        positive = {"learning_rate": self.learning_rate, "max_grad_norm": self.max_grad_norm}
        not_negative = {
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "max_skipped_steps": self.max_skipped_steps,
        }
        problems = [
            *_not_counts(counts),
            *_not_positive(positive),
            *_negative(not_negative),
        ]
        if not 0 <= self.warmup < 1:
            problems.append(
                f"warmup={self.warmup!r}: expected a share of the steps, from 0 to below 1"
            )
        if self.schedule not in get_args(Schedule):
            problems.append(
                f"schedule={self.schedule!r}: expected 'linear', 'cosine' or 'constant'"
            )
        if self.head_init not in get_args(HeadInit):
            problems.append(f"head_init={self.head_init!r}: expected 'probe' or 'random'")
        if self.objective not in get_args(Objective):
            problems.append(f"objective={self.objective!r}: expected 'answers' or 'contrast'")
        if not isinstance(self.fast_paths, FastPaths):
            problems.append(f"fast_paths={self.fast_paths!r}: expected a FastPaths")
        try:
            OwnMetrics.of(self.metrics)
        except ValueError as error:
            problems.append(str(error).rstrip("."))
        return problems

    @property
    def own_metrics(self) -> OwnMetrics:
        """The user's own metrics."""
        return OwnMetrics.of(self.metrics)

    def to_json(self) -> dict[str, Any]:
        """The settings by name; of metrics, which are code, their names if there are any."""
        settings = dataclasses.asdict(dataclasses.replace(self, metrics=None))
        del settings["metrics"]
        if self.own_metrics.names:
            settings["metrics"] = list(self.own_metrics.names)
        return settings

    def total_steps(self, rows: int) -> int:
        """The number of optimizer steps of a run, if patience does not end it.

        Args:
            rows: of the training table.
        """
        return steps_per_epoch(rows, self.batch_size) * self.epochs

    def evaluation_interval(self, rows: int) -> int:
        """The number of steps between two evaluations.

        Args:
            rows: of the training table.
        """
        return self.eval_every or steps_per_epoch(rows, self.batch_size)

    def monitor_for(self, task: Task, valid_rows: int) -> str:
        """The score that decides which step is best.

        On a few rows it is mostly luck how many are right: there the loss decides, if the task has
        one among its scores. Of numbers the error decides: a correlation is as high where all
        answers lie near their mean.

        Args:
            task: what the rows mean.
            valid_rows: how many rows there are to decide by.
        """
        if self.monitor is not None:
            return self.monitor
        if task.answer_kind == "number" and NUMBER_ERROR in task.score_names:
            return NUMBER_ERROR
        is_coarse = valid_rows < MIN_EVALUATION_ROWS and "loss" in task.score_names
        return "loss" if is_coarse else task.monitor

    def is_lower_better(self, score: str) -> bool:
        """Whether a lower value of a score is better."""
        return self.own_metrics.lower_is_better(score)

    def check_scores(self, names: Sequence[str], *, has_valid: bool) -> None:
        """Check that the run can be judged as the settings ask.

        Args:
            names: of the task's scores.
            has_valid: whether there are validation rows.

        Raises:
            ValueError: patience or monitor is set without validation rows, or the task has no score
                of this name.
        """
        if not has_valid and (self.patience is not None or self.monitor is not None):
            raise ValueError(
                "patience and monitor need a score on validation rows; give "
                "fit(train_rows, valid_rows), or leave both out."
            )
        if self.monitor is None or self.own_metrics.may_give(self.monitor):
            return
        self._check_monitor([*names, *self.own_metrics.names])

    def try_metrics(self, task: Task, rows: Iterable[Row] | None) -> None:
        """Score the right answers to rows by the user's own metrics, before a run.

        Args:
            task: what the rows mean.
            rows: those that decide which step is best; None for no rows.

        Raises:
            ValueError: a metric fails, or none has the score that `monitor` names.
        """
        if rows is None:
            return
        self._check_monitor([*task.score_names, *self.own_metrics.try_on(task, rows)])

    def _check_monitor(self, names: Sequence[str]) -> None:
        if self.monitor is not None and self.monitor not in names:
            raise ValueError(f"monitor={self.monitor!r}: expected one of {list(names)}.")


def _not_counts(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={value!r}: expected a whole number of at least 1"
        for name, value in settings.items()
        if value is not None and (not isinstance(value, int) or value < 1)
    ]


def _not_positive(settings: Mapping[str, float]) -> list[str]:
    return [
        f"{name}={value!r}: expected a number above 0"
        for name, value in settings.items()
        if not 0 < value < math.inf
    ]


def _negative(settings: Mapping[str, float]) -> list[str]:
    return [
        f"{name}={value!r}: expected a number of at least 0"
        for name, value in settings.items()
        if not 0 <= value < math.inf
    ]

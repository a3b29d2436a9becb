"""The state of a training run: its progress and best weights, kept in checkpoints.

It also holds what all processes must agree on: what went wrong, and which signal was received.
"""

import contextlib
import functools
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast, gather_object

from peftcls.engine.agreement import failing_together
from peftcls.engine.last_words import saying_why_others_end
from peftcls.engine.model_state import state_of
from peftcls.errors import RunStoppedError
from peftcls.metrics import rank_scores
from peftcls.models import adapter_methods
from peftcls.models.trainable import copy_tensors, put_tensors
from peftcls.tasks.base import Task
from peftcls.training import checkpoint as checkpoints
from peftcls.training.checkpoint import Progress, Tensors
from peftcls.training.gradient_accumulation import GradientAccumulator
from peftcls.training.run_info import first_labels, labels_without_judge
from peftcls.training.run_log import log_info, log_warning
from peftcls.training.signals import Signals, end_by


class RunState:
    """The state of the run that is under way, or of the last one.

    Args:
        output_dir: of the run; it holds the checkpoints.
        gradients: of the model; has the trained parameters.
        optimizer: of these.

    Attributes:
        progress: how far the run is.
        best: the weights of the best step so far; None before the first evaluation.
        start: the weights before the first step, if they are a linear probe.
        identity: what must be the same when the run is resumed; None where no run is under way, so
            that no checkpoint is written when something goes wrong.
        signals: that this process has received.
        stop_signal: the signal that any process has received; 0 for none.
        keeps_last: whether the last step is kept, whatever the scores on the validation rows.
    """

    def __init__(
        self, output_dir: Path, gradients: GradientAccumulator, optimizer: torch.optim.Optimizer
    ) -> None:
        self.output_dir = output_dir
        self.gradients = gradients
        self.model = gradients.model
        self.parameters = gradients.parameters
        self.processes = gradients.processes
        self.optimizer = optimizer
        self.progress = Progress()
        self.best: Tensors | None = None
        self.start: Tensors | None = None
        self.identity: dict[str, Any] | None = None
        self.signals = Signals()
        self.stop_signal = 0
        self.keeps_last = False

    def begin(self, total_steps: int, *, resume: bool) -> None:
        """Start at the first step, or from the newest whole checkpoint.

        Args:
            total_steps: of the run.
            resume: whether to continue from a checkpoint, if there is one.

        Raises:
            ValueError: there are checkpoints of a run that is not to be resumed, or of another run.
            RunStoppedError: the disk has too little free space for a checkpoint.
        """
        self.progress = Progress()
        self.best = None
        self.start = None
        self.stop_signal = 0
        adapter_methods.begin_method(self.model, total_steps)
        checkpoint, damages = checkpoints.choose_checkpoint(self.output_dir, resume=resume)
        for sentence in damages:
            log_warning(f"{sentence}; it is skipped.")
        size = checkpoints.checkpoint_bytes(self.parameters)
        with failing_together():
            checkpoints.check_disk_space(self.output_dir, size)
        for parameter in self.parameters.values():
            # Every process starts from the main process's weights.
            broadcast(parameter.data)
        if checkpoint is not None:
            with failing_together():
                self._restore(checkpoint)
        elif resume:
            log_warning(
                f"there is no checkpoint in {self.output_dir} to resume from: this run begins with "
                "its first step."
            )
        self.gradients.tokens = self.progress.tokens

    def _restore(self, checkpoint: Path) -> None:
        restored = checkpoints.read_checkpoint(
            checkpoint, self.parameters, self.optimizer, self.identity or {}
        )
        self.progress = restored.progress
        self.best = restored.best
        self.start = restored.start
        adapter_methods.restore_method_state(self.model, restored.method)
        log_info(f"resuming from {checkpoint.name}")

    def choose_by(self, task: Task, valid_rows: datasets.Dataset | None) -> None:
        """Choose the best step by these rows, unless they say nothing about new labels.

        Args:
            task: with all labels.
            valid_rows: the rows; None for none.
        """
        added = labels_without_judge(self.model, task, valid_rows)
        self.keeps_last = bool(added)
        if added:
            log_warning(
                f"no validation row has a label that is new: {first_labels(added)}. So these rows "
                "do not choose the best step, and the last one is kept. Give rows with the new "
                "labels for validation too."
            )

    def keep_if_best(self, scores: dict[str, float], step: int, monitor: str) -> None:
        """Keep the present weights if they are the best so far.

        Of equal scores the one with the lower loss is better.

        Args:
            scores: of these weights on the validation rows.
            step: how many steps are done.
            monitor: the score that decides.
        """
        progress = self.progress
        if not adapter_methods.has_settled(self.model, step):
            return
        lower_is_better = self.gradients.config.is_lower_better(monitor)
        rank = functools.partial(rank_scores, monitor=monitor, lower_is_better=lower_is_better)
        if self.keeps_last or rank(scores) > rank(progress.best_scores):
            self.best = copy_tensors(self.parameters)
            progress.best_scores = scores
            progress.best_step = step
            progress.evaluations_since_best = 0
        else:
            progress.evaluations_since_best += 1

    def put_best(self) -> None:
        """Give the model the weights of the best step; without an evaluation it keeps the last."""
        if self.best is None:
            return
        put_tensors(self.parameters, self.best)
        lineage = state_of(self.model).lineage
        if self.progress.best_step == 0 and lineage:
            log_warning(
                "no step was better on the validation rows than the adapter that this run was "
                f"continued from, {lineage[-1]['folder']}: its weights are what is saved. Give "
                "more new rows, or train anew on all rows together."
            )

    @contextlib.contextmanager
    def keeping_progress(self) -> Iterator[None]:
        """Write a checkpoint if the body fails or is stopped, then raise its error.

        The body changes no weight, so the checkpoint holds all steps before it.
        """
        try:
            yield
        except BaseException as error:
            if self.identity is not None and self.progress.step:
                with contextlib.suppress(RunStoppedError):
                    self._write_own_checkpoint()
                    if not isinstance(error, Exception):
                        log_warning(f"stopped after step {self.progress.step}, {self.resume_hint}")
            raise

    def saying_why_others_end(self) -> AbstractContextManager[None]:
        """Say so where the body fails because another process has ended, and why that one did."""
        return saying_why_others_end(
            lambda: f"after step {self.progress.step}",
            "Go on with resume=True, on any number of processes.",
        )

    def skip_step(self, sentence: str, step: int) -> None:
        """Continue without a step that is not finite, as often as the settings allow.

        Raises:
            FloatingPointError: as many steps as are allowed have been skipped.
        """
        skipped_steps = self.progress.skipped_steps
        config = self.gradients.config
        max_skipped = config.max_skipped_steps
        if self.identity is None or len(skipped_steps) >= max_skipped:
            raise FloatingPointError(
                f"{sentence} Lower the learning rate (now {config.learning_rate}), look at "
                f"these rows, or go on without such steps: max_skipped_steps={max_skipped + 1} and "
                "resume=True."
            )
        skipped_steps.append(step + 1)
        log_warning(f"{sentence} It is skipped, as {len(skipped_steps)} of at most {max_skipped}.")

    def write_checkpoint(self) -> None:
        """Write a checkpoint, and wait until all processes know whether that worked.

        Raises:
            RunStoppedError: it cannot be written, or the weights of a process are not finite.
        """
        where = ""
        if self.processes.num_processes > 1:
            where = f" in process {self.processes.process_index}"
        with failing_together():
            checkpoints.check_tensors(self.parameters, self.progress.step, where)
        problem = None
        try:
            self._write_own_checkpoint()
        except RunStoppedError as error:
            problem = str(error)
        self.agree(problem)

    def _write_own_checkpoint(self) -> None:
        """Write a checkpoint if this is the main process, without waiting for others."""
        self.progress.tokens = self.gradients.tokens
        if self.processes.is_main_process:
            checkpoints.write_checkpoint(
                self.output_dir,
                self.progress,
                self.parameters,
                self.optimizer,
                self.best,
                adapter_methods.method_state(self.model),
                self.identity or {},
                start=self.start,
            )

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints, oldest first: an interruption leaves the newest."""
        if self.processes.is_main_process:
            for checkpoint in reversed(checkpoints.find_checkpoints(self.output_dir)):
                checkpoints.remove_checkpoint(checkpoint)

    def agree(self, problem: str | None = None) -> None:
        """Wait for all processes, and exchange what went wrong and which signals were received.

        Args:
            problem: what went wrong in this process.

        Raises:
            RunStoppedError: something went wrong in one of the processes.
        """
        reports = gather_object([(problem, self.signals.number)])
        self.stop_signal = max(self.stop_signal, *(number for _, number in reports))
        problems = [sentence for sentence, _ in reports if sentence is not None]
        if problems:
            raise RunStoppedError(problems[0])

    def end_by_signal(self, sentence: str) -> None:
        """Log a sentence, wait for all processes, and end the program as the signal asks."""
        log_warning(f"{signal.Signals(self.stop_signal).name}: {sentence}")
        self.processes.wait_for_everyone()
        end_by(self.stop_signal)

    @property
    def resume_hint(self) -> str:
        """The end of a sentence that says how to continue."""
        return (
            f"whose checkpoint is in {self.output_dir}; go on with --resume, in Python with "
            "resume=True."
        )

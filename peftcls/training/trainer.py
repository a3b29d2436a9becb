"""The training loop, on one process or many: the same rows, the same sums, the same weights."""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather_object
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, as_dataset, source_name
from peftcls.errors import RunStoppedError
from peftcls.inference.predictor import CHUNK_ROWS, Predictor
from peftcls.metrics import rank_scores
from peftcls.models import adapter_methods
from peftcls.models.adapter_folder import check_not_start, save_adapter
from peftcls.models.model_card import write_card
from peftcls.models.state import base_facts
from peftcls.models.trainable import (
    checkpoint_layers,
    copy_tensors,
    put_tensors,
    train_mode,
    trained_parameters,
)
from peftcls.quality.examine import FEWEST_JUDGES, refuse_errors
from peftcls.tasks.base import Answer, Task, token_limit
from peftcls.tasks.encoding import TrainingTable, encode_table
from peftcls.tasks.row_checks import check_rows
from peftcls.training import checkpoint as disk
from peftcls.training import data_order, lost_processes
from peftcls.training.checkpoint import Progress, Tensors
from peftcls.training.config import TrainConfig
from peftcls.training.dry_run import Rehearsal, longest_rows, rehearse
from peftcls.training.frozen_tables import computed_once
from peftcls.training.gradient_accumulation import PATIENT_SECONDS, Gradients
from peftcls.training.lr_schedule import learning_rate_factor
from peftcls.training.preflight import alone_in, check_launch, check_output_dir, start_trackers
from peftcls.training.run_info import describe_model, identify_run
from peftcls.training.save_check import compare_reloaded
from peftcls.training.signals import Signals, end_by

PROBE_ROWS, GO_ON = 4, "whose checkpoint is in {}; go on with fit(..., resume=True), or --resume."


class Trainer:
    """Trains what `attach_lora` or `train_only` opened, and leaves a folder that `load_predictor` reads.

    Raises:
        ValueError: nothing of the model is trained, it learns on from `output_dir`, or the launcher asks for what is not done here.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
    ) -> None:
        if absent := sorted(
            set(config.trackers) - (here := {str(t) for t in get_available_trackers()})
        ):
            raise ValueError(
                f"trackers names {absent[0]!r}, expected some of {sorted(here)}: those of Accelerate that are installed here."
            )
        # Accelerate looks for other processes on a machine without an accelerator only when it is told that there is none.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            log_with=list(config.trackers) or None,
            project_dir=str(config.output_dir),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENT_SECONDS))],
        )
        check_launch(
            self.accelerator.num_processes,
            self.accelerator.distributed_type,
            self.accelerator.mixed_precision,
        )
        self.parameters = trained_parameters(model)
        if not self.parameters:
            raise ValueError(
                "nothing of the model is trained; call attach_lora(model, task) or train_only(model, task, ...) first."
            )
        if base_facts(model).quantize is None:
            model.to(self.accelerator.device)
        self.model, self.task, self.tokenizer, self.config = model, task, tokenizer, config
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        self.output_dir = Path(config.output_dir)
        check_output_dir(self.output_dir)
        check_not_start(self.output_dir, model)
        self.optimizer = adapter_methods.make_optimizer(
            model, self.parameters, config.learning_rate, config.weight_decay
        )
        self.best: Tensors | None = None
        self._probe: list[Row] = []
        self._asked: tuple[datasets.Dataset, TrainingTable] | None = (
            None  # the validation rows of a `fit`, and the same in tokens
        )
        self._signals, self._stop, self.progress = Signals(), 0, Progress()
        self._run: dict[str, Any] | None = None
        self.gradients = Gradients(
            model, task, tokenizer, config, self.parameters, self.accelerator.autocast
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:  # the others may wait elsewhere, or be gone
            self.accelerator.end_training()

    def fit(
        self,
        train_rows: datasets.Dataset | Iterable[Mapping[str, Any]],
        valid_rows: datasets.Dataset | Iterable[Mapping[str, Any]] | None = None,
        *,
        resume: bool = False,
    ) -> dict[str, float]:
        """Train, keep the best adapter by the validation score (the last one without), and save it to `output_dir`.

        Args:
            train_rows: the rows to learn from.
            valid_rows: the rows that decide which step was best; never learnt from.
            resume: go on from the newest checkpoint in `output_dir`, if there is one; the result is the one that the
                uninterrupted run would have had.

        Returns:
            The best step's validation scores; empty without validation rows.

        Raises:
            RowError: rows that cannot be learnt from, before anything is written.
            FloatingPointError: the loss or a gradient is not finite; the weights, and a checkpoint, are those before that step.
            RunStoppedError: memory or disk is used up, or another process is gone; the last checkpoint is whole.
            KeyboardInterrupt: after SIGINT, a step's end or within an evaluation, and a checkpoint; after SIGTERM SystemExit(143).
        """
        train, valid = (
            as_dataset(train_rows, "train_rows"),
            None if valid_rows is None else as_dataset(valid_rows, "valid_rows"),
        )
        check_rows(self.task, train, training=True)
        if valid is not None:
            check_rows(self.task, valid)
            held = encode_table(
                self.task, valid, self.tokenizer, base_facts(self.model).fingerprint
            )
            self._asked = (
                valid,
                encode_table(
                    self.task,
                    valid,
                    self.tokenizer,
                    base_facts(self.model).fingerprint,
                    with_target=False,
                ),
            )
        self.config.check_scores(self.task.score_names, given=valid is not None)
        examination = refuse_errors(self.task, train, valid)
        if any(found.severity == "warning" for found in examination.findings):
            self.accelerator.print(examination)
        table = encode_table(self.task, train, self.tokenizer, base_facts(self.model).fingerprint)
        self._probe = (
            train.select(range(min(PROBE_ROWS, len(train))))
            .select_columns(self.task.columns(with_target=False))
            .to_list()
        )
        per_epoch = data_order.steps_per_epoch(len(train), self.config.batch_size)
        self._run = identify_run(self.model, self.task, self.config, table, valid)
        try:
            with (
                self._signals.caught(),
                alone_in(self.output_dir, first=self.accelerator.is_main_process),
            ):
                self._begin(table, train, resume, per_epoch * self.config.epochs)
                once = (
                    self.config.epochs == 1
                    or self.progress.examined_step == per_epoch * self.config.epochs
                )
                with computed_once(
                    self.model,
                    self.task,
                    self.tokenizer,
                    [] if once else [table] if valid is None else [table, held],
                    folder=self.output_dir,
                    rows=self.config.micro_batch_size,
                    shown=self.accelerator.is_main_process,
                ):
                    self._signals.is_put_off = True
                    self._loop(table, valid, per_epoch)
                self._finish()
        except RuntimeError as error:
            if self.accelerator.num_processes == 1 or not lost_processes.is_lost_process(error):
                raise
            raise RunStoppedError(
                f"another process has ended or does not answer, after step {self.progress.step} ({error}). Go on with "
                "resume=True, on any number of processes."
            ) from error
        finally:
            self._run = None
        return self.progress.best_scores

    def _begin(
        self, table: TrainingTable, train: datasets.Dataset, resume: bool, steps: int
    ) -> None:
        self.progress, self.best, self._stop = Progress(), None, 0
        adapter_methods.begin_method(self.model, steps)
        chosen, damaged = disk.choose_checkpoint(self.output_dir, resume=resume)
        for sentence in damaged:
            self.accelerator.print(f"{sentence}; it is left out.")
        disk.check_room(self.output_dir, disk.checkpoint_bytes(self.parameters))
        for parameter in self.parameters.values():
            broadcast(parameter.data)  # every process starts from the first one's weights
        if chosen is not None:
            self.progress, self.best, method = disk.read_checkpoint(
                chosen, self.parameters, self.optimizer, self._run or {}
            )
            adapter_methods.restore_method_state(self.model, method)
            self.accelerator.print(f"going on from {chosen.name}")
        elif resume:
            self.accelerator.print(
                f"there is no checkpoint in {self.output_dir} to go on from: this run begins with its first step."
            )
        self.gradients.tokens = self.progress.tokens
        self.accelerator.print(describe_model(self.model, self.task))
        if table.shortened_rows:
            most = token_limit(self.tokenizer, getattr(self.task, "max_length", 0))
            self.accelerator.print(
                f"{table.shortened_rows} of {len(train)} rows of {source_name(train)} are longer than {most} tokens; "
                "their text is shortened at its end."
            )
        if self.config.trackers:
            start_trackers(self.accelerator.init_trackers, self.config)

    def _loop(self, table: TrainingTable, valid: datasets.Dataset | None, per_epoch: int) -> None:
        config, steps, rows = self.config, per_epoch * self.config.epochs, len(table.lengths)
        every = config.eval_every or per_epoch
        bar = tqdm(
            total=rows * config.epochs,
            unit="row",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            initial=data_order.rows_before(rows, config.batch_size, self.progress.step),
        )
        train_mode(self.model)
        for step in range(self.progress.step, steps + 1):  # so many are done
            if step and (step % every == 0 or step == steps) and self.progress.examined_step < step:
                if valid is not None:
                    with self._kept(), self._signals.not_put_off():
                        scores = self.evaluate(valid)
                    self._judge(scores, step, bar)
                    train_mode(self.model)
                self.progress.examined_step = step
                self._write_checkpoint()
            if self._stop:
                self._end_by_signal(
                    f"stopped after step {step} of {steps}, {GO_ON.format(self.output_dir)}"
                )
            if step == steps or (
                config.patience is not None
                and self.progress.evaluations_since_best >= config.patience
            ):
                break
            indices = data_order.step_rows(rows, config.batch_size, config.seed, step, table.strata)
            loss = self._step(table, indices, step, steps)
            self.progress.losses += [] if loss is None else [loss]
            self.progress.step = step + 1
            bar.update(len(indices))
            if self.progress.losses and ((step + 1) % config.log_every == 0 or step + 1 == steps):
                self._log({"step": step + 1, "loss": float(np.mean(self.progress.losses))}, bar)
                self.progress.losses = []
            if (
                self._stop
            ):  # before an evaluation, which may take longer than a program is given to end
                self._write_checkpoint()
                self.progress.examined_step = step + 1
        bar.close()
        self.model.eval()

    def _write_checkpoint(self) -> None:
        problem = None
        try:
            self._write_alone()
        except RunStoppedError as error:
            problem = str(error)
        self._agree(problem)

    def _write_alone(self) -> None:
        self.progress.tokens = self.gradients.tokens
        if self.accelerator.is_main_process:
            disk.write_checkpoint(
                self.output_dir,
                self.progress,
                self.parameters,
                self.optimizer,
                self.best,
                adapter_methods.method_state(self.model),
                self._run or {},
            )

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What goes wrong within it changes no weight: the steps since the last checkpoint are kept, and then the error goes on."""
        try:
            yield
        except BaseException as error:
            if self._run is not None and self.progress.step:
                with contextlib.suppress(RunStoppedError):
                    self._write_alone()
                    if not isinstance(error, Exception):
                        self.accelerator.print(
                            f"\nstopped after step {self.progress.step}, {GO_ON.format(self.output_dir)}"
                        )
            raise

    def _agree(self, problem: str | None = None) -> None:
        """Wait for all processes; what went wrong in one of them, or a signal that it has had, is then known to all."""
        found = gather_object([(problem, self._signals.number)])
        self._stop = max(self._stop, *(number for _, number in found))
        if told := [sentence for sentence, _ in found if sentence is not None]:
            raise RunStoppedError(told[0])

    def _end_by_signal(self, sentence: str) -> None:
        self.accelerator.print(f"\n{signal.Signals(self._stop).name}: {sentence}")
        self.accelerator.wait_for_everyone()
        end_by(self._stop)

    def _finish(self) -> None:
        """Save the best adapter, and remove the checkpoints when it is whole."""
        if self.best is not None:
            put_tensors(self.parameters, self.best)
        adapter_methods.end_method(self.model)
        try:
            self.save(self.output_dir)
            disk.flush(self.output_dir)
        except (OSError, SafetensorError) as error:
            raise RunStoppedError(
                f"the adapter cannot be written to {self.output_dir} ({error}); the last checkpoint is whole. Free some "
                "room on its disk, and go on with resume=True."
            ) from error
        if self.accelerator.is_main_process:
            for checkpoint in reversed(disk.find_checkpoints(self.output_dir)):
                disk.remove_checkpoint(checkpoint)
        self._agree()
        if self._stop:
            self._end_by_signal(f"the run is finished, and its adapter is in {self.output_dir}.")

    def _step(
        self, table: TrainingTable, indices: list[int], step: int, steps: int
    ) -> float | None:
        """One optimizer step: the gradient of the sum of all losses over the sum of all weights. Returns that loss; None if left out."""
        config = self.config
        with self._kept():
            total, self._stop = self.gradients.add_up(table, indices, step, self._signals)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
            if not math.isfinite(total) or not math.isfinite(float(norm)):
                self._leave_out(
                    self.gradients.describe_not_finite(table, indices, step, total, float(norm)),
                    step,
                )
                return None
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(
                step, steps, warmup=config.warmup, schedule=config.schedule
            )
            group["lr"] = config.learning_rate * group["factor"] * factor
        self.optimizer.step()
        adapter_methods.end_step(self.model, step + 1)
        self.optimizer.zero_grad()
        return total

    def _leave_out(self, sentence: str, step: int) -> None:
        """Go on without a step that is not finite, as often as is allowed."""
        skipped, most = self.progress.skipped_steps, self.config.max_skipped_steps
        if self._run is None or len(skipped) >= most:
            raise FloatingPointError(
                f"{sentence} Lower the learning rate (now {self.config.learning_rate}), look at these rows, or go on "
                f"without such steps: max_skipped_steps={most + 1} and resume=True."
            )
        skipped.append(step + 1)
        self.accelerator.print(
            f"\n{sentence} It is left out, as {len(skipped)} of at most {most} steps."
        )

    def _judge(self, scores: dict[str, float], step: int, bar: Any) -> None:
        """Keep these weights if they are the best so far; of equal scores the one with the lower loss is better."""
        monitor = self.config.monitor or self.task.monitor
        rank, best = (rank_scores(found, monitor) for found in (scores, self.progress.best_scores))
        settled = adapter_methods.has_settled(self.model, step)
        if settled and rank > best:
            self.best = copy_tensors(self.parameters)
            (
                self.progress.best_scores,
                self.progress.best_step,
                self.progress.evaluations_since_best,
            ) = scores, step, 0
        elif settled:
            self.progress.evaluations_since_best += 1
        self._log({"step": step, **{f"valid_{name}": value for name, value in scores.items()}}, bar)

    def _log(self, entry: dict[str, float], bar: Any) -> None:
        self.progress.history.append(entry)
        bar.set_postfix(
            self.progress.newest("loss", f"valid_{self.config.monitor or self.task.monitor}"),
            refresh=False,
        )
        if self.config.trackers:
            self.accelerator.log(
                {k: v for k, v in entry.items() if k != "step"}, step=int(entry["step"])
            )

    def rehearse(self, train_rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Rehearsal:
        """Two steps on the rows that take the most memory, then everything as it was; nothing is written.

        Raises:
            RowError, FloatingPointError, RunStoppedError: as `fit` would.
        """
        train, config = as_dataset(train_rows, "train_rows"), self.config
        check_rows(self.task, train, training=True)
        refuse_errors(self.task, train)
        table = encode_table(self.task, train, self.tokenizer, base_facts(self.model).fingerprint)
        rows = longest_rows(
            table.lengths,
            config.batch_size,
            micro_rows=config.micro_batch_size,
            tokens=self.gradients.most_tokens(table.lengths),
            processes=self.accelerator.num_processes,
        )
        steps, tokens = (
            data_order.steps_per_epoch(len(train), config.batch_size) * config.epochs,
            self.gradients.tokens,
        )
        adapter_methods.begin_method(self.model, steps)
        try:
            found = rehearse(
                lambda step: self._step(table, rows, step, steps),
                model=self.model,
                parameters=self.parameters,
                optimizer=self.optimizer,
                rows=len(rows),
                steps=steps,
                share=float(table.lengths[rows].sum() / table.lengths.sum() / config.epochs),
            )
            return dataclasses.replace(found, tokens=self.gradients.tokens)
        finally:
            adapter_methods.begin_method(self.model, steps)
            self.gradients.tokens = tokens

    def predict(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> list[Answer]:
        """One answer a row, in the rows' order, on every process; each process works on its share."""
        table = as_dataset(rows)
        encoded = self._asked[1] if self._asked is not None and self._asked[0] is table else None
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        own, started = list(range(rank, len(table), processes)), time.perf_counter()
        predictor = Predictor(self.model, self.task, self.tokenizer)
        if encoded is not None:
            answered = [
                answer
                for start in range(0, len(own), CHUNK_ROWS)
                for answer in predictor.answer(encoded.of(own[start : start + CHUNK_ROWS]))
            ]
        elif processes == 1:
            return predictor.predict(table)
        else:
            check_rows(self.task, table, with_target=False)
            answered = predictor.predict(table.select(own)) if own else []
        found = list(zip(own, answered, strict=True))
        seconds = (
            lost_processes.patient_seconds(time.perf_counter() - started)
            if own
            else PATIENT_SECONDS
        )
        with lost_processes.watched(seconds, rank, "an evaluation"):
            answers: dict[int, Answer] = dict(gather_object(found))
        return [answers[i] for i in range(len(table))]

    def evaluate(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Scores over all rows, the same on any number of processes."""
        table = as_dataset(rows)
        if self._asked is None or self._asked[0] is not table:  # which has been checked
            check_rows(self.task, table)
        return self.task.score(self.predict(table), table)

    def calibrate(
        self,
        valid_rows: datasets.Dataset | Iterable[Mapping[str, Any]],
        *,
        min_accuracy: float | None = None,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Fit temperature and thresholds on rows that were not learnt from, and save the folder again with them.

        Args:
            valid_rows: never the training rows, of which a model is too sure, and never the test rows.
            min_accuracy: give no label where rows as unsure are likely right less often, by an estimate; see `fit_decisions`.

        Returns:
            The scores on these rows before and after.

        Raises:
            ValueError: the task gives no probabilities, no row can be answered with `min_accuracy`, or nothing can be fitted.
        """
        rows = as_dataset(valid_rows, "valid_rows")
        check_rows(self.task, rows)
        answers = self.predict(rows)
        former, self.task = (
            self.task,
            self.task.calibrated(answers, rows, min_accuracy=min_accuracy),
        )
        if len(rows) < FEWEST_JUDGES:
            self.accelerator.print(
                f"{len(rows)} of at least {FEWEST_JUDGES} rows to calibrate by; what so few fit may not suit others."
            )
        try:
            self.save(self.output_dir)
        except BaseException:
            self.task = former
            raise
        return former.score(answers, rows), self.evaluate(rows)

    def save(self, directory: str | Path) -> Path:
        """Write the adapter folder, load it onto a fresh base, and compare answers; a difference is an error.

        Raises:
            RuntimeError: the loaded folder answers otherwise than the model that was saved.
        """
        started = time.perf_counter()
        if self.accelerator.is_main_process:
            save_adapter(directory, self.model, self.task, self.tokenizer)
            compare_reloaded(
                Path(directory), Predictor(self.model, self.task, self.tokenizer), self._probe
            )
            write_card(directory)
            print(
                f"saved to {directory}, loaded again and compared in {time.perf_counter() - started:.1f} s"
            )
        self.accelerator.wait_for_everyone()
        return Path(directory)

    def close(self) -> None:
        """Wait for all processes and end trackers and the process group; nothing can be trained after it."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

"""The training loop, on one process or many: the same rows, the same sums, the same weights."""

import contextlib
import dataclasses
import math
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import datasets
import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from peftcls.data.output_folder import check_output_dir
from peftcls.data.reading import Row, as_dataset
from peftcls.data.tables import Rows, RowsOrTexts, split_of, with_validation_split
from peftcls.engine.agreement import failing_together
from peftcls.engine.model_state import base_facts, state_of, use_fast_paths
from peftcls.errors import RunStoppedError
from peftcls.inference.predictor import Predictor, describe_base, rows_to_answer
from peftcls.models import adapter_methods
from peftcls.models.adapter_folder import check_not_start
from peftcls.models.trainable import (
    Tensors,
    checkpoint_layers,
    copy_tensors,
    train_mode,
    trained_parameters,
)
from peftcls.tasks.base import Answer, Task, token_limit
from peftcls.tasks.encoding import EncodedTable
from peftcls.tasks.row_checks import check_rows
from peftcls.training import checkpoint as checkpoints
from peftcls.training import data_order
from peftcls.training.accelerator import make_accelerator
from peftcls.training.calibration import calibrated_task, tell_calibration
from peftcls.training.checkpoint import Progress
from peftcls.training.config import TrainConfig
from peftcls.training.distributed_prediction import predict_encoded, predict_rows, score_gathered
from peftcls.training.dry_run import DryRun, longest_rows, take_dry_run
from peftcls.training.frozen_tables import caching_tables
from peftcls.training.gradient_accumulation import GradientAccumulator
from peftcls.training.head_start import shrink_head, start_from_probe
from peftcls.training.lr_schedule import learning_rate_factor
from peftcls.training.preflight import (
    check_shares,
    lock_output_dir,
    start_trackers,
    task_for_model,
)
from peftcls.training.prepare import Prepared, log_shortened_rows, log_warnings, prepare_once
from peftcls.training.run_info import describe_model, identify_run, knows_labels
from peftcls.training.run_log import RunLog, log_info
from peftcls.training.run_state import RunState
from peftcls.training.save_check import probe_rows, save_and_check


class Trainer:
    """Trains an adapter or a part of a model, and saves a folder that `load_predictor` reads.

    Args:
        model: from `attach_lora` or `train_only`.
        task: with its labels learnt.
        tokenizer: from `load_base`.
        config: how to optimize.

    Raises:
        ValueError: nothing of the model is trained, it was loaded for another task or continued
            from `output_dir`, or the launcher or a tracker asks for what is not supported.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
    ) -> None:
        task = task_for_model(model, task, tokenizer, config)
        self.accelerator = make_accelerator(config)
        self.parameters = trained_parameters(model)
        if not self.parameters:
            raise ValueError(
                "nothing of the model is trained; call attach_lora(model, task) or "
                "train_only(model, task, ...) first."
            )
        self.shares = check_shares(model)
        if base_facts(model).quantize is None and state_of(model).devices is None:
            model.to(self.accelerator.device)
        self.model = model
        self.task = task
        self.tokenizer = tokenizer
        self.config = config
        self.output_dir = Path(config.output_dir)
        use_fast_paths(model, config.fast_paths)
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        check_output_dir(self.output_dir)
        check_not_start(self.output_dir, model)
        self.optimizer = adapter_methods.make_optimizer(
            model, self.parameters, config.learning_rate, config.weight_decay
        )
        self.gradients = GradientAccumulator(
            model, task, tokenizer, config, self.parameters, self.accelerator.autocast
        )
        self.run = RunState(self.output_dir, self.gradients, self.optimizer)
        self._probe: list[Row] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:
            # Other processes may wait elsewhere, or have ended: they are not waited for.
            self.accelerator.end_training()

    @property
    def progress(self) -> Progress:
        """How far the run is, or how the last one went: steps, best step, scores, history."""
        return self.run.progress

    @property
    def start(self) -> Tensors | None:
        """The trained tensors before the first step, if they are a linear probe."""
        return self.run.start

    @property
    def history(self) -> list[dict[str, float]]:
        """The log of the run, or of the last one: `step` with `loss`, or with `valid_` scores."""
        return [dict(entry) for entry in self.progress.history]

    def __repr__(self) -> str:
        base = describe_base(self.model)
        steps = f"step={self.progress.step}, output_dir={str(self.output_dir)!r}"
        return f"Trainer({self.task}, {base}, {steps})"

    # Training

    def fit(
        self, train_rows: Rows | Prepared, valid_rows: Rows | None = None, *, resume: bool = False
    ) -> dict[str, float]:
        """Train, keep the best step by the validation score, and save it to `output_dir`.

        Without validation rows the last step is kept. The global random state of torch is the same
        afterwards as before.

        Args:
            train_rows: the rows to train on; or what `prepare` made of these and valid_rows.
            valid_rows: the rows that choose the best step; never trained on. By default the split
                "validation", where train_rows is a `DatasetDict`.
            resume: continue from the newest checkpoint in `output_dir`, if there is one. The result
                is the same as that of an uninterrupted run.

        Returns:
            The best step's validation scores; empty without validation rows.

        Raises:
            RowError: rows that cannot be trained on, before anything is written.
            FloatingPointError: the loss or a gradient is not finite. The weights, and a checkpoint,
                are those before that step.
            RunStoppedError: memory or disk space ran out, or another process has ended. The last
                checkpoint is whole.
            KeyboardInterrupt: after SIGINT, when the step is finished or the evaluation stopped,
                and a checkpoint is written; after SIGTERM it is SystemExit(143).
        """
        train_rows, valid_rows = with_validation_split(train_rows, valid_rows)
        prepared_valid = train_rows.valid_rows if isinstance(train_rows, Prepared) else valid_rows
        self.config.check_scores(self.task.score_names, has_valid=prepared_valid is not None)
        prepared = self._prepare(train_rows, valid_rows)
        if prepared is not train_rows and self.accelerator.is_main_process:
            log_warnings(prepared.examination)
        self.config.try_metrics(self.task, prepared.valid_rows)
        self._probe = probe_rows(self.task, prepared.train_rows)
        self.run.identity = identify_run(self.model, self.task, self.config, prepared)
        device = self.accelerator.device
        try:
            with (
                self.run.saying_why_others_end(),
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                self.run.signals.captured(),
                lock_output_dir(self.output_dir, is_main_process=self.accelerator.is_main_process),
            ):
                self._begin(prepared, resume=resume)
                with self._caching_frozen_layers(prepared):
                    starts_anew = self.config.head_init == "probe" and self.progress.step == 0
                    if starts_anew and self._fit_head(prepared):
                        self.run.start = copy_tensors(self.parameters)
                    self.run.signals.is_deferred = True
                    self._loop(prepared)
                self._finish()
        finally:
            self.run.identity = None
        return self.progress.best_scores

    def dry_run(self, train_rows: Rows | Prepared) -> DryRun:
        """Take two steps on the rows that need the most memory, then put everything back.

        Nothing is written.

        Args:
            train_rows: as for `fit`.

        Raises:
            RowError, FloatingPointError, RunStoppedError: as `fit` would.
        """
        config = self.config
        config.check_scores(self.task.score_names, has_valid=True)
        table = self._prepare(train_rows, None).train
        rows = longest_rows(
            table.lengths,
            config.batch_size,
            micro_rows=config.micro_batch_size,
            tokens=self.gradients.max_tokens(table.lengths),
            processes=self.accelerator.num_processes,
        )
        steps = config.total_steps(len(table.lengths))
        all_tokens = table.lengths.sum() * config.epochs
        tokens_before = self.gradients.tokens
        adapter_methods.begin_method(self.model, steps)
        try:
            measured = take_dry_run(
                lambda step: self._step(table, rows, step, steps),
                model=self.model,
                parameters=self.parameters,
                optimizer=self.optimizer,
                rows=len(rows),
                steps=steps,
                share=float(table.lengths[rows].sum() / all_tokens),
                fits_head=self.gradients.by_contrast,
            )
            return dataclasses.replace(measured, tokens=self.gradients.tokens)
        finally:
            adapter_methods.begin_method(self.model, steps)
            self.gradients.tokens = tokens_before

    def rehearse(self, train_rows: Rows) -> DryRun:
        """The former name of `dry_run`, for one version."""
        warnings.warn(
            "Trainer.rehearse is now called Trainer.dry_run.", DeprecationWarning, stacklevel=2
        )
        return self.dry_run(train_rows)

    def _prepare(self, train_rows: Rows | Prepared, valid_rows: Rows | None) -> Prepared:
        """Check, examine and encode the rows, unless that was done before."""
        base = base_facts(self.model)
        return prepare_once(
            self.task, train_rows, valid_rows, self.tokenizer, base, cache_dir=self.config.cache_dir
        )

    def _begin(self, prepared: Prepared, *, resume: bool) -> None:
        """Start at the first step or from a checkpoint, and log what is trained."""
        self.run.begin(self.config.total_steps(len(prepared.train_rows)), resume=resume)
        log_info(describe_model(self.model, self.task))
        if self.gradients.by_contrast:
            log_info("a few rows of each label: they learn by contrast; the loss compares rows")
        log_shortened_rows(prepared, token_limit(self.tokenizer, self.task.max_length))
        if self.config.trackers:
            start_trackers(self.accelerator.init_trackers, self.config)

    def _caching_frozen_layers(self, prepared: Prepared) -> AbstractContextManager[None]:
        """Cache the frozen layers of all rows, unless they are read only once."""
        is_finished = self.progress.examined_step == self.config.total_steps(
            len(prepared.train_rows)
        )
        is_read_once = self.config.epochs == 1 or is_finished
        return caching_tables(
            self.model,
            self.task,
            self.tokenizer,
            [] if is_read_once else prepared.tables,
            folder=self.output_dir,
            max_rows=self.config.micro_batch_size,
            shows_progress=self.accelerator.is_main_process,
        )

    def _loop(self, prepared: Prepared) -> None:
        """Take the steps, evaluating and writing checkpoints in between."""
        steps = self.config.total_steps(len(prepared.train_rows))
        log = RunLog(
            self.progress,
            self.config,
            rows=len(prepared.train_rows),
            monitor=self._monitor(prepared),
            shows_bar=self.accelerator.is_main_process,
            track=self.accelerator.log if self.config.trackers else None,
        )
        train_mode(self.model)
        self.run.choose_by(self.task, prepared.valid_rows)
        if self.progress.step == 0 and (self.start or knows_labels(self.model, self.task)):
            self._judge(prepared, 0, log)
            if self.start and not self.gradients.by_contrast:
                shrink_head(self.model, self.task)
        # At the top of the loop, `step` steps are done.
        for step in range(self.progress.step, steps + 1):
            if self._is_examination_due(step, prepared):
                self._examine(prepared, step, log)
            if self.run.stop_signal:
                self.run.end_by_signal(
                    f"stopped after step {step} of {steps}, {self.run.resume_hint}"
                )
            if step == steps or self._is_out_of_patience():
                break
            self._train_step(prepared.train, step, steps, log)
        log.close()
        self.model.eval()

    def _fit_head(self, prepared: Prepared) -> bool:
        """Make a new head the linear probe of the states as they are. Returns whether it is one."""
        return start_from_probe(
            self.model, self.task, self.tokenizer, prepared.train, self.config.seed
        )

    def _is_examination_due(self, step: int, prepared: Prepared) -> bool:
        """Whether an evaluation and a checkpoint come after this number of steps."""
        if step == 0 or self.progress.examined_step >= step:
            return False
        rows = len(prepared.train_rows)
        is_last = step == self.config.total_steps(len(prepared.train_rows))
        return is_last or step % self.config.evaluation_interval(rows) == 0

    def _is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _examine(self, prepared: Prepared, step: int, log: RunLog) -> None:
        """Evaluate on the validation rows, if any, and write a checkpoint."""
        if self.gradients.by_contrast:
            self._fit_head(prepared)
        self._judge(prepared, step, log)
        self.progress.examined_step = step
        self.run.write_checkpoint()

    def _judge(self, prepared: Prepared, step: int, log: RunLog) -> None:
        """Evaluate on the validation rows, if any, and keep the weights if they are the best."""
        if prepared.valid_rows is None or prepared.valid_inputs is None:
            return
        # Processes that hold a base in shares leave an evaluation together or not at all.
        breaks_off = contextlib.nullcontext() if self.shares else self.run.signals.not_deferred()
        with self.run.keeping_progress(), breaks_off:
            scores = self._evaluate(prepared.valid_rows, prepared.valid_inputs)
        self.run.keep_if_best(scores, step, self._monitor(prepared))
        log.add({"step": step, **{f"valid_{name}": value for name, value in scores.items()}})
        train_mode(self.model)

    def _train_step(self, table: EncodedTable, step: int, steps: int, log: RunLog) -> None:
        """Take one step and log its loss."""
        config = self.config
        indices = data_order.step_rows(
            len(table.lengths), config.batch_size, config.seed, step, table.strata
        )
        loss = self._step(table, indices, step, steps)
        steps_done = step + 1
        if loss is not None:
            self.progress.losses.append(loss)
        self.progress.step = steps_done
        log.count_rows(len(indices))
        is_logged = steps_done % config.log_every == 0 or steps_done == steps
        if is_logged and self.progress.losses:
            mean_loss = float(np.mean(self.progress.losses))
            log.add({"step": steps_done, "loss": mean_loss})
            self.progress.losses = []
        if self.run.stop_signal:
            # Before an evaluation, which may take longer than a program is given to end.
            self.run.write_checkpoint()
            self.progress.examined_step = steps_done

    def _step(self, table: EncodedTable, indices: list[int], step: int, steps: int) -> float | None:
        """Take one optimizer step.

        Its gradient is that of the sum of all losses over the sum of all weights.

        Returns:
            The loss; None where the step was skipped.
        """
        config = self.config
        with self.run.keeping_progress():
            status = self.gradients.accumulate(table, indices, step, self.run.signals)
            self.run.stop_signal = status.signal_number
            norm = float(
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
            )
            if not math.isfinite(status.loss) or not math.isfinite(norm):
                sentence = self.gradients.describe_not_finite(
                    table, indices, step, status.loss, norm
                )
                self.run.skip_step(sentence, step)
                return None
        factor = learning_rate_factor(step, steps, warmup=config.warmup, schedule=config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * group["factor"] * factor
        self.optimizer.step()
        adapter_methods.end_step(self.model, step + 1)
        self.optimizer.zero_grad()
        return status.loss

    def _finish(self) -> None:
        """Save the best adapter, and remove the checkpoints when it is whole."""
        self.run.put_best()
        adapter_methods.end_method(self.model)
        try:
            self.save(self.output_dir)
            with failing_together():
                checkpoints.sync_to_disk(self.output_dir)
        except (OSError, SafetensorError) as error:
            raise RunStoppedError(
                f"the adapter cannot be written to {self.output_dir} ({error}); the last "
                "checkpoint is whole. Free some room on its disk, and go on with resume=True."
            ) from error
        self.run.remove_checkpoints()
        self.run.agree()
        if self.run.stop_signal:
            self.run.end_by_signal(f"the run is finished, and its adapter is in {self.output_dir}.")

    # Predicting and evaluating

    def predict(self, rows: RowsOrTexts) -> list[Answer]:
        """Answer rows as `Predictor.predict` does; each process answers its share, all get all.

        Raises:
            RowError: a column is missing or a text is empty.
        """
        return predict_rows(self._predictor(), rows_to_answer(self.task, rows))

    def predict_encoded(self, inputs: EncodedTable) -> list[Answer]:
        """Answer rows that were checked and encoded without targets, as `predict` does."""
        return predict_encoded(self._predictor(), inputs)

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Scores over all rows, the same on any number of processes.

        Raises:
            RowError: a row has no text, or a target that is none.
        """
        table = as_dataset(split_of(rows, "test"))
        check_rows(self.task, table)
        return score_gathered(self.task, self.predict(table), table, self.config.own_metrics)

    def _evaluate(self, rows: datasets.Dataset, inputs: EncodedTable) -> dict[str, float]:
        """Scores over rows that were checked and encoded."""
        answers = self.predict_encoded(inputs)
        return score_gathered(self.task, answers, rows, self.config.own_metrics)

    def _predictor(self) -> Predictor:
        return Predictor(self.model, self.task, self.tokenizer)

    def calibrate(
        self, valid_rows: Rows, *, min_accuracy: float | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Fit temperature and thresholds on rows not trained on, and save the folder with them.

        Args:
            valid_rows: neither training rows, of which a model is too sure, nor test rows.
            min_accuracy: give no label to rows that are as unsure as rows whose labels are right
                less often than this, by an estimate; see `fit_decisions`.

        Returns:
            The scores on these rows before and after.

        Raises:
            ValueError: the task gives no probabilities, no row can be answered with `min_accuracy`,
                or nothing can be fitted.
        """
        rows = as_dataset(split_of(valid_rows, "validation"), "valid_rows")
        check_rows(self.task, rows)
        answers = self.predict(rows)
        former_task = self.task
        self.task = calibrated_task(former_task, answers, rows, min_accuracy)
        try:
            self.save(self.output_dir)
        except BaseException:
            self.task = former_task
            raise
        before = score_gathered(former_task, answers, rows, self.config.own_metrics)
        return before, tell_calibration(self.task, before, self.evaluate(rows), len(rows))

    # Saving

    def save(self, directory: str | Path) -> Path:
        """Write the adapter folder, load it onto a fresh base, and compare answers.

        Raises:
            FloatingPointError: a trained tensor is not finite; nothing is written.
            RuntimeError: the loaded model's answers differ from those of the trained model.
        """
        save_and_check(directory, self._predictor(), self._probe)
        return Path(directory)

    def close(self) -> None:
        """Wait for all processes, and end trackers and the process group. Training ends here."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _monitor(self, prepared: Prepared) -> str:
        """The score that decides which step is best."""
        return self.config.monitor_for(self.task, len(prepared.valid_rows or ()))

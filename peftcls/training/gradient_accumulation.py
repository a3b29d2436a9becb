"""Gradient accumulation: the gradient of a step, over micro-batches and over processes.

The result does not depend on the number of processes or on how the rows are cut into micro-batches.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from transformers import PreTrainedTokenizerBase

from peftcls.engine import lost_processes
from peftcls.engine.agreement import raise_together
from peftcls.engine.batch import Batch
from peftcls.engine.batching import MicroBatch, micro_batches
from peftcls.engine.cuda_graphs import MAX_CAPTURED_PARAM_TOKENS, WEIGHT, CudaGraphRunner
from peftcls.engine.fixed_shapes import in_fixed_shape
from peftcls.engine.frozen_layers import using_cached_states
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.engine.lost_processes import PATIENT_SECONDS
from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.engine.probes import can_pack, can_pack_behind_prefix, uses_gradient_checkpointing
from peftcls.engine.prompt_logits import shared_prefix
from peftcls.errors import RunStoppedError, is_out_of_memory
from peftcls.models import adapter_methods
from peftcls.tasks.base import Feature, Task
from peftcls.tasks.encoding import EncodedTable
from peftcls.training import data_order
from peftcls.training.config import TrainConfig
from peftcls.training.contrast import can_contrast, contrastive_loss_of_batch
from peftcls.training.run_log import log_warning
from peftcls.training.signals import Signals
from peftcls.training.step_parts import StepShare, StepStatus

NO_ROWS = 1 << 30
"""The prefix of a process without rows, which leaves the choice to the others."""


class GradientAccumulator:
    """Accumulates the gradients of a step's rows, on any number of processes and micro-batches.

    Args:
        model: with its adapter, or with a part of it trained.
        task: what its rows mean.
        tokenizer: pads them.
        config: how to cut them into micro-batches.
        parameters: what is trained, by name.
        autocast: gives the context in which the loss is computed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        parameters: dict[str, torch.nn.Parameter],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model = model
        self.task = task
        self.tokenizer = tokenizer
        self.config = config
        self.parameters = parameters
        self.autocast = autocast
        self.processes = PartialState()
        self.shares = state_of(model).shares
        self.by_contrast = config.objective == "contrast" and can_contrast(model, task)
        self.tokens: int | None = None
        """How many tokens fit into memory at once, where these are fewer than were set."""
        self._longest_seconds: float | None = None
        self._model_parameters = sum(p.numel() for p in model.parameters())
        self._graphs: CudaGraphRunner | None = None
        if self._can_use_cuda_graphs():
            self._graphs = CudaGraphRunner(
                self._graph_loss, list(parameters.values()), self.processes.device
            )

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Features as tensors on the device."""
        batch = self.task.collate(features, self.tokenizer)
        return {name: tensor.to(self.processes.device) for name, tensor in batch.items()}

    def max_tokens(self, lengths: np.ndarray) -> int:
        """How many tokens a micro-batch may have: as memory has shown, or as set, or a default.

        Args:
            lengths: tokens of each training row.
        """
        config = self.config
        if self.tokens is not None:
            return self.tokens
        if config.micro_batch_tokens is None and config.micro_batch_size is not None:
            return config.micro_batch_size * int(lengths.max())
        return config.micro_batch_tokens or batch_tokens(self.processes.device)

    def accumulate(
        self, table: EncodedTable, indices: list[int], step: int, signals: Signals
    ) -> StepStatus:
        """Compute the gradient of a step and leave it in the parameters.

        It is the gradient of the sum of all rows' losses over the sum of their weights. Where any
        process runs out of memory, all of them halve their micro-batches and repeat the step with
        the same rows.

        Args:
            table: the training rows.
            indices: the step's rows, of all processes.
            step: from 0.
            signals: that this process has received.

        Returns:
            The loss, and the signals that any process has received.

        Raises:
            RunStoppedError: there is not enough memory for one row.
            Exception: that of the task, in all processes, where it cannot compute some rows.
        """
        started = time.perf_counter()
        share = self._share(table, indices, step)
        while True:
            tokens = self.max_tokens(table.lengths)
            with self._watching_others(step):
                own_status, error = self._try_share(share, tokens)
            own_status = dataclasses.replace(
                own_status,
                terminated=signals.number == signal.SIGTERM,
                interrupted=signals.number == signal.SIGINT,
            )
            sums = self.sum_over_processes(own_status.to_floats(), step)
            status = StepStatus.from_floats(sums)
            if status.failed:
                self.clear()
                raise_together(error)
            if not status.out_of_memory:
                break
            self.clear()
            self._reduce_tokens(table, indices, step, tokens, at_one_row=status.at_one_row)
        seconds = time.perf_counter() - started
        self._longest_seconds = max(self._longest_seconds or 0.0, seconds)
        return status

    def _share(self, table: EncodedTable, indices: list[int], step: int) -> StepShare:
        rows = list(indices)
        if not self.by_contrast:
            rows = data_order.share(
                indices, table.lengths, self.processes.process_index, self.processes.num_processes
            )
        features = dict(zip(rows, table.take(rows), strict=True))
        spare = None
        if self.shares is not None:
            shortest = min(rows, key=lambda row: table.lengths[row], default=None)
            spare = table.take(indices[:1])[0] if shortest is None else features[shortest]
        return StepShare(
            step=step,
            rows=rows,
            features=features,
            lengths=table.lengths,
            # Rows that all have the weight 0 have a gradient of 0, over any weight.
            step_weight=float(table.weights[indices].sum()) or 1.0,
            spare=spare,
        )

    def _try_share(self, share: StepShare, tokens: int) -> tuple[StepStatus, Exception | None]:
        """What became of this process's rows, and the error that the others do not know of yet."""
        try:
            return self._accumulate_share(share, tokens), None
        except Exception as error:
            # Those that hold a base in shares with this process are waiting for a layer of it.
            if self.shares is not None or self.processes.num_processes == 1:
                raise
            return StepStatus(0.0, failed=True), error

    def _accumulate_share(self, share: StepShare, tokens: int) -> StepStatus:
        """Add the gradient of this process's rows; none is left where memory runs out."""
        batches: list[MicroBatch] = []
        try:
            if self.by_contrast:
                return StepStatus(self._backward_by_contrast(share) + self._add_penalty())
            graphs = self._graphs if self._graphs_pay_off(share) else None
            prefix_tokens = 0
            if share.rows and graphs is None:
                features = list(share.features.values())
                prefix_tokens = self.task.shared_tokens(self.model, features)
            if self.shares is not None:
                number = prefix_tokens if share.rows else NO_ROWS
                prefix_tokens, _ = self.shares.least_and_most(number)
            batches = self._cut(share, tokens, prefix_tokens)
            most = len(batches)
            if self.shares is not None:
                # Before the first of them: to gather the base takes all processes.
                _, most = self.shares.least_and_most(most)
            with shared_prefix(self.model, prefix_tokens):
                loss = self._accumulate_batches(share, batches, graphs)
                self._repeat_spare(share, most - len(batches))
            return StepStatus(loss + self._add_penalty())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except block the error no longer holds the tensors of the failed calls.
        if self.shares is not None:
            raise RunStoppedError(self._out_of_memory_in_shares(share, tokens))
        self.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        at_one_row = all(len(batch) == 1 for batch in batches)
        return StepStatus(0.0, out_of_memory=True, at_one_row=at_one_row)

    def _cut(self, share: StepShare, tokens: int, prefix_tokens: int) -> list[MicroBatch]:
        """Cut the rows of this process into micro-batches."""
        inner = unwrapped(self.model)
        # Where padding is left out, it costs next to nothing.
        packed = can_pack_behind_prefix(inner) if prefix_tokens else can_pack(inner)
        return micro_batches(
            share.rows,
            share.lengths - prefix_tokens,
            rows=self.config.micro_batch_size,
            tokens=tokens,
            call_tokens=call_tokens(self.processes.device),
            packed=packed,
        )

    def _accumulate_batches(
        self, share: StepShare, batches: list[MicroBatch], graphs: CudaGraphRunner | None
    ) -> float:
        """Add the gradients of all micro-batches. Returns the sum of their losses."""
        total = 0.0
        for number, batch in enumerate(batches):
            self._seed(share.step, number)
            features = [share.features[row] for row in batch]
            if graphs is None:
                total += self._backward(features, share.step_weight)
            else:
                total += self._replay(graphs, features, share.step_weight)
        return total

    def _repeat_spare(self, share: StepShare, times: int) -> None:
        """Compute a row without effect, as often as another process has more micro-batches."""
        if share.spare is None:
            return
        for _ in range(times):
            self._backward([share.spare], share.step_weight, factor=0.0)

    def _backward(
        self, features: Sequence[Feature], weight: float, *, factor: float = 1.0
    ) -> float:
        """Add the gradient of some rows' loss over a step's weight. Returns that loss."""
        batch = self.collate(features)
        with self.autocast(), using_cached_states(self.model, batch) as model_batch:
            loss = self.task.loss_sum(self.model, model_batch) / weight * factor
        loss.backward()
        return float(loss.detach())

    def _backward_by_contrast(self, share: StepShare) -> float:
        """Add this process's part of the gradient of a step. Returns its part of the loss.

        The rows are compared with one another, so every process computes all of them.
        """
        self._seed(share.step, 0, process=0)
        batch = self.collate([share.features[row] for row in share.rows])
        with self.autocast(), using_cached_states(self.model, batch) as model_batch:
            loss = contrastive_loss_of_batch(self.model, self.task, model_batch)
        loss = loss / self.processes.num_processes
        loss.backward()
        return float(loss.detach())

    def _replay(self, graphs: CudaGraphRunner, features: Sequence[Feature], weight: float) -> float:
        """Do the same as `_backward`, as one CUDA graph if such a batch has been seen before."""
        batch = self.task.collate(features, self.tokenizer)
        return graphs.backward(in_fixed_shape(batch, self.tokenizer), weight)

    def _add_penalty(self) -> float:
        """Add the gradient of what the adapter's method adds to the loss, in one process only."""
        if not self.processes.is_main_process:
            return 0.0
        penalty = adapter_methods.method_penalty(self.model)
        if penalty is None:
            return 0.0
        penalty.backward()
        return float(penalty.detach())

    def _reduce_tokens(
        self,
        table: EncodedTable,
        indices: list[int],
        step: int,
        tokens: int,
        *,
        at_one_row: bool,
    ) -> None:
        """Halve the micro-batches after memory ran out.

        Raises:
            RunStoppedError: memory ran out with one row at a time.
        """
        longest_tokens = int(table.lengths[indices].max())
        if self.by_contrast:
            raise RunStoppedError(
                f"step {step + 1}: out of memory with {len(indices)} rows, of up to "
                f"{longest_tokens} tokens, which are compared with one another. Set a smaller "
                "batch_size or max_length, gradient_checkpointing=True, or objective='answers'."
            )
        if at_one_row:
            raise RunStoppedError(
                f"step {step + 1}: out of memory with one row at a time, of up to {longest_tokens} "
                "tokens. Set gradient_checkpointing=True or a smaller max_length, or load the base "
                "with quantize='8bit' or '4bit'."
            )
        rows_per_process = -(-len(indices) // self.processes.num_processes)
        self.tokens = max(1, min(tokens, longest_tokens * rows_per_process) // 2)
        log_warning(
            f"step {step + 1}: out of memory; repeating it with the same rows, at most "
            f"{self.tokens} tokens at once."
        )

    def _out_of_memory_in_shares(self, share: StepShare, tokens: int) -> str:
        process = self.processes.process_index
        return (
            f"step {share.step + 1}: out of memory in process {process}, with up to {tokens} "
            "tokens at once. Processes that hold a base in shares cannot repeat a step; set "
            f"micro_batch_tokens={max(1, tokens // 2)} or gradient_checkpointing=True, and go on "
            "with resume=True. A dry run finds this before the first step."
        )

    def _watching_others(self, step: int) -> AbstractContextManager[None]:
        """Notice a process that stalls, where a step waits for the others all the time."""
        if self.shares is None:
            return contextlib.nullcontext()
        return self._watchdog(step)

    def _watchdog(self, step: int) -> AbstractContextManager[None]:
        seconds = PATIENT_SECONDS
        if self._longest_seconds is not None:
            seconds = lost_processes.stall_limit_seconds(self._longest_seconds)
        return lost_processes.watchdog(seconds, self.processes.process_index, f"step {step + 1}")

    def _can_use_cuda_graphs(self) -> bool:
        """Whether CUDA graphs may be used.

        Casts of autocast and of quantized weights, and layers that are computed again, do more than
        launch kernels.
        """
        device = self.processes.device
        if device.type != "cuda" or not state_of(self.model).fast_paths.cuda_graphs:
            return False
        if self.shares is not None or state_of(self.model).devices is not None:
            return False
        with self.autocast():
            casts = torch.is_autocast_enabled("cuda")
        if casts or base_facts(self.model).quantize is not None:
            return False
        return not uses_gradient_checkpointing(unwrapped(self.model))

    def _graphs_pay_off(self, share: StepShare) -> bool:
        if state_of(self.model).uses_frozen_cache:
            return False
        return self._model_parameters * share.padded_tokens <= MAX_CAPTURED_PARAM_TOKENS

    def _graph_loss(self, batch: Batch) -> torch.Tensor:
        with self.autocast():
            return self.task.loss_sum(self.model, batch) / batch[WEIGHT]

    def _seed(self, step: int, micro_batch: int, *, process: int | None = None) -> None:
        """Seed dropout, by numbers that are the same when a run is resumed at this step."""
        if process is None:
            process = self.processes.process_index
        entropy = (self.config.seed, step, process, micro_batch)
        number = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        if torch.accelerator.is_available():
            torch.manual_seed(number)
        else:
            # torch.manual_seed looks for other devices, which takes as long as a small head's step.
            torch.default_generator.manual_seed(number)

    def sum_over_processes(self, numbers: Sequence[float], step: int) -> list[float]:
        """Sum the gradients, and some numbers, over all processes.

        The gradients need no mean: each loss was divided by the weight of the whole step.

        Args:
            numbers: of this process.
            step: from 0, for a message.

        Returns:
            The sums of the numbers.
        """
        gradients = []
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self.processes.num_processes == 1:
            return list(numbers)
        is_double = any(gradient.dtype == torch.float64 for gradient in gradients)
        dtype = torch.float64 if is_double else torch.float32
        numbers_tensor = torch.tensor(numbers, dtype=dtype, device=gradients[0].device)
        flat = torch.cat(
            [*(gradient.flatten().to(dtype) for gradient in gradients), numbers_tensor]
        )
        with self._watchdog(step):
            if self.shares is not None:
                self.shares.check_calls(f"step {step + 1}")
            flat = reduce(flat, reduction="sum")
            sums: list[float] = flat[-len(numbers) :].tolist()
        sizes = [gradient.numel() for gradient in gradients]
        summed = flat[: -len(numbers)].split(sizes)
        for gradient, total in zip(gradients, summed, strict=True):
            gradient.copy_(total.view_as(gradient))
        return sums

    def describe_not_finite(
        self, table: EncodedTable, indices: list[int], step: int, loss: float, norm: float
    ) -> str:
        """Describe a step whose loss or gradient is not finite, and name its rows.

        The gradients are cleared.

        Args:
            table: the training rows.
            indices: the step's rows, of all processes.
            step: from 0.
            loss: of the step.
            norm: of its gradient.
        """
        rows = sorted(table.numbers[index] for index in indices)
        alone = self.not_finite_rows(table, indices)
        return (
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}, expected finite "
            f"numbers. The step was not taken. Its rows: {rows}; not finite when alone: "
            f"{alone or 'none'}."
        )

    def not_finite_rows(self, table: EncodedTable, indices: list[int]) -> list[int]:
        """The rows whose loss or gradient is not finite when each is computed by itself.

        Returns:
            The numbers of the rows, from 1, of all processes.
        """
        share = data_order.share(
            indices, table.lengths, self.processes.process_index, self.processes.num_processes
        )
        numbers = []
        own = dict.fromkeys(share)
        for index in own if self.shares is None else self.shares.padded(own):
            self.clear()
            loss = self._backward([table.features[indices[0] if index is None else index]], 1.0)
            if index is None:
                continue
            sums = [
                float(parameter.grad.abs().sum())
                for parameter in self.parameters.values()
                if parameter.grad is not None
            ]
            if not all(math.isfinite(number) for number in (loss, *sums)):
                numbers.append(table.numbers[index])
        self.clear()
        return sorted(set(gather_object(numbers)))

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

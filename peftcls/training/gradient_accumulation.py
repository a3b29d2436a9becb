"""The gradient of a step: over micro-batches that fit into memory, over all processes, and what of it is not finite."""

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

from peftcls.engine import frozen_cache, prefix_cache
from peftcls.engine.batch import Batch
from peftcls.engine.batching import MicroBatch, micro_batches
from peftcls.engine.cuda_graphs import MOST_WORK, WEIGHT, Recorder
from peftcls.engine.fixed_shapes import in_fixed_shape
from peftcls.engine.head_logits import unwrapped
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.engine.packing import can_pack, checkpoints
from peftcls.errors import RunStoppedError, is_out_of_memory
from peftcls.models import adapter_methods
from peftcls.models.state import base_facts
from peftcls.tasks.base import Feature, Task
from peftcls.tasks.encoding import TrainingTable
from peftcls.training import data_order, lost_processes
from peftcls.training.config import TrainConfig
from peftcls.training.signals import Signals

PATIENT_SECONDS = 1800.0  # until a step has shown how long one takes, or where a process loads, encodes, answers or saves


class Gradients:
    """Adds up the gradients of a step's rows, whatever the number of processes and micro-batches.

    Args:
        model: with its adapter, or with a part of it opened.
        task: what its rows mean.
        tokenizer: pads them.
        config: how to cut them up.
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
        self.model, self.task, self.tokenizer, self.config = model, task, tokenizer, config
        self.parameters, self.autocast, self.processes = parameters, autocast, PartialState()
        self.tokens: int | None = None
        """What fits into memory at once, where it turned out to be less than was set."""
        self._longest_seconds: float | None = None
        self._size = sum(p.numel() for p in model.parameters())
        self._recorder = None
        if config.cuda_graphs and self._can_be_recorded():
            self._recorder = Recorder(
                self._recorded_loss, list(parameters.values()), self.processes.device
            )

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Features as tensors on the device."""
        return {
            k: v.to(self.processes.device)
            for k, v in self.task.collate(features, self.tokenizer).items()
        }

    def most_tokens(self, lengths: np.ndarray) -> int:
        """How many tokens may be in memory at once: what turned out to fit, as set, or as suits the device."""
        config = self.config
        if self.tokens is not None:
            return self.tokens
        if config.micro_batch_tokens is None and config.micro_batch_size is not None:
            return config.micro_batch_size * int(lengths.max())
        return config.micro_batch_tokens or batch_tokens(self.processes.device)

    def add_up(
        self, table: TrainingTable, indices: list[int], step: int, signals: Signals
    ) -> tuple[float, int]:
        """Leave in the parameters the gradient of the sum of all rows' losses over the sum of their weights.

        Where memory is short in any process, all take half the tokens at once and do the same rows again.

        Args:
            table: the training rows.
            indices: of the step's rows, of all processes.
            step: from 0.
            signals: what this process has been asked.

        Returns:
            The loss, and the number of the signal that any process has had; 0 for none.

        Raises:
            RunStoppedError: there is not enough memory for one row.
        """
        started, lengths = time.perf_counter(), table.lengths
        own = data_order.share(
            indices, lengths, self.processes.process_index, self.processes.num_processes
        )
        features, weight = (
            dict(zip(own, table.of(own), strict=True)),
            float(table.weights[indices].sum()),
        )
        while True:
            tokens = self.most_tokens(lengths)
            found = self._own(own, features, lengths, weight, step, tokens)
            flags = [float(signals.number == number) for number in (signal.SIGTERM, signal.SIGINT)]
            loss, short, at_last, terminated, interrupted = self.sum_over_processes(
                [*found, *flags], step
            )
            if not short:
                break
            self.clear()
            longest, most = (
                int(lengths[indices].max()),
                -(-len(indices) // self.processes.num_processes),
            )
            if at_last:
                raise RunStoppedError(
                    f"step {step + 1}: the memory is not enough for one row at a time, of up to {longest} tokens. "
                    "Set gradient_checkpointing=True or a smaller max_length, or load the base with quantize='8bit' or "
                    "'4bit'."
                )
            self.tokens = max(1, min(tokens, longest * most) // 2)
            if self.processes.is_main_process:
                print(
                    f"\nstep {step + 1}: out of memory; it is done again, with the same rows and at most {self.tokens} tokens at once.",
                    flush=True,
                )
        self._longest_seconds = max(self._longest_seconds or 0.0, time.perf_counter() - started)
        return loss, signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0

    def _own(
        self,
        own: list[int],
        features: dict[int, Feature],
        lengths: np.ndarray,
        weight: float,
        step: int,
        tokens: int,
    ) -> tuple[float, float, float]:
        """This process's loss; 1 where memory was short, and no gradient is left; 1 where it was so with one row at a time.

        A row that was drawn twice stands twice among its `own`.
        """
        process, total, micros = self.processes.process_index, 0.0, list[MicroBatch]()
        try:
            inner = unwrapped(self.model)
            able = (
                frozen_cache.TRUNK not in vars(inner)
                and self._size * len(own) * int(lengths[own].max(initial=0)) <= MOST_WORK
            )
            recorder = self._recorder if able else None
            shared = (
                self.task.shared_tokens(self.model, list(features.values()))
                if own and recorder is None
                else 0
            )
            packs = (
                prefix_cache.can_pack_behind(inner) if shared else can_pack(inner)
            )  # then padding costs next to nothing
            micros = micro_batches(
                own,
                lengths - shared,
                rows=self.config.micro_batch_size,
                tokens=tokens,
                call_tokens=call_tokens(self.processes.device),
                packed=packs,
            )
            with prefix_cache.opening(self.model, shared):
                for number, micro in enumerate(micros):
                    _seed(
                        int(
                            np.random.SeedSequence(
                                (self.config.seed, step, process, number)
                            ).generate_state(1)[0]
                        )
                    )
                    chosen = [features[i] for i in micro]
                    total += (
                        self._backward(chosen, weight)
                        if recorder is None
                        else self._replayed(recorder, chosen, weight)
                    )
            if (
                self.processes.is_main_process
                and (penalty := adapter_methods.method_penalty(self.model)) is not None
            ):
                penalty.backward()
                total += float(penalty.detach())
            return total, 0.0, 0.0
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.clear()  # here, where the error no longer holds the tensors of the calls that it came through
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return 0.0, 1.0, float(all(len(micro) == 1 for micro in micros))

    def _backward(self, features: Sequence[Feature], weight: float) -> float:
        """Add the gradient of some rows' loss over a step's weight. Returns that loss."""
        batch = self.collate(features)
        with self.autocast(), frozen_cache.reading(self.model, batch) as batch:
            loss = self.task.loss_sum(self.model, batch) / weight
        loss.backward()
        return float(loss.detach())

    def _replayed(self, recorder: Recorder, features: Sequence[Feature], weight: float) -> float:
        """The same as one call, where such a batch has been seen before."""
        return recorder.backward(
            in_fixed_shape(self.task.collate(features, self.tokenizer), self.tokenizer), weight
        )

    def _can_be_recorded(self) -> bool:
        """On a GPU; where numbers are made narrow or wide on the way, or layers computed again, more is done than kernels launched."""
        device = self.processes.device
        with self.autocast():
            casts = device.type == "cuda" and torch.is_autocast_enabled("cuda")
        return (
            device.type == "cuda"
            and not casts
            and base_facts(self.model).quantize is None
            and not checkpoints(unwrapped(self.model))
        )

    def _recorded_loss(self, batch: Batch) -> torch.Tensor:
        with self.autocast():
            return self.task.loss_sum(self.model, batch) / batch[WEIGHT]

    def sum_over_processes(self, numbers: Sequence[float], step: int) -> list[float]:
        """Add up the gradients, and some numbers, of all processes; each row has been divided by the whole step's weight."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.processes.num_processes == 1:
            return list(numbers)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        kind = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
        flat = torch.cat(
            [g.flatten().to(kind) for g in gradients]
            + [torch.tensor(numbers, dtype=kind, device=gradients[0].device)]
        )
        seconds = PATIENT_SECONDS
        if self._longest_seconds is not None:
            seconds = lost_processes.patient_seconds(self._longest_seconds)
        with lost_processes.watched(seconds, self.processes.process_index, f"step {step + 1}"):
            flat = reduce(flat, reduction="sum")
            summed: list[float] = flat[-len(numbers) :].tolist()
        for gradient, piece in zip(
            gradients, flat[: -len(numbers)].split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(piece.view_as(gradient))
        return summed

    def describe_not_finite(
        self, table: TrainingTable, indices: list[int], step: int, loss: float, length: float
    ) -> str:
        """A sentence about a step whose loss or gradient is not finite, with its rows; the gradients are gone then."""
        alone = self.not_finite_rows(table, indices)
        return (
            f"step {step + 1}: the loss is {loss} and the gradient's length {length}, expected finite numbers. The step was not taken. "
            f"Its rows: {sorted(i + 1 for i in indices)}; not finite when alone: {alone or 'none'}."
        )

    def not_finite_rows(self, table: TrainingTable, indices: list[int]) -> list[int]:
        """The numbers of the rows, of all processes, whose loss or gradient is not finite when they are read alone."""
        found = []
        for i in dict.fromkeys(
            data_order.share(
                indices, table.lengths, self.processes.process_index, self.processes.num_processes
            )
        ):
            self.clear()
            loss = self._backward([table.features[i]], 1.0)
            sums = [
                float(p.grad.abs().sum()) for p in self.parameters.values() if p.grad is not None
            ]
            if not all(map(math.isfinite, [loss, *sums])):
                found.append(i + 1)
        self.clear()
        return sorted(set(gather_object(found)))

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


def _seed(number: int) -> None:
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # the same, without asking for generators that are not there, which takes as long as a small head's step
        torch.default_generator.manual_seed(number)

"""A dry run: what a training run needs, and whether it trains what it should, without a trace.

Two steps are taken on the rows that need the most memory. Then everything is put back.
"""

import collections
import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from peftcls.engine.batching import micro_batches
from peftcls.engine.head_inputs import head_layer
from peftcls.models.trainable import copy_tensors, put_tensors, train_mode
from peftcls.training.durations import in_words

MAX_LISTED_TENSORS = 5
# The first step of LoRA moves only B, which starts as zeros. It is also slower than later steps.
STEPS = 2


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What two steps on the longest rows have shown."""

    rows: int
    """Of each step, over all processes."""
    seconds: float
    """That the last step took."""
    steps: int
    """Of the whole training run."""
    total_seconds: float
    """An estimate for all its steps by their tokens, without evaluations and saving."""
    peak_bytes: int
    """The most memory in use: of the accelerator, or without one of this process since it began."""
    moved: tuple[str, ...]
    """The trained tensors that changed."""
    still: tuple[str, ...]
    """The trained tensors that did not change."""
    without_gradient: tuple[str, ...]
    """The trained tensors whose gradient was zero in all steps."""
    tokens: int | None = None
    """How many tokens fit into memory at once, where these are fewer than were set."""
    fitted: tuple[str, ...] = ()
    """The tensors that no step moves: a head that is fitted to the states at each evaluation."""

    def __str__(self) -> str:
        trained = len(self.moved) + len(self.still)
        lines = [
            f"two steps on the {self.rows} rows that take the most memory at once: "
            f"{self.peak_bytes / 2**20:,.0f} MiB at the peak, {self.seconds:.2f} s for the last",
            f"estimated {in_words(self.total_seconds)} for {self.steps} steps, "
            "without evaluations and saving",
            f"{len(self.moved)} of {trained} trained tensors moved",
        ]
        if self.tokens is not None:
            lines.append(f"out of memory at first; {self.tokens} tokens at once fit into it")
        if self.fitted:
            lines.append(f"fitted to the states at each evaluation: {_list_tensors(self.fitted)}")
        if self.still:
            lines.append(f"did not move: {_list_tensors(self.still)}")
        if self.without_gradient:
            lines.append(f"had no gradient: {_list_tensors(self.without_gradient)}")
        lines.append("everything is as it was before, and nothing was written")
        return "\n".join(lines)


def longest_rows(
    lengths: np.ndarray, batch_size: int, *, micro_rows: int | None, tokens: int, processes: int
) -> list[int]:
    """The rows of the two largest micro-batches that each process can get in one step.

    Args:
        lengths: tokens of each training row.
        batch_size: rows of a step, over all processes.
        micro_rows: at most this many rows in a micro-batch.
        tokens: at most this many tokens in a micro-batch.
        processes: how many share a step.
    """
    longest = np.argsort(-lengths, kind="stable")[:batch_size].tolist()
    batches = micro_batches(longest, lengths, rows=micro_rows, tokens=tokens)
    # The first row of a micro-batch is its longest.
    batches.sort(key=lambda batch: -len(batch) * lengths[batch[0]])
    return [row for batch in batches[: 2 * processes] for row in batch]


def take_dry_run(
    step: Callable[[int], object],
    *,
    model: torch.nn.Module,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: int,
    steps: int,
    share: float,
    fits_head: bool = False,
) -> DryRun:
    """Take two steps, and put tensors, optimizer, random state and dropout back as they were.

    Args:
        step: takes the optimizer step of that number, from 0.
        model: the one that is trained.
        parameters: what of it is trained, by name.
        optimizer: of these.
        rows: that a step reads.
        steps: of the whole training run.
        share: of all tokens that the training run reads, those of one step.
        fits_head: whether the head is fitted between the steps, not trained in them.
    """
    head = head_layer(model) if fits_head else None
    of_head = set() if head is None else set(head.parameters())
    fitted = [name for name, parameter in parameters.items() if parameter in of_head]
    before = copy_tensors(parameters)
    device = next(iter(parameters.values())).device
    with _restored(model, parameters, optimizer, before):
        train_mode(model)
        seconds = _time_steps(step, device)
        moved = []
        without_gradient = []
        for name, parameter in parameters.items():
            if name in fitted:
                continue
            if not torch.equal(parameter.detach().cpu(), before[name]):
                moved.append(name)
            if not bool(optimizer.state[parameter]["exp_avg_sq"].any()):
                without_gradient.append(name)
        return DryRun(
            rows=rows,
            seconds=seconds,
            steps=steps,
            total_seconds=seconds / share,
            peak_bytes=_peak_bytes(device),
            moved=tuple(moved),
            still=tuple(name for name in parameters if name not in [*moved, *fitted]),
            without_gradient=tuple(without_gradient),
            fitted=tuple(fitted),
        )


def _time_steps(step: Callable[[int], object], device: torch.device) -> float:
    """Take the steps; the seconds of the last one."""
    on_gpu = device.type == "cuda"
    steps = STEPS
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        # The second step may capture a CUDA graph, so a third one is timed.
        steps += 1
    seconds = 0.0
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        for number in range(steps):
            started = time.perf_counter()
            step(number)
            seconds = time.perf_counter() - started
    return seconds


@contextlib.contextmanager
def _restored(
    model: torch.nn.Module,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
) -> Iterator[None]:
    """Put the trained tensors, the optimizer and the modules' modes back at the end."""
    state = optimizer.state
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    modes = {module: module.training for module in model.modules()}
    optimizer.state = collections.defaultdict(dict)
    try:
        yield
    finally:
        optimizer.state = state
        optimizer.zero_grad()
        for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = learning_rate
        put_tensors(parameters, tensors)
        for module, mode in modes.items():
            module.training = mode


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux counts KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def _list_tensors(names: tuple[str, ...]) -> str:
    listed = ", ".join(names[:MAX_LISTED_TENSORS])
    more = len(names) - MAX_LISTED_TENSORS
    return f"{listed} and {more} more" if more > 0 else listed


def __getattr__(name: str) -> Any:
    """The former name of `DryRun`, for one version."""
    if name == "Rehearsal":
        warnings.warn("Rehearsal is now called DryRun.", DeprecationWarning, stacklevel=2)
        return DryRun
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

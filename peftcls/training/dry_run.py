"""A dry run: what a training would take, and whether it moves what it should, without leaving a trace."""

import collections
import dataclasses
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from peftcls.engine.batching import micro_batches
from peftcls.models.trainable import copy_tensors, put_tensors, train_mode

SHOWN = 5  # names of tensors
STEPS = 2  # the first one of LoRA moves B alone, since B starts as zeros; and it is not one to time


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What two steps on the longest rows have shown."""

    rows: int
    """Of each step, over all processes."""
    seconds: float
    """That the last step took."""
    steps: int
    """Of the whole training."""
    total_seconds: float
    """Of all its steps, by the tokens in them; evaluations and saving come on top."""
    peak_bytes: int
    """The most memory that was in use: of the accelerator where there is one, else of this process since it began."""
    moved: tuple[str, ...]
    """The trained tensors that changed."""
    still: tuple[str, ...]
    """Those that did not."""
    without_gradient: tuple[str, ...]
    """Those whose gradient was zero in both steps."""
    tokens: int | None = None
    """What fits into memory at once, where it is less than was set."""

    def __str__(self) -> str:
        lines = [
            f"two steps on the {self.rows} rows that take the most memory at once: {self.peak_bytes / 2**20:,.0f} MiB at the peak, "
            f"{self.seconds:.2f} s for the last",
            f"estimated {_duration(self.total_seconds)} for {self.steps} steps, without evaluations and saving",
            f"{len(self.moved)} of {len(self.moved) + len(self.still)} trained tensors moved",
        ]
        if self.tokens is not None:
            lines.append(f"the memory was short; {self.tokens} tokens at once fit into it")
        lines += [
            f"{what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
            for what, names in (
                ("did not move", self.still),
                ("had no gradient", self.without_gradient),
            )
            if names
        ]
        return "\n".join([*lines, "everything is as it was before, and nothing was written"])


def longest_rows(
    lengths: np.ndarray, batch_size: int, *, micro_rows: int | None, tokens: int, processes: int
) -> list[int]:
    """The rows of the two largest micro-batches that each process can meet in one step."""
    longest = np.argsort(-lengths, kind="stable")[:batch_size].tolist()
    micros = micro_batches(longest, lengths, rows=micro_rows, tokens=tokens)
    return [
        row
        for micro in sorted(micros, key=lambda micro: -len(micro) * lengths[micro[0]])[
            : 2 * processes
        ]
        for row in micro
    ]


def rehearse(
    step: Callable[[int], object],
    *,
    model: torch.nn.Module,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: int,
    steps: int,
    share: float,
) -> Rehearsal:
    """Take two steps, and put tensors, optimizer, generators and dropout back as they were.

    Args:
        step: takes the optimizer step of that number, from 0.
        model: the one that is trained.
        parameters: what of it is trained, by name.
        optimizer: of these.
        rows: that a step reads.
        steps: of the whole training.
        share: of all that the training reads, in one step.
    """
    before, state, modes = (
        copy_tensors(parameters),
        optimizer.state,
        {module: module.training for module in model.modules()},
    )
    rates, seconds = [group["lr"] for group in optimizer.param_groups], 0.0
    device = next(iter(parameters.values())).device
    optimizer.state = collections.defaultdict(dict)
    train_mode(model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for number in range(
                STEPS + (device.type == "cuda")
            ):  # on a GPU the second may be recorded
                started = time.perf_counter()
                step(number)
                seconds = time.perf_counter() - started
        moved = [
            name
            for name, p in parameters.items()
            if not torch.equal(p.detach().cpu(), before[name])
        ]
        reached = [
            name for name, p in parameters.items() if bool(optimizer.state[p]["exp_avg_sq"].any())
        ]
        return Rehearsal(
            rows,
            seconds,
            steps,
            seconds / share,
            _peak_bytes(device),
            tuple(moved),
            tuple(name for name in parameters if name not in moved),
            tuple(name for name in parameters if name not in reached),
        )
    finally:
        optimizer.state = state
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        put_tensors(parameters, before)
        for module, mode in modes.items():
            module.training = mode


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # there is none on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {left} s"
        if minutes
        else f"{left} s"
    )

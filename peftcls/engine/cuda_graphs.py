"""A micro-batch's way there and back as one call: on a GPU, what is done for a shape is recorded once and then replayed.

A small model's step is thousands of small kernels, and the processor takes longer to launch each than the GPU to run it. A replay
launches them all at once (CUDA graphs; Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs").
"""

import contextlib
import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from peftcls.engine.batch import Batch
from peftcls.errors import RunStoppedError, is_out_of_memory

MOST_WORK = 5e12  # parameters times tokens; with more, a GPU is busy anyway, and a recording holds as much memory as the step takes
MOST_SHAPES = 64
WEIGHT = "step_weight"
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is done for batches of one shape, and the tensors that it reads and leaves."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: torch.Tensor

    def replay(self, batch: Batch) -> float:
        """Do the same with another batch of that shape. Returns its loss."""
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        return float(self.loss)


class Recorder:
    """Adds the gradients of batches to those of some parameters, by replaying what it has recorded, where it can.

    A shape is computed as it comes when it is seen first, and recorded when it is seen again. What a device or model cannot
    record is computed as it comes from then on.

    Args:
        loss: of a batch with its step's weight in it, a tensor of one number; it must not look at what a batch holds.
        parameters: what is trained.
        device: of the model.
    """

    def __init__(
        self,
        loss: Callable[[Batch], torch.Tensor],
        parameters: Sequence[torch.nn.Parameter],
        device: torch.device,
    ) -> None:
        self.loss, self.device = loss, device
        self.seen, self.recordings = Counter[Shapes](), dict[Shapes, Recording]()
        self.works = device.type == "cuda"
        self.gradients = [(p, torch.zeros_like(p)) for p in parameters]
        self._pool: Any = None

    def backward(self, batch: Batch, weight: float) -> float:
        """Add the gradient of a batch's loss over a step's weight. Returns that loss.

        Args:
            batch: on the processor.
            weight: the loss is divided by it.
        """
        batch = {**batch, WEIGHT: torch.tensor(weight)}
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items())
        self._hold_gradients()
        if (
            self.works
            and shapes not in self.recordings
            and self.seen[shapes]
            and len(self.recordings) < MOST_SHAPES
        ):
            self._record(shapes, batch)
        self.seen[shapes] += 1
        if shapes in self.recordings:
            return self.recordings[shapes].replay(batch)
        loss = self.loss({name: tensor.to(self.device) for name, tensor in batch.items()})
        loss.backward()
        return float(loss.detach())

    def _hold_gradients(self) -> None:
        """Let every gradient stand where recordings add to it, with what has been added to it elsewhere."""
        empty = [own for p, own in self.gradients if p.grad is None]
        if empty:
            torch._foreach_zero_(empty)
        for parameter, own in self.gradients:
            if parameter.grad is not None and parameter.grad is not own:
                own.copy_(parameter.grad)
            parameter.grad = own

    def _record(self, shapes: Shapes, batch: Batch) -> None:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, held = (
            torch.cuda.CUDAGraph(),
            {name: tensor.to(self.device) for name, tensor in batch.items()},
        )
        stream = torch.cuda.current_stream()
        try:  # other threads may go on: one shows how far the run is
            with (
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
                _refusing_to_wait(),
            ):
                loss = self.loss(held)
                loss.backward()
            self.recordings[shapes] = Recording(graph, held, loss.detach())
        except RuntimeError as error:
            self.works = False
            torch.cuda.set_stream(stream)  # a recording that cannot be ended leaves its own behind
            why = (
                "there is not enough memory to record it"
                if is_out_of_memory(error)
                else str(error).splitlines()[0]
            )
            try:
                torch.rand((), device=self.device)
            except RuntimeError:  # so it leaves the generator of random numbers
                raise RunStoppedError(
                    f"a step cannot be recorded ({why}), and what is left of the recording is in this process's way. "
                    "Start again with cuda_graphs=False, and resume=True."
                ) from error
            print(
                f"a step's way there and back is launched kernel by kernel from now on: {why}",
                flush=True,
            )


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Within it what would wait for the GPU is an error before it waits; in a recording, to wait would spoil more than the recording."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that not all of it is found
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

"""CUDA graphs: forward and backward of a micro-batch captured once for a shape, then replayed.

A step of a small model is thousands of small kernels, and the processor takes longer to launch each
than the GPU to run it. A replay launches them all at once (CUDA graphs; Nguyen et al. 2021,
"Accelerating PyTorch with CUDA Graphs").
"""

import contextlib
import dataclasses
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from peftcls.engine.batch import Batch
from peftcls.errors import RunStoppedError, is_out_of_memory

logger = logging.getLogger("peftcls")

# With more parameters times tokens a GPU is busy anyway, and a graph holds as much memory as a
# step.
MAX_CAPTURED_PARAM_TOKENS = 5e12
MAX_SHAPES = 64
WEIGHT = "step_weight"
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class CapturedGraph:
    """The CUDA graph for batches of one shape, and the tensors that it reads and leaves."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: torch.Tensor

    def replay(self, batch: Batch) -> float:
        """Run the graph for another batch of that shape. Returns its loss."""
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        return float(self.loss)


class CudaGraphRunner:
    """Adds the gradients of batches to those of some parameters, by CUDA graphs where it can.

    A shape is computed without a graph when it is seen first, and captured when it is seen again.
    After a capture that failed, all is computed without graphs.

    Args:
        loss: of a batch with its step's weight in it, a tensor of one number; it must not look at
            what a batch holds.
        parameters: what is trained.
        device: of the model.
    """

    def __init__(
        self,
        loss: Callable[[Batch], torch.Tensor],
        parameters: Sequence[torch.nn.Parameter],
        device: torch.device,
    ) -> None:
        self.loss = loss
        self.device = device
        self.enabled = device.type == "cuda"
        self.seen: Counter[Shapes] = Counter()
        self.graphs: dict[Shapes, CapturedGraph] = {}
        self._gradients = [(p, torch.zeros_like(p)) for p in parameters]
        self._pool: Any = None

    def backward(self, batch: Batch, weight: float) -> float:
        """Add the gradient of a batch's loss over a step's weight. Returns that loss.

        Args:
            batch: on the processor.
            weight: the loss is divided by it.
        """
        batch = {**batch, WEIGHT: torch.tensor(weight)}
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items())
        self._place_gradients()
        if self._should_capture(shapes):
            self._capture(shapes, batch)
        self.seen[shapes] += 1
        if shapes in self.graphs:
            return self.graphs[shapes].replay(batch)
        loss = self.loss({name: tensor.to(self.device) for name, tensor in batch.items()})
        loss.backward()
        return float(loss.detach())

    def _should_capture(self, shapes: Shapes) -> bool:
        if not self.enabled or shapes in self.graphs:
            return False
        return self.seen[shapes] > 0 and len(self.graphs) < MAX_SHAPES

    def _place_gradients(self) -> None:
        """Let every gradient be in the buffer that graphs add to, with what was added elsewhere."""
        unused = [buffer for parameter, buffer in self._gradients if parameter.grad is None]
        if unused:
            torch._foreach_zero_(unused)
        for parameter, buffer in self._gradients:
            if parameter.grad is not None and parameter.grad is not buffer:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer

    def _capture(self, shapes: Shapes, batch: Batch) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        held = {name: tensor.to(self.device) for name, tensor in batch.items()}
        stream = torch.cuda.current_stream()
        # Other threads may go on during the capture: one of them shows the progress of the run.
        capture = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        try:
            with capture, _refusing_to_wait():
                loss = self.loss(held)
                loss.backward()
            self.graphs[shapes] = CapturedGraph(graph, held, loss.detach())
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a capture that cannot be ended leaves its own behind
            self._disable(error)

    def _disable(self, error: RuntimeError) -> None:
        """Compute without graphs for the rest of the run.

        Raises:
            RunStoppedError: the failed capture left the random number generator unusable.
        """
        self.enabled = False
        why = str(error).splitlines()[0]
        if is_out_of_memory(error):
            why = "there is not enough memory to capture one"
        try:
            torch.rand((), device=self.device)
        except RuntimeError:
            raise RunStoppedError(
                f"a CUDA graph cannot be captured ({why}), and the failed capture left "
                "the random number generator unusable. Start again with "
                "fast_paths=FastPaths(cuda_graphs=False), and resume=True."
            ) from error
        logger.warning("CUDA graphs are disabled for the rest of this run: %s", why)


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Make it an error to wait for the GPU, which spoils more than the capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

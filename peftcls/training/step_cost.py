"""What one micro-batch costs: a forward and a backward pass on the meta device, in bytes and FLOPs.

The model itself is run, with its adapter, so the figures are those of its architecture: what its
operators keep for the backward pass, and what they multiply. No number is computed.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from peftcls.engine.kernels import fuse_norms
from peftcls.engine.layers import layers_of
from peftcls.engine.model_state import unwrapped
from peftcls.engine.operator_costs import OperatorCosts
from peftcls.engine.precision import in_float32
from peftcls.models.trainable import trained_parameters
from peftcls.tasks.base import Task

ATTENTION_PASSES = 3.5
"""Matrix products of attention in both passes, in units of its forward pass: a fused kernel
computes the scores again, so its backward pass has five products for two (Dao et al. 2022,
"FlashAttention", appendix B.5)."""


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Bytes and floating-point operations of one micro-batch.

    Args:
        tokens: of the micro-batch.
        activation_bytes: what the layers keep for the backward pass.
        logit_bytes: what the head or the output embedding, and the loss, keep beside it.
        backward_bytes: the most that the backward pass needs on top of both.
        flops: of both passes.
    """

    tokens: int
    activation_bytes: int
    logit_bytes: int
    backward_bytes: int
    flops: float

    def for_tokens(self, tokens: int) -> "StepCost":
        """The cost of a micro-batch with more or fewer rows of the same length.

        Every row keeps the same, so all figures grow with the rows.
        """
        factor = tokens / self.tokens
        return StepCost(
            tokens=tokens,
            activation_bytes=round(self.activation_bytes * factor),
            logit_bytes=round(self.logit_bytes * factor),
            backward_bytes=round(self.backward_bytes * factor),
            flops=self.flops * factor,
        )


def step_cost(
    model: torch.nn.Module,
    task: Task,
    *,
    rows: int,
    row_tokens: int,
    answer_tokens: int,
    on_gpu: bool = True,
) -> StepCost:
    """Run one micro-batch on the meta device, and count.

    It is the plain computation: a shared prefix, a last layer for some tokens only and other fast
    paths take less. All rows have the full length.

    Args:
        model: from `read_skeleton`, with what is trained.
        task: the one given to it.
        rows: of the micro-batch.
        row_tokens: of each row.
        answer_tokens: of each row, those with logits; of a language model only.
        on_gpu: norms are one kernel there.

    Raises:
        ValueError: the model cannot be run without numbers.
    """
    inner: Any = unwrapped(model)
    if on_gpu:
        fuse_norms(inner)
    for parameter in trained_parameters(model).values():
        # They are a part of their own.
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.zeros(rows, row_tokens, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if hasattr(inner.config, "use_cache"):
        inputs["use_cache"] = False
    costs = OperatorCosts()
    with _named(inner), costs:
        states = inner.base_model(**inputs).last_hidden_state
        activation_bytes = costs.live_bytes
        loss = _loss(inner, task, states, answer_tokens)
        logit_bytes = costs.live_bytes - activation_bytes
        loss.backward()
    return StepCost(
        tokens=rows * row_tokens,
        activation_bytes=activation_bytes,
        logit_bytes=logit_bytes,
        backward_bytes=costs.peak_bytes - activation_bytes - logit_bytes,
        flops=costs.flops + attention_flops(inner, rows, row_tokens),
    )


@contextlib.contextmanager
def _named(inner: Any) -> Iterator[None]:
    """Name the model where it cannot be run on the meta device."""
    try:
        yield
    # A model that looks at its numbers can raise anything, since there are none.
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{type(inner).__name__} cannot be planned: it needs numbers, and a plan has shapes "
            f"only ({type(error).__name__}: {first_line}). Use --dry-run of a training, which "
            "measures."
        ) from error


def _loss(inner: Any, task: Task, states: torch.Tensor, answer_tokens: int) -> torch.Tensor:
    """A number that depends on the states as the task's loss does."""
    if not task.new_head:
        read = states[:, -answer_tokens:]
        logits = in_float32(inner.get_output_embeddings()(read)).flatten(0, 1)
        targets = torch.zeros(len(logits), dtype=torch.long, device="meta")
        return F.cross_entropy(logits, targets)
    # A head is small; what it reads is a state of each row, or of each token.
    read = states if task.answer_kind == "span" else states[:, 0]
    return in_float32(read).sum()


def attention_flops(inner: Any, rows: int, tokens: int) -> float:
    """The FLOPs of scores and their sums in all layers: 4 x tokens squared x width a row.

    A causal mask halves them in some kernels; they count whole.
    """
    layers = len(layers_of(inner.base_model))
    config = inner.config.get_text_config()
    return ATTENTION_PASSES * layers * 4 * rows * tokens**2 * config.hidden_size

"""Linear layers in 8-bit integers, for answers on a processor.

A weight has a scale for each of its outputs, and each token has one of its own, so that an answer
does not depend on the rows beside it. Quantization by token: Yao et al. 2022, "ZeroQuant", section
4.1.
"""

import logging

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from peftcls.models.merging import adapter_logits, encode_probes, merge_weights
from peftcls.models.mixed_precision import widen_all
from peftcls.models.structure import linear_layers
from peftcls.tasks.base import Task

logger = logging.getLogger("peftcls")

LARGEST = 127
SMALLEST_SCALE = 1e-12


class Int8Linear(torch.nn.Module):
    """What a linear layer computes, by a product of 8-bit integers with sums of 32 bits."""

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: torch.nn.Linear | Conv1D) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        if isinstance(layer, torch.nn.Linear):
            weight = weight.t()
        scales = weight.abs().amax(0).clamp(min=SMALLEST_SCALE) / LARGEST
        bias = layer.bias
        self.register_buffer("weight", (weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of shape (..., outputs) for inputs of shape (..., inputs)."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        scales = flat.abs().amax(1, keepdim=True).clamp_(min=SMALLEST_SCALE).div_(LARGEST)
        rounded = (flat / scales).round_().to(torch.int8)
        outputs = torch._int_mm(rounded, self.weight).float()
        outputs.mul_(scales).mul_(self.scales)
        if self.bias is not None:
            outputs.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)


def in_int8(
    model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A model that answers with 8-bit linear layers in its backbone; the adapter is in them.

    The logger says how far the logits of a few short texts move by it.

    Args:
        model: with its adapter, in full precision and on a processor; it is used up.
        task: what the rows mean.
        tokenizer: of the model.

    Raises:
        ValueError: this processor's products of 8-bit integers are not exact.
    """
    check_processor()
    widen_all(model.eval())
    probes = encode_probes(task, tokenizer)
    expected = adapter_logits(task, model, probes, tokenizer)
    merged: PreTrainedModel = merge_weights(model)
    for name in linear_layers(merged):
        layer = merged.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear | Conv1D), "as `linear_layers` says"
        merged.set_submodule(name, Int8Linear(layer))
    found = adapter_logits(task, merged, probes, tokenizer)
    moved = max(
        float((one - other).abs().max()) for one, other in zip(expected, found, strict=True)
    )
    logger.info(
        "in 8 bits the logits of %d short texts move by at most %.2g; evaluate says what that does "
        "to the scores.",
        len(probes),
        moved,
    )
    return merged


def is_in_int8(model: torch.nn.Module) -> bool:
    """Whether a model is one of `in_int8`."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def check_processor() -> None:
    """Raise ValueError where sums of large products are cut off, as without VNNI they can be."""
    large = torch.full((64, 512), LARGEST, dtype=torch.int8)
    found = torch._int_mm(large, -large.t())
    if not bool((found == -(LARGEST**2) * large.shape[1]).all()):
        raise ValueError(
            "int8=True: this processor cuts off sums of 8-bit products, so that answers would be "
            "wrong; leave it out."
        )

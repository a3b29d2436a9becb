"""How many bytes a frozen base takes: whole, in 8 or 4 bits, or in shares."""

import torch
from transformers import PreTrainedModel

from peftcls.engine.layers import layers_of
from peftcls.engine.model_choices import Quantize
from peftcls.engine.model_state import base_facts
from peftcls.models.structure import linear_layers

BYTES_IN_8_BITS = 1.0
"""Of a weight; its scale, a float32 for each row of the matrix, is less than a thousandth of it."""
BYTES_IN_4_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, a scale in 8 bits for 64 weights, and a float32 for 256 scales (Dettmers et
al. 2023, "QLoRA", section 3)."""


def parameter_count(model: PreTrainedModel) -> int:
    """The parameters of a base, its new head included; a shared embedding counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def base_bytes(model: PreTrainedModel, quantize: Quantize | None = None) -> int:
    """The bytes of a base that one process holds whole.

    Only the linear layers of the backbone are quantized. Embeddings, norms, the head and the output
    embedding keep their dtype.

    Args:
        model: from `read_skeleton` or `load_base`, without an adapter.
        quantize: as for `load_base`.
    """
    if quantize is None:
        return _bytes_of(model)
    heads = base_facts(model).heads
    per_weight = BYTES_IN_8_BITS if quantize == "8bit" else BYTES_IN_4_BITS
    quantized = 0
    saved = 0
    for name in linear_layers(model):
        if any(name == head or name.startswith(f"{head}.") for head in heads):
            continue
        weight = model.get_submodule(name).get_parameter("weight")
        quantized += weight.numel()
        saved += weight.numel() * weight.element_size()
    return _bytes_of(model) - saved + round(quantized * per_weight)


def share_bytes(model: PreTrainedModel, shares: int) -> int:
    """The bytes of a base that each process holds, where it is held in so many equal shares.

    Buffers are whole in every process; they are small.

    Args:
        model: as for `base_bytes`.
        shares: the processes of one machine.
    """
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = _bytes_of(model) - parameters
    return -(-parameters // shares) + buffers


def gathered_bytes(model: PreTrainedModel) -> int:
    """The bytes of a shared base that are whole in every process while a step is computed.

    While a layer is computed, the next one is gathered, so two are whole; beside them stands what
    is above and below the layers: the embedding, the last norm and the output embedding.

    Args:
        model: as for `base_bytes`.
    """
    layers = [_bytes_of(layer) for layer in layers_of(model.base_model)]
    largest = sorted(layers, reverse=True)[:2]
    outside = _bytes_of(model) - sum(layers)
    return sum(largest) + outside


def widest_linear_bytes(model: PreTrainedModel) -> int:
    """The bytes of the largest matrix in the backbone's linear layers."""
    sizes = []
    for name in linear_layers(model):
        weight = model.get_submodule(name).get_parameter("weight")
        sizes.append(weight.numel() * weight.element_size())
    return max(sizes, default=0)


def _bytes_of(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

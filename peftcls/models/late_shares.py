"""A base in 4 bits in shares: every process loads it whole, adapts it, and then keeps its share.

An adapter reads from a weight how it was quantized, and a share does not say that. So the base is
whole until the adapter is there, in the memory of the machine and not on a GPU.
"""

from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from peftcls.engine.allocator import trim_heap
from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.engine.probes import ask_all
from peftcls.engine.sharding import shard_layers


def share_when_adapted(model: torch.nn.Module) -> None:
    """Divide a base among its processes, now that what is trained of it is there.

    Nothing happens where each process holds the whole base, or has its share already.

    Args:
        model: with its adapter, or with a part of it trained.
    """
    inner = unwrapped(model)
    shares = state_of(inner).shares
    if shares is None or shares.roots:
        return
    heads = [inner.get_submodule(head) for head in base_facts(inner).heads]
    shard_layers(inner, shares, whole=[*heads, *_tied(inner)])
    _move_whole_tensors(inner, PartialState().device)
    ask_all(inner)
    shares.reset()
    trim_heap()


def _tied(inner: Any) -> list[torch.nn.Module]:
    """The token embeddings and the output layer where both have one matrix, which stays whole."""
    embeddings = inner.base_model.get_input_embeddings()
    output = inner.get_output_embeddings()
    output = getattr(output, "base_layer", output)
    if output is None or output.weight is not embeddings.weight:
        return []
    return [embeddings, output]


def _move_whole_tensors(inner: torch.nn.Module, device: torch.device) -> None:
    """Move what is in no share to the device of this process: adapter, heads, norms, buffers."""
    for tensor in (*inner.parameters(), *inner.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)

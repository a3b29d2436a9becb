"""The layers that give a task's logits, and what they read: the features of a linear probe."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from peftcls.engine.model_state import base_facts, unwrapped


def head_layer_name(model: torch.nn.Module) -> str | None:
    """The name of the layer that gives a head's logits, in the transformers model.

    Returns:
        None where there is no head, or it does not end in a linear layer with all outputs.
    """
    inner: Any = unwrapped(model)
    found = None
    for head in base_facts(inner).heads:
        for name, module in inner.get_submodule(head).named_modules(prefix=head):
            # Of a head that PEFT trains there is a copy, which stays as it was.
            is_copy = "original_module" in name.split(".")
            if isinstance(module, torch.nn.Linear) and not is_copy:
                found = name
    if found is None or inner.get_submodule(found).out_features != inner.config.num_labels:
        return None
    return found


def head_layer(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The layer that gives a head's logits; None where `head_layer_name` finds none."""
    name = head_layer_name(model)
    if name is None:
        return None
    layer: torch.nn.Linear = unwrapped(model).get_submodule(name)
    return layer


@dataclasses.dataclass
class Recorded:
    """What a layer read and gave in its last forward pass; None before the first."""

    inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None


@contextlib.contextmanager
def recording(layer: torch.nn.Module, *, detached: bool = True) -> Iterator[Recorded]:
    """Record what a layer reads and gives in a forward pass.

    Args:
        layer: of a model.
        detached: without a way back to what it was computed from.
    """
    recorded = Recorded()

    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        recorded.inputs = inputs[0].detach() if detached else inputs[0]
        recorded.outputs = outputs.detach() if detached else outputs

    hook = layer.register_forward_hook(keep)
    try:
        yield recorded
    finally:
        hook.remove()

"""Several models over one base in memory: each can have an adapter, a head or a block of its own."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peftcls.models.state import base_facts

SHARES = "shares_base"  # the attribute of a model whose base weights another one has too


def share_base(model: PreTrainedModel) -> PreTrainedModel:
    """A second model whose base weights are the first one's, not copies of them; its head is its own.

    Both can then be given to `attach_lora` or `train_only`, with settings of their own. What these open of the base is copied
    first, so that no model trains what another one reads.

    Args:
        model: from `load_base`; without an adapter, and frozen.

    Raises:
        ValueError: it has an adapter, or a part of it is trained.
    """
    if isinstance(model, PeftModel) or any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "share_base got a model that is to be trained, expected one as it comes from load_base; call it before "
            "attach_lora or train_only."
        )
    vars(model)[SHARES] = True
    heads = {
        id(p) for head in base_facts(model).heads for p in model.get_submodule(head).parameters()
    }
    kept = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in heads]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in kept}
    for module in model.modules():  # what goes with quantized weights
        memo |= {
            id(value): value
            for value in vars(module).values()
            if type(value).__module__.startswith("bitsandbytes.")
        }
    return copy.deepcopy(model, memo)


def own_weights(model: torch.nn.Module, modules: Iterable[torch.nn.Module]) -> None:
    """Copy the weights of some modules, if another model has them too; weights that are tied stay so."""
    if SHARES not in vars(model):
        return
    copies = {
        p: torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
        for module in modules
        for p in module.parameters()
    }
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p in copies:
                module._parameters[name] = copies[p]

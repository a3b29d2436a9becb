"""Several models over one base in memory: each can have its own adapter, head or trained block."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from peftcls.engine.model_state import base_facts, state_of
from peftcls.models.peft_library import PeftModel


def share_base(model: PreTrainedModel) -> PreTrainedModel:
    """Make a second model that shares the base weights of the first one; its head is its own.

    Both can then be given to `attach_lora` or `train_only`, with different settings. What these
    train of the base itself is copied first, so that no model trains weights that another reads.

    Args:
        model: from `load_base`; without an adapter, and frozen.

    Raises:
        ValueError: it has an adapter, or a part of it is trained.
    """
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    if isinstance(model, PeftModel) or is_trained:
        raise ValueError(
            "share_base got a model that is to be trained, expected a frozen one from load_base; "
            "call it before attach_lora or train_only."
        )
    if state_of(model).shares is not None:
        raise ValueError(
            "share_base got a base in shares, expected a whole one: shares cannot be copied. Train "
            "one model after the other."
        )
    if state_of(model).devices is not None:
        raise ValueError(
            "share_base got a base that is spread over GPUs, expected one on a single device. "
            "Train one model after the other."
        )
    state_of(model).shares_base = True
    return copy.deepcopy(model, _not_copied(model))


def _not_copied(model: PreTrainedModel) -> dict[int, Any]:
    """The memo of `copy.deepcopy`: objects that stand for themselves in the copy, by their id."""
    head_ids = set()
    for head in base_facts(model).heads:
        head_ids |= {id(parameter) for parameter in model.get_submodule(head).parameters()}
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in head_ids:
            memo[id(tensor)] = tensor
    for module in model.modules():
        for value in vars(module).values():
            # the state that bitsandbytes keeps beside quantized weights
            if type(value).__module__.startswith("bitsandbytes."):
                memo[id(value)] = value
    return memo


def own_weights(model: torch.nn.Module, modules: Iterable[torch.nn.Module]) -> None:
    """Copy the weights of some modules if another model shares them; tied weights stay tied."""
    if not state_of(model).shares_base:
        return
    copies: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters():
            copies[parameter] = torch.nn.Parameter(
                parameter.detach().clone(), requires_grad=parameter.requires_grad
            )
    for module in model.modules():
        for name, registered in module._parameters.items():
            if registered is not None and registered in copies:
                module._parameters[name] = copies[registered]

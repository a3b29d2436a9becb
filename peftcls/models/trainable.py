"""What is trained of a model: a part of it without an adapter, and its trained tensors by name."""

from typing import Literal, get_args

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.models.late_shares import share_when_adapted
from peftcls.models.mixed_precision import _is_trained, widen_trained
from peftcls.models.peft_library import BaseTunerLayer, PeftModel
from peftcls.models.weight_sharing import own_weights
from peftcls.tasks.base import Task

Part = Literal["head", "last_block", "last_two_blocks", "all"]
Tensors = dict[str, torch.Tensor]


def train_only(model: PreTrainedModel, task: Task, part: Part) -> PreTrainedModel:
    """Train a part of the model itself instead of an adapter.

    Args:
        model: from `load_base`.
        task: the one given to `load_base`.
        part: "head", "last_block" or "last_two_blocks" (with the norm above them and the head), or
            "all".

    Raises:
        ValueError: the model has an adapter, or the part cannot be trained.
    """
    _check_part(model, task, part)
    trained = _modules_of(model, part)
    own_weights(model, trained)
    for module in trained:
        module.requires_grad_(True)
    widen_trained(model)
    share_when_adapted(model)
    return model


def _check_part(model: PreTrainedModel, task: Task, part: str) -> None:
    if isinstance(model, PeftModel):
        raise ValueError(
            "this model has an adapter; train_only is for a model from load_base, and instead of "
            "attach_lora."
        )
    facts = base_facts(model)
    if facts.quantize and part != "head":
        raise ValueError(
            f"train_only({part!r}) on a {facts.quantize} base: quantized weights cannot be "
            "trained; use attach_lora."
        )
    if part not in get_args(Part):
        raise ValueError(
            f"part={part!r}: expected 'head', 'last_block', 'last_two_blocks' or 'all'."
        )
    if state_of(model).shares is not None and part != "head":
        raise ValueError(
            f"train_only({part!r}) on a base in shares: only its head can be trained there; use "
            "attach_lora(layers=[-1])."
        )
    if part == "head" and not facts.heads:
        raise ValueError(
            f"{type(task).__name__} has no head of its own; train an adapter or a block."
        )


def _modules_of(model: PreTrainedModel, part: Part) -> list[torch.nn.Module]:
    """The modules that `train_only` trains for a part."""
    if part == "all":
        return [model]
    heads = [model.get_submodule(head) for head in base_facts(model).heads]
    if part == "head":
        return heads
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = max(lists, key=len)
    count = 1 if part == "last_block" else 2
    return [*heads, *blocks[-count:], *_final_norm(model)]


def _final_norm(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The norm above the last block, in a list; empty where there is none."""
    children = model.base_model.children()
    norms = [child for child in children if "Norm" in type(child).__name__]
    if not norms or "mbedding" in type(norms[-1]).__name__:
        return []
    return norms[-1:]


def train_mode(model: torch.nn.Module) -> None:
    """Switch dropout on where something is trained and off in the frozen base.

    A frozen layer has nothing to regularize.
    """
    model.eval()
    inner = unwrapped(model)
    for module in inner.modules():
        # The flag of this layer only: it decides whether the layer checkpoints its activations.
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
        if isinstance(module, BaseTunerLayer) or _is_trained(module):
            module.train()
    for child in _above_backbone(inner):
        child.train()


def checkpoint_layers(model: torch.nn.Module) -> None:
    """Switch gradient checkpointing on. Raises ValueError where the architecture has none."""
    inner = unwrapped(model)
    if not inner.supports_gradient_checkpointing:
        raise ValueError(
            f"gradient_checkpointing=True: {type(inner).__name__} does not support it; "
            "leave it out."
        )
    switch_on = getattr(inner, "activation_checkpointing_enable", None)
    if not switch_on:
        # its older name
        switch_on = inner.gradient_checkpointing_enable
    # The reentrant kind needs gradients from the embeddings on, below the lowest trained layer.
    switch_on({"use_reentrant": False})


def _above_backbone(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The head, and the dropout in front of it."""
    return [child for name, child in model.named_children() if name != model.base_model_prefix]


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in the model's order."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def copy_tensors(parameters: dict[str, torch.nn.Parameter]) -> Tensors:
    """Copies of the trained parameters on the CPU, by name."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def put_tensors(parameters: dict[str, torch.nn.Parameter], tensors: Tensors) -> None:
    """Put back what `copy_tensors` returned."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])

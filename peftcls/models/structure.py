"""The parts of a base model, found by structure: heads, attention projections, linear layers."""

import bitsandbytes as bnb
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcls.engine.head_logits import sees_later_tokens
from peftcls.tasks.base import Task

QUANTIZED_LAYERS = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)


def needs_own_pooling(model: PreTrainedModel, task: Task) -> bool:
    """Whether the task's head must be fed by us, since the model is a decoder; settings that do not fit are refused."""
    pooling, causal = getattr(task, "pooling", None), getattr(task, "causal", True)
    backbone, vocabulary = model.base_model, model.config.get_text_config().vocab_size
    decoder = not model.config.is_encoder_decoder and not sees_later_tokens(
        backbone, vocabulary, causal=True
    )
    if not task.new_head:
        return decoder
    if decoder and pooling == "cls":
        raise ValueError(
            f"pooling='cls' with {type(model).__name__}: a decoder's first token has seen nothing; use 'last' or 'mean'."
        )
    if not decoder and (pooling not in (None, "cls") or not causal):
        raise ValueError(
            f"pooling={pooling!r}, causal={causal} with {type(model).__name__}: its head reads its own token and has no "
            "causal mask; leave both out."
        )
    if not causal and not _can_look_ahead(backbone, vocabulary):
        raise ValueError(
            f"causal=False with {type(model).__name__}: this architecture keeps its causal mask; leave it out."
        )
    return decoder


def _can_look_ahead(backbone: torch.nn.Module, vocabulary: int) -> bool:
    try:
        return sees_later_tokens(backbone, vocabulary, causal=False)
    except (RuntimeError, ValueError, IndexError):  # it builds on a mask of two dimensions (Bloom)
        return False


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules above the backbone that have weights: the head, whatever an architecture calls it.

    Raises:
        ValueError: the backbone is not one child of the model, so what is above it cannot be told.
    """
    prefix = model.base_model_prefix
    if not isinstance(getattr(model, prefix, None), torch.nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no backbone called {prefix!r}; peftcls cannot tell its head from its body."
        )
    return [
        name
        for name, child in model.named_children()
        if name != prefix and any(True for _ in child.parameters())
    ]


def attention_projections(model: torch.nn.Module) -> list[str]:
    """Full names of the linear layers inside attention modules, found by class name."""
    found = [
        f"{name}.{inner}"
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__
        for inner, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | Conv1D)
    ]
    return list(dict.fromkeys(found))


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the backbone's linear layers; the head's and the output embedding's are not among them."""
    prefix = model.base_model_prefix
    return [
        f"{prefix}.{name}"
        for name, layer in getattr(model, prefix).named_modules()
        if isinstance(layer, torch.nn.Linear | Conv1D)
    ]

"""The parts of a base model, found by structure: heads, attention projections, linear layers."""

import bitsandbytes as bnb
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcls.engine.head_logits import sees_later_tokens
from peftcls.tasks.base import Task

QUANTIZED_LAYERS = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)


def needs_own_pooling(model: PreTrainedModel, task: Task) -> bool:
    """Whether the model is a decoder, so that peftcls pools its states for the task's head.

    Raises:
        ValueError: the task's `pooling` or `causal` do not fit the model.
    """
    backbone = model.base_model
    vocabulary = model.config.get_text_config().vocab_size
    is_decoder = not model.config.is_encoder_decoder and not sees_later_tokens(
        backbone, vocabulary, causal=True
    )
    if task.new_head:
        _check_pooling(model, task, is_decoder=is_decoder)
    return is_decoder


def _check_pooling(model: PreTrainedModel, task: Task, *, is_decoder: bool) -> None:
    if is_decoder and task.pooling == "cls":
        raise ValueError(
            f"pooling='cls' with {type(model).__name__}: a decoder's first token has seen nothing; "
            "use 'last' or 'mean'."
        )
    if not is_decoder and (task.pooling not in (None, "cls") or not task.causal):
        raise ValueError(
            f"pooling={task.pooling!r}, causal={task.causal} with {type(model).__name__}: its head "
            "reads its own token and has no causal mask; leave both out."
        )
    if not task.causal and not _can_lift_causal_mask(model):
        raise ValueError(
            f"causal=False with {type(model).__name__}: this architecture keeps its causal mask; "
            "leave it out."
        )


def _can_lift_causal_mask(model: PreTrainedModel) -> bool:
    vocabulary = model.config.get_text_config().vocab_size
    try:
        return sees_later_tokens(model.base_model, vocabulary, causal=False)
    # Bloom, for one, accepts a mask of two dimensions only.
    except (RuntimeError, ValueError, IndexError):
        return False


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules with weights above the backbone: the head, whatever its name is.

    Raises:
        ValueError: the backbone is not one child of the model, so its head cannot be found.
    """
    prefix = model.base_model_prefix
    if not isinstance(getattr(model, prefix, None), torch.nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no backbone called {prefix!r}; peftcls cannot tell its "
            "head from its body."
        )
    names = []
    for name, child in model.named_children():
        has_weights = any(True for _ in child.parameters())
        if name != prefix and has_weights:
            names.append(name)
    return names


def attention_projections(model: torch.nn.Module) -> list[str]:
    """Full names of the linear layers inside attention modules, found by class name."""
    names = []
    for outer, module in model.named_modules():
        if "Attention" not in type(module).__name__:
            continue
        for inner, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear | Conv1D):
                names.append(f"{outer}.{inner}")
    # Attention modules can be nested, so a layer can be found twice.
    return list(dict.fromkeys(names))


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the backbone's linear layers, without the head and the output embedding."""
    prefix = model.base_model_prefix
    names = []
    for name, layer in getattr(model, prefix).named_modules():
        if isinstance(layer, torch.nn.Linear | Conv1D):
            names.append(f"{prefix}.{name}")
    return names

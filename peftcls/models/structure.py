"""The parts of a base model, found by structure: heads, attention projections, linear layers."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcls.engine.head_logits import sees_later_tokens
from peftcls.engine.pair_features import compared_width
from peftcls.models.peft_library import bnb
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
    if task.pooling == "compare" and (is_decoder or model.config.is_encoder_decoder):
        raise ValueError(
            f"pooling='compare' with {type(model).__name__}: only the means of an encoder's tokens "
            "are compared; leave it out."
        )
    if is_decoder and task.pooling == "cls":
        raise ValueError(
            f"pooling='cls' with {type(model).__name__}: a decoder's first token has seen nothing; "
            "use 'last' or 'mean'."
        )
    if not is_decoder and (task.pooling in ("first", "last") or not task.causal):
        raise ValueError(
            f"pooling={task.pooling!r}, causal={task.causal} with {type(model).__name__}: an "
            "encoder's head reads its own token ('cls') or the mean of all ('mean'), and has no "
            "causal mask; leave causal out."
        )
    if model.config.is_encoder_decoder and task.pooling == "mean":
        raise ValueError(
            f"pooling='mean' with {type(model).__name__}: the head of an encoder with a decoder "
            "reads the decoder's last token; leave it out."
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


def read_mean_of_tokens(model: PreTrainedModel, *, compares: bool) -> str:
    """Put one linear layer in the place of an encoder's head, to read the mean of its tokens.

    What the former head read, such as a pooler, is removed: nothing would train it.

    Args:
        model: an encoder.
        compares: whether the layer reads the features of two texts; see `compare_texts`.

    Returns:
        The name of the layer.
    """
    *others, name = head_modules(model)
    for other in others:
        model.set_submodule(other, torch.nn.Identity())
    backbone: Any = model.base_model
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    parameter = next(p for p in model.get_submodule(name).parameters())
    config: Any = model.config
    width = compared_width(config.hidden_size) if compares else config.hidden_size
    head = torch.nn.Linear(width, config.num_labels, dtype=parameter.dtype, device=parameter.device)
    torch.nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
    torch.nn.init.zeros_(head.bias)
    model.set_submodule(name, head.requires_grad_(False))
    return name


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

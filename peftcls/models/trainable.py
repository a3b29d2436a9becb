"""What is trained: an adapter beside the frozen base, or a part of the model itself."""

import difflib
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from peftcls.argument_checks import check_argument_types
from peftcls.engine.head_logits import unwrapped
from peftcls.models.adapter_methods import METHOD, Method, method_config
from peftcls.models.fused_lora import compute_together
from peftcls.models.state import base_facts
from peftcls.models.structure import attention_projections, linear_layers
from peftcls.models.weight_sharing import own_weights
from peftcls.tasks.base import Task

Part = Literal["head", "last_block", "last_two_blocks", "all"]
Tensors = dict[str, torch.Tensor]


def attach_lora(
    model: PreTrainedModel,
    task: Task,
    *,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: Literal["attention", "all-linear"] | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    method: Method = "lora",
    seed: int = 0,
) -> PeftModel:
    """Put LoRA adapters into the attention projections; they and the head are trained, nothing else.

    Args:
        model: from `load_base`.
        task: the one given to `load_base`.
        rank: of the update matrices (r in Hu et al. 2021, section 4.1); on average, for "adalora"; "ia3" has none.
        alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) for "rslora".
        dropout: on the input of the update, and of the head; the frozen base has none.
        targets: "attention" (unless given), "all-linear" in the backbone, or endings of module names.
        layers: numbers of the layers that get adapters, from 0; negative numbers count from the top.
        method: "lora", "lora+" (Hayou et al. 2024), "dora" (Liu et al. 2024), "rslora" (Kalajdzievski 2023), "pissa" (Meng
            et al. 2024), "adalora" (Zhang et al. 2023) or "ia3" (Liu et al. 2022; it scales what the targets give).
        seed: for the new weights.

    Raises:
        ValueError: no module fits, or the method is not known.
    """
    check_argument_types(
        {
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "targets": targets,
            "layers": layers,
            "method": method,
            "seed": seed,
        },
        attach_lora,
    )
    if rank < 1 or not 0 < alpha < float("inf") or not 0 <= dropout < 1:
        raise ValueError(
            f"rank={rank!r}, alpha={alpha!r}, dropout={dropout!r}: expected a whole number of at least 1, a number above 0, "
            "and a share of at least 0 and below 1."
        )
    facts = base_facts(model)
    if method == "pissa" and facts.quantize:
        raise ValueError(
            f"method='pissa' on a base in {facts.quantize}: it splits the base's own weights, which must be in "
            "full precision; use another method."
        )
    names = _targets(model, targets)
    if layers is not None:
        names = _in_layers(names, layers)
    if not names:
        raise ValueError(
            f"no module of {type(model).__name__} fits targets={targets!r}, layers={layers!r}; "
            "try targets='all-linear'."
        )
    config = method_config(
        method,
        names,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        task_type=task.peft_type,
        modules_to_save=list(facts.heads) or None,
        base_model_name_or_path=model.name_or_path,
        revision=facts.revision,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in names),
    )
    set_head_dropout(model, dropout)
    if method == "pissa":  # it takes out of the base's weights what the adapter starts with
        own_weights(model, [model.get_submodule(name) for name in names])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = wrap_adapter(model, config)
    vars(wrapped)[METHOD] = method
    return wrapped


def set_head_dropout(model: PreTrainedModel, dropout: float) -> None:
    """The head drops what the adapter drops, whatever the base was pretrained with."""
    for _, child in _above_backbone(model):
        for module in child.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout


def wrap_adapter(model: Any, config: PeftConfig) -> PeftModel:
    """Put an adapter and copies of the heads on a base; a head under a narrower base is held in float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )  # PEFT asks by the old name
        wrapped = get_peft_model(model, config)
    compute_together(wrapped)
    for head in base_facts(wrapped).heads:
        keep_in_float32(unwrapped(wrapped).get_submodule(head))
    return wrapped.eval()


def keep_in_float32(module: torch.nn.Module, *, inside: bool = False) -> None:
    """What is trained steps in float32; what comes into it is widened, and inside the base what goes out is narrowed again."""
    narrow = next(
        (p.dtype for p in module.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None
    )
    if narrow is None:
        return
    module.float()
    module.register_forward_pre_hook(
        lambda _, args, kwargs: (_cast(args, torch.float32), _cast(kwargs, torch.float32)),
        with_kwargs=True,
    )
    if inside:
        module.register_forward_hook(lambda _, args, output: _cast(output, narrow))


def widen_trained(model: PreTrainedModel) -> None:
    """Hold the parts of a model that are trained as they are in float32, each with all that is below it."""
    waiting: list[tuple[str, torch.nn.Module]] = [("", model)]
    for name, module in waiting:
        own = list(module.parameters())
        if (
            own
            and all(p.requires_grad for p in own)
            and not isinstance(module, torch.nn.ModuleList)
        ):  # a list is never called itself
            keep_in_float32(module, inside=name not in ("", *base_facts(model).heads))
        else:
            waiting += [
                (f"{name}.{below}".lstrip("."), child) for below, child in module.named_children()
            ]


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """The tensors of numbers in a layer's arguments or results, however they are nested, in another width."""
    if isinstance(values, tuple | list):
        return type(values)(_cast(value, dtype) for value in values)
    if isinstance(values, dict):
        return {name: _cast(value, dtype) for name, value in values.items()}
    return (
        values.to(dtype)
        if isinstance(values, torch.Tensor) and values.is_floating_point()
        else values
    )


def _targets(model: PreTrainedModel, targets: str | Sequence[str] | None) -> list[str]:
    linears, heads = linear_layers(model), base_facts(model).heads
    linears = [
        name for name in linears if not any(name == h or name.startswith(h + ".") for h in heads)
    ]
    if targets is None or targets == "attention":
        return [name for name in attention_projections(model) if name in set(linears)]
    if isinstance(targets, str) and targets != "all-linear":
        raise ValueError(
            f"targets={targets!r}: expected 'attention', 'all-linear' or a list of names such as ['q_proj', 'v_proj']."
        )
    if targets == "all-linear":
        return linears
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in linears):
            near = difflib.get_close_matches(
                target, {name.rpartition(".")[2] for name in linears}, 1
            )
            raise ValueError(
                f"{type(model).__name__} has no linear layer {target!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
            )
    return [name for name in linears if any(name == t or name.endswith("." + t) for t in targets)]


def _in_layers(names: list[str], layers: Sequence[int]) -> list[str]:
    places = {name: int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    count = max(places.values(), default=-1) + 1
    if wrong := [layer for layer in layers if not -count <= layer < count]:
        raise ValueError(
            f"layers={list(layers)}: there is no layer {wrong[0]}; the model has layers 0 to {count - 1}."
        )
    wanted = {layer % count for layer in layers}
    return [name for name, place in places.items() if place in wanted]


def train_only(model: PreTrainedModel, task: Task, part: Part) -> PreTrainedModel:
    """Train a part of the model itself instead of an adapter.

    Args:
        part: "head", "last_block" or "last_two_blocks" (with the norm above them and the head), or "all".
    """
    if isinstance(model, PeftModel):
        raise ValueError(
            "this model has an adapter; train_only is for a model from load_base, and instead of attach_lora."
        )
    facts = base_facts(model)
    if facts.quantize and part != "head":
        raise ValueError(
            f"train_only({part!r}) on a {facts.quantize} base: quantized weights cannot be trained; use attach_lora."
        )
    if part not in ("head", "last_block", "last_two_blocks", "all"):
        raise ValueError(
            f"part={part!r}: expected 'head', 'last_block', 'last_two_blocks' or 'all'."
        )
    if part == "head" and not facts.heads:
        raise ValueError(
            f"{type(task).__name__} has no head of its own; train an adapter or a block."
        )
    opened: list[torch.nn.Module] = (
        [model] if part == "all" else [model.get_submodule(head) for head in facts.heads]
    )
    if part.startswith("last"):
        blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        opened += blocks[-1:] if part == "last_block" else blocks[-2:]
        top = [m for m in model.base_model.children() if "Norm" in type(m).__name__]
        opened += top[-1:] if not any("mbedding" in type(m).__name__ for m in top[-1:]) else []
    own_weights(model, opened)
    for module in opened:
        module.requires_grad_(True)
    widen_trained(model)
    return model


def train_mode(model: torch.nn.Module) -> None:
    """Dropout on where something is trained, off in the frozen base: a frozen layer has nothing to regularise."""
    model.eval()
    inner = unwrapped(model)
    for module in inner.modules():
        own = list(module.parameters())
        if isinstance(module, GradientCheckpointingLayer):
            module.training = (
                True  # of the layer alone: it is asked before the layer decides to checkpoint
            )
        if isinstance(module, BaseTunerLayer) or (own and all(p.requires_grad for p in own)):
            module.train()
    for _, child in _above_backbone(inner):
        child.train()


def checkpoint_layers(model: torch.nn.Module) -> None:
    """Switch gradient checkpointing on. Raises ValueError where the architecture has none."""
    inner = unwrapped(model)
    if not inner.supports_gradient_checkpointing:
        raise ValueError(
            f"gradient_checkpointing=True: {type(inner).__name__} does not support it; leave it out."
        )
    switch = (
        getattr(inner, "activation_checkpointing_enable", None)
        or inner.gradient_checkpointing_enable
    )  # its older name
    switch(
        {"use_reentrant": False}
    )  # the reentrant kind wants gradients from the embeddings on, below the lowest trained layer


def _above_backbone(model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    """The head, and the dropout in front of it."""
    return [
        (name, child) for name, child in model.named_children() if name != model.base_model_prefix
    ]


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copy_tensors(parameters: dict[str, torch.nn.Parameter]) -> Tensors:
    """Copies of the trained parameters on the CPU, by name."""
    return {name: p.detach().cpu().clone() for name, p in parameters.items()}


def put_tensors(parameters: dict[str, torch.nn.Parameter], tensors: Tensors) -> None:
    """Put back what `copy_tensors` gave."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])

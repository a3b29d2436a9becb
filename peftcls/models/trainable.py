"""What is trained: an adapter beside the frozen base, or a part of the model itself."""

import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from peftcls.argument_checks import check_argument_types
from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.models.adapter_methods import Method, method_config
from peftcls.models.fused_lora import fuse_lora_layers
from peftcls.models.target_modules import target_modules
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
    """Put LoRA adapters into the attention projections; only they and the head are trained.

    Args:
        model: from `load_base`.
        task: the one given to `load_base`.
        rank: of the update matrices (r in Hu et al. 2021, section 4.1); the average rank for
            "adalora"; "ia3" has none.
        alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) for "rslora".
        dropout: on the input of the update, and of the head; the frozen base has none.
        targets: "attention" (the default), "all-linear" for all linear layers of the backbone, or
            endings of module names.
        layers: numbers of the layers that get adapters, from 0; negative numbers count from the
            top.
        method: "lora", "lora+" (Hayou et al. 2024), "dora" (Liu et al. 2024), "rslora"
            (Kalajdzievski 2023), "pissa" (Meng et al. 2024), "adalora" (Zhang et al. 2023) or
            "ia3" (Liu et al. 2022; it scales the outputs of the targets).
        seed: for the new weights.

    Raises:
        ValueError: no module fits, or the method is not known.
    """
    arguments = {
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "targets": targets,
        "layers": layers,
        "method": method,
        "seed": seed,
    }
    check_argument_types(arguments, attach_lora)
    if rank < 1 or not 0 < alpha < float("inf") or not 0 <= dropout < 1:
        raise ValueError(
            f"rank={rank!r}, alpha={alpha!r}, dropout={dropout!r}: expected a whole number of at "
            "least 1, a number above 0, and a share of at least 0 and below 1."
        )
    facts = base_facts(model)
    if method == "pissa" and facts.quantize:
        raise ValueError(
            f"method='pissa' on a base in {facts.quantize}: it splits the base's own weights, "
            "which must be in full precision; use another method."
        )
    names = target_modules(model, targets, layers)
    target_layers = [model.get_submodule(name) for name in names]
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
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in target_layers),
    )
    set_head_dropout(model, dropout)
    # PiSSA subtracts from the base's weights what the adapter starts with.
    if method == "pissa":
        own_weights(model, target_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = wrap_adapter(model, config)
    state_of(wrapped).method = method
    return wrapped


def set_head_dropout(model: PreTrainedModel, dropout: float) -> None:
    """Set the head's dropout to the adapter's, whatever the base was pretrained with."""
    for child in _above_backbone(model):
        for module in child.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout


def wrap_adapter(model: Any, config: PeftConfig) -> PeftModel:
    """Put an adapter and copies of the heads on a base; the heads run in float32."""
    with warnings.catch_warnings():
        # PEFT uses the old name of a method of transformers.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        wrapped = get_peft_model(model, config)
    fuse_lora_layers(wrapped)
    for head in base_facts(wrapped).heads:
        keep_in_float32(unwrapped(wrapped).get_submodule(head))
    return wrapped.eval()


def keep_in_float32(module: torch.nn.Module, *, inside: bool = False) -> None:
    """Run a trained module in float32: its inputs are upcast.

    Args:
        module: trained; nothing happens where it is in float32 or wider already.
        inside: it stands inside the base, so its outputs are cast back to the base's dtype.
    """
    half_precision = (torch.bfloat16, torch.float16)
    dtypes = [parameter.dtype for parameter in module.parameters()]
    base_dtype = next((dtype for dtype in dtypes if dtype in half_precision), None)
    if base_dtype is None:
        return

    module.float()
    module.register_forward_pre_hook(_upcast_inputs, with_kwargs=True)
    if inside:
        module.register_forward_hook(_CastOutputs(base_dtype))


def _upcast_inputs(_: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _cast(args, torch.float32), _cast(kwargs, torch.float32)


class _CastOutputs:
    """A forward hook that casts a module's outputs to the dtype of the base around it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _: torch.nn.Module, args: Any, output: Any) -> Any:
        return _cast(output, self.dtype)


def widen_all(model: torch.nn.Module) -> None:
    """Run a whole model in float32, its frozen base too."""
    model.float()
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, _CastOutputs):
                hook.dtype = torch.float32


def widen_trained(model: PreTrainedModel) -> None:
    """Run the trained parts of a plain model in float32, each as the largest module it fills."""
    outside_the_base = ("", *base_facts(model).heads)
    waiting = deque[tuple[str, torch.nn.Module]]([("", model)])
    while waiting:
        name, module = waiting.popleft()
        # A list of modules has no forward pass of its own, so it can have no hooks.
        if _is_trained(module) and not isinstance(module, torch.nn.ModuleList):
            keep_in_float32(module, inside=name not in outside_the_base)
            continue
        for child_name, child in module.named_children():
            waiting.append((f"{name}.{child_name}".lstrip("."), child))


def _is_trained(module: torch.nn.Module) -> bool:
    """Whether a module has parameters and all of them are trained."""
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.requires_grad for parameter in parameters)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in a layer's arguments or results, however nested."""
    if isinstance(values, tuple | list):
        return type(values)(_cast(value, dtype) for value in values)
    # A dict, or an output class of transformers, whose fields are keyword arguments.
    if isinstance(values, dict):
        return type(values)(**{name: _cast(value, dtype) for name, value in values.items()})
    if isinstance(values, torch.Tensor) and values.is_floating_point():
        return values.to(dtype)
    return values


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

"""Trained modules in float32 over a base in 16 bits: casts at their borders."""

from collections import deque
from typing import Any

import torch
from transformers import PreTrainedModel

from peftcls.engine.model_state import base_facts
from peftcls.engine.precision import NARROW_DTYPES


def keep_in_float32(module: torch.nn.Module, *, inside: bool = False) -> None:
    """Run a trained module in float32: its inputs are upcast.

    Args:
        module: trained; nothing happens where it is in float32 or wider already.
        inside: it stands inside the base, so its outputs are cast back to the base's dtype.
    """
    dtypes = [parameter.dtype for parameter in module.parameters()]
    base_dtype = next((dtype for dtype in dtypes if dtype in NARROW_DTYPES), None)
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

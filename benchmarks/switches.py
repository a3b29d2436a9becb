"""Switch off the parts of peftcls that save time, for the table of what each gives.

Most are fields of `FastPaths`. Two have no switch in peftcls and are patched here. The base is held
in float32 by an argument of `load_base`.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch

from peftcls import FastPaths
from peftcls.engine.fast_paths import VARIABLE

BFLOAT16 = "bfloat16"


def leave_out(names: tuple[str, ...]) -> None:
    """Switch these off in this process; to be called before a model is loaded."""
    fast_paths = [field.name for field in dataclasses.fields(FastPaths)]
    kept = [name for name in fast_paths if name not in names]
    os.environ[VARIABLE] = ",".join(kept) or "0"
    for name, patch in PATCHES.items():
        if name in names:
            patch()


def base_dtype(names: tuple[str, ...], dtype: str | None) -> torch.dtype | None:
    """The dtype of the base; None for the one that peftcls chooses for this machine."""
    if dtype is not None:
        return getattr(torch, dtype)
    return torch.float32 if BFLOAT16 in names else None


def _ignore_cost_of_calls() -> None:
    """Cut a step into as few micro-batches as their limit of tokens allows."""
    from peftcls.training import gradient_accumulation

    gradient_accumulation.call_tokens = lambda _: 10**9


def _compute_all_logits() -> None:
    """Compute logits at all positions, and select afterwards those that are asked for."""
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    def with_all_logits(forward: Callable[..., Any]) -> Callable[..., Any]:
        def select_afterwards(self: Any, *inputs: Any, logits_to_keep: Any = 0, **more: Any) -> Any:
            output = forward(self, *inputs, **more)
            if isinstance(logits_to_keep, torch.Tensor):
                output.logits = output.logits[logits_to_keep]
            return output

        return select_afterwards

    for model_class in (LlamaForCausalLM, Qwen2ForCausalLM):
        model_class.forward = with_all_logits(model_class.forward)  # type: ignore[method-assign]


PATCHES: dict[str, Callable[[], None]] = {
    "cuts": _ignore_cost_of_calls,
    "logits": _compute_all_logits,
}

"""How to leave out one of peftcls's fast paths, for the table of what each gives: a function for each, by its name."""

from collections.abc import Callable
from typing import Any

import torch


def leave_out(names: tuple[str, ...]) -> None:
    """Leave fast paths out in this process."""
    for name in names:
        SWITCHES[name]()


def _no_narrow_base() -> None:
    from peftcls.models import base_model

    base_model.fast_dtype = lambda _: torch.float32  # type: ignore[assignment]


def _no_own_attention() -> None:
    from peftcls.engine import kernels

    kernels.LONGEST_TOKENS, kernels.GPU_ATTENTION = 0, "sdpa"


def _norms_written_out() -> None:
    from peftcls.engine import kernels

    kernels.fuse_norms = lambda _: None  # type: ignore[assignment]


def _no_packing() -> None:
    from peftcls.engine import packing, prefix_cache
    from peftcls.training import gradient_accumulation

    packing.can_pack = gradient_accumulation.can_pack = prefix_cache.can_pack = lambda _: False  # type: ignore[assignment]


def _whole_last_layer() -> None:
    from peftcls.engine import head_logits, packing

    packing.can_narrow = head_logits.can_narrow = lambda _: False  # type: ignore[assignment]


def _no_shared_prefix() -> None:
    from peftcls.engine import prefix_cache

    prefix_cache.can_share = lambda _: False  # type: ignore[assignment]


def _no_kept_states() -> None:
    from peftcls.engine import frozen_cache

    frozen_cache.frozen_layers = lambda _: None  # type: ignore[assignment]


def _no_cheap_cuts() -> None:
    from peftcls.training import gradient_accumulation

    gradient_accumulation.call_tokens = lambda _: (
        10**9
    )  # as few micro-batches as their limit allows


def _logits_of_all_tokens() -> None:
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    def reading_all(forward: Any) -> Any:
        def computed(self: Any, *inputs: Any, logits_to_keep: Any = 0, **more: Any) -> Any:
            output = forward(self, *inputs, **more)
            if isinstance(logits_to_keep, torch.Tensor):
                output.logits = output.logits[logits_to_keep]
            return output

        return computed

    for kind in (LlamaForCausalLM, Qwen2ForCausalLM):
        kind.forward = reading_all(kind.forward)  # type: ignore[method-assign]


def _launched_one_by_one() -> None:
    from peftcls.training import gradient_accumulation

    gradient_accumulation.MOST_WORK = -1.0  # type: ignore[misc]


SWITCHES: dict[str, Callable[[], None]] = {
    "bfloat16": _no_narrow_base,
    "attention": _no_own_attention,
    "norms": _norms_written_out,
    "packing": _no_packing,
    "last_layer": _whole_last_layer,
    "prefix": _no_shared_prefix,
    "trunk": _no_kept_states,
    "cuts": _no_cheap_cuts,
    "logits": _logits_of_all_tokens,
    "recording": _launched_one_by_one,
}

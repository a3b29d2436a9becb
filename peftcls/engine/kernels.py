"""What the processor at hand does fastest: the width of numbers, and the way attention is computed."""

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from peftcls.engine.packing import packing

OWN_ATTENTION, GPU_ATTENTION = "peftcls", "peftcls_gpu"
UNPLANNED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
LONGEST_TOKENS = (
    1024  # beyond, the table of all pairs of tokens would be larger than what it is made from
)
NARROWEST = 320  # hidden size; a narrower model spends its time elsewhere than in matrix products
GAIN, FUSED_GAIN = 1.3, 1.15


def fast_dtype(hidden_size: int) -> torch.dtype:
    """bfloat16 where this machine multiplies matrices of such a model faster in it, float32 otherwise.

    A GPU is asked what it supports; a processor is timed once, since one without the instructions is twice slower in
    bfloat16, and one with them about twice faster: the two are far enough apart for every run to find the same.
    """
    if torch.cuda.is_available():
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    return torch.bfloat16 if hidden_size >= NARROWEST and _processor_gains() else torch.float32


@functools.cache
def _processor_gains() -> bool:
    wide, narrow = (
        functools.partial(
            F.linear, torch.ones(256, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    return _gain(wide, narrow) > GAIN


@torch.inference_mode()
def _gain(first: Callable[[], object], second: Callable[[], object]) -> float:
    """How many times as long the first call takes as the second, at the best of several turns each."""
    best = [float("inf"), float("inf")]
    for turn in range(6):
        for number, call in enumerate((first, second)):
            started = time.perf_counter()
            call()
            if turn:  # the first call of all builds its kernel
                best[number] = min(best[number], time.perf_counter() - started)
    return best[0] / best[1]


def call_tokens(device: torch.device) -> int:
    """What a call of a model costs beyond its tokens, as a number of tokens: a GPU waits for its next call much longer."""
    return 64 if device.type == "cpu" else 4096


def batch_tokens(device: torch.device) -> int:
    """How many tokens that are computed suit a call of a model: enough to keep the device busy, few enough for its nearest memory."""
    return 2048 if device.type == "cpu" else 32768


def choose_kernels(model: PreTrainedModel) -> None:
    """Compute attention and norms as is fastest for short texts; on a processor attention sees rows where all else sees packed tokens.

    On a GPU cuDNN is left out, which torch would prefer where there is a mask: for every shape that it has not met it makes a
    plan, which takes 0.1 to 0.5 s each way, and texts come in many shapes.

    On a processor the fused kernel's way back in bfloat16 takes 2 to 8 times as long as plain matrix products, up to 512
    tokens (12 heads of 32 or 64, 512 tokens in all); in float32 it is the faster. Its way forward takes 1.5 times as long on
    one processor and two thirds on another, which is asked once.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GPU_ATTENTION if torch.cuda.is_available() else OWN_ATTENTION)
    if torch.cuda.is_available():
        fuse_norms(model)


def fuse_norms(model: torch.nn.Module) -> None:
    """Let norms by the root mean square be computed by one kernel each way, where eight are written out, with fewer copies to go back.

    What is no such norm (Zhang and Sennrich 2019, section 3) is left as it is: one of each kind is asked.
    """
    fused: dict[type, type | None] = {}
    for module in list(model.modules()):
        kind: Any = type(module)
        if (
            isinstance(getattr(module, "variance_epsilon", None), float)
            and getattr(module, "weight", None) is not None
        ):
            if kind not in fused:
                fused[kind] = (
                    type(kind.__name__, (kind,), {"forward": _norm}) if _is_norm(module) else None
                )
            module.__class__ = fused[kind] or kind


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


@torch.no_grad()
def _is_norm(module: Any) -> bool:
    weight = module.weight
    if (
        weight.ndim != 1
        or not weight.is_floating_point()
        or len(inspect.signature(module.forward).parameters) > 1
    ):  # it has a gate
        return False
    states = torch.linspace(-3, 5, 2 * len(weight), device=weight.device, dtype=weight.dtype).view(
        2, -1
    )
    near = 2e-2 if weight.dtype in (torch.bfloat16, torch.float16) else 1e-5
    return torch.allclose(module(states), _norm(module, states), rtol=near, atol=near)


def _attend_unplanned(*heads: Any, **more: Any) -> tuple[torch.Tensor, None]:
    with sdpa_kernel(UNPLANNED):
        return sdpa_attention_forward(*heads, **more)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that transformers asks for: heads of shape (rows, heads, tokens, width), an additive mask."""
    own = packing()
    if own is None:
        return _attend_rows(module, query, key, value, attention_mask, **more)
    return own.attend(_attend_rows, module, query, key, value, attention_mask, **more)


def _attend_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    masked = attention_mask is not None or not (
        getattr(module, "is_causal", True) if is_causal is None else is_causal
    )
    if not (
        masked
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and key.shape[2] <= LONGEST_TOKENS
        and more.get("position_bias") is None
        and (
            any(heads.requires_grad for heads in (query, key, value)) or not _fused_answers_faster()
        )
    ):
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **more,
        )
    (rows, heads, _, width), groups = query.shape, query.shape[1] // key.shape[1]
    asked = (query * (width**-0.5 if scaling is None else scaling)).reshape(
        rows, heads // groups, -1, width
    )
    scores = torch.matmul(
        asked, key.transpose(2, 3)
    )  # heads that read the same keys stand one behind another
    if attention_mask is not None:
        mask = attention_mask
        if groups > 1:
            mask = (
                mask.repeat(1, 1, groups, 1) if mask.shape[1] == 1 else mask.reshape(scores.shape)
            )
        scores = scores.add_(mask)
    found = torch.matmul(F.dropout(scores.softmax(-1), dropout), value).view(query.shape)
    return found.transpose(1, 2).contiguous(), None


@functools.cache
def _fused_answers_faster() -> bool:
    """Whether the fused kernel's way forward in bfloat16 is the faster here; its way back never was."""
    heads, mask = (
        torch.ones(4, 12, 128, 64, dtype=torch.bfloat16),
        torch.zeros(4, 1, 128, 128, dtype=torch.bfloat16),
    )
    return (
        _gain(
            lambda: torch.matmul(
                torch.matmul(heads, heads.transpose(2, 3)).add_(mask).softmax(-1), heads
            ),
            lambda: F.scaled_dot_product_attention(heads, heads, heads, mask),
        )
        > FUSED_GAIN
    )


AttentionInterface.register(GPU_ATTENTION, _attend_unplanned)
AttentionMaskInterface.register(GPU_ATTENTION, sdpa_mask)
AttentionInterface.register(OWN_ATTENTION, _attend)
AttentionMaskInterface.register(OWN_ATTENTION, eager_mask)

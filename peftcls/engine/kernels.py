"""Kernels: the number format, attention and norms that the device computes fastest."""

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

from peftcls.engine.packing import current_packing
from peftcls.engine.precision import tolerance

CPU_ATTENTION = "peftcls"
GPU_ATTENTION = "peftcls_gpu"
BACKENDS_WITHOUT_PLANS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
MAX_MATMUL_TOKENS = 1024  # beyond, the table of scores is larger than what it is made from
MIN_BF16_HIDDEN_SIZE = 320  # a narrower model spends its time outside of matrix products
MIN_BF16_GAIN = 1.3
MIN_FUSED_GAIN = 1.15
PROBE_TURNS = 6


def fast_dtype(hidden_size: int) -> torch.dtype:
    """bfloat16 where this machine multiplies matrices of such a model faster in it, else float32.

    A GPU is asked what it supports. A processor is timed once: without bfloat16 instructions it is
    twice slower in it, with them about twice faster, so every run finds the same.
    """
    if torch.cuda.is_available():
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if supported else torch.float32
    if hidden_size >= MIN_BF16_HIDDEN_SIZE and _cpu_gains_by_bfloat16():
        return torch.bfloat16
    return torch.float32


@functools.cache
def _cpu_gains_by_bfloat16() -> bool:
    def product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        inputs = torch.ones(256, 768, dtype=dtype)
        weight = torch.ones(3072, 768, dtype=dtype)
        return functools.partial(F.linear, inputs, weight)

    return _speed_ratio(product(torch.float32), product(torch.bfloat16)) > MIN_BF16_GAIN


@torch.inference_mode()
def _speed_ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """How many times as long the first call takes as the second, at the best of several turns."""
    best = [float("inf"), float("inf")]
    for turn in range(PROBE_TURNS):
        for number, call in enumerate((first, second)):
            started = time.perf_counter()
            call()
            seconds = time.perf_counter() - started
            if turn:  # the first call of all builds its kernel
                best[number] = min(best[number], seconds)
    return best[0] / best[1]


def call_tokens(device: torch.device) -> int:
    """What a call of a model costs beyond its tokens, as a number of tokens; a GPU waits longer."""
    if device.type == "cpu":
        return 64
    return 4096


def batch_tokens(device: torch.device) -> int:
    """How many tokens suit a call of a model.

    They keep the device busy, and are few enough for its nearest memory.
    """
    if device.type == "cpu":
        return 2048
    return 32768


def choose_kernels(model: PreTrainedModel) -> None:
    """Compute attention and norms in the form that is fastest for short texts.

    On a processor, attention sees rows where all else sees packed tokens. The fused kernel's
    backward pass in bfloat16 takes 2 to 8 times as long as plain matrix products, up to 512 tokens
    (12 heads of 32 or 64, 512 tokens in all); in float32 it is the faster one. Its forward pass
    takes 1.5 times as long on one processor and two thirds on another, so it is timed once.

    On a GPU, cuDNN is left out, which torch prefers where there is a mask: for every new shape it
    makes a plan, which takes 0.1 to 0.5 s in each pass, and texts come in many shapes.
    """
    on_gpu = torch.cuda.is_available()
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GPU_ATTENTION if on_gpu else CPU_ATTENTION)
    if on_gpu:
        fuse_norms(model)


def use_plain_kernels(model: PreTrainedModel) -> None:
    """Undo `choose_kernels`: attention and norms as transformers has them."""
    if model.config._attn_implementation in (CPU_ATTENTION, GPU_ATTENTION):
        model.set_attn_implementation("sdpa")
    for module in model.modules():
        if isinstance(module, _FusedNorm):
            module.__class__ = type(module).__bases__[1]


class _FusedNorm(torch.nn.Module):
    """Marks a norm whose class was replaced by one with the fused forward pass."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last dimension, by one kernel."""
        return _rms_norm(self, hidden_states)


def fuse_norms(model: torch.nn.Module) -> None:
    """Compute RMS norms by one kernel in each pass instead of eight, with fewer copies kept.

    A module that is no RMS norm (Zhang and Sennrich 2019, section 3) is left as it is: one of each
    class is tried.
    """
    fused_classes: dict[type, type | None] = {}
    for module in list(model.modules()):
        kind: Any = type(module)
        if not isinstance(getattr(module, "variance_epsilon", None), float):
            continue
        if getattr(module, "weight", None) is None or issubclass(kind, _FusedNorm):
            continue
        if kind not in fused_classes:
            fused_classes[kind] = None
            if _is_rms_norm(module):
                fused_classes[kind] = type(kind.__name__, (_FusedNorm, kind), {})
        fused = fused_classes[kind]
        if fused is not None:
            module.__class__ = fused


def _rms_norm(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    return F.rms_norm(hidden_states, weight.shape, weight, module.variance_epsilon)


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    weight = module.weight
    if weight.ndim != 1 or not weight.is_floating_point():
        return False
    if len(inspect.signature(module.forward).parameters) > 1:  # it has a gate
        return False
    # A plan has no weights to compare by.
    if weight.is_meta:
        return True
    states = torch.linspace(-3, 5, 2 * len(weight), device=weight.device, dtype=weight.dtype)
    states = states.view(2, -1)
    allowed = tolerance(weight.dtype, narrow=2e-2, wide=1e-5)
    return torch.allclose(module(states), _rms_norm(module, states), rtol=allowed, atol=allowed)


def _gpu_attention(*heads: Any, **more: Any) -> tuple[torch.Tensor, None]:
    with sdpa_kernel(BACKENDS_WITHOUT_PLANS):
        return sdpa_attention_forward(*heads, **more)


def _cpu_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; heads have the shape (rows, heads, tokens, width)."""
    packing = current_packing()
    if packing is None:
        return _attend_rows(module, query, key, value, attention_mask, **more)
    return packing.attend(_attend_rows, module, query, key, value, attention_mask, **more)


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
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    has_all_masks = attention_mask is not None or not causal
    if has_all_masks and more.get("position_bias") is None and _matmul_is_faster(query, key, value):
        return _attend_by_matmul(query, key, value, attention_mask, dropout, scaling), None
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


def _matmul_is_faster(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether plain matrix products beat the fused kernel: short rows in bfloat16 on a CPU."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return False
    if key.shape[2] > MAX_MATMUL_TOKENS:
        return False
    has_backward = query.requires_grad or key.requires_grad or value.requires_grad
    return has_backward or not _fused_forward_is_faster()


def _attend_by_matmul(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention by two matrix products; the result has the shape (rows, tokens, heads, width)."""
    rows, heads, _, width = query.shape
    groups = heads // key.shape[1]  # query heads that read the same keys, one behind another
    scaled = query * (width**-0.5 if scaling is None else scaling)
    scaled = scaled.reshape(rows, heads // groups, -1, width)
    scores = torch.matmul(scaled, key.transpose(2, 3))
    if attention_mask is not None:
        mask = attention_mask
        if groups > 1 and mask.shape[1] == 1:
            mask = mask.repeat(1, 1, groups, 1)
        elif groups > 1:
            mask = mask.reshape(scores.shape)
        scores = scores.add_(mask)
    output = torch.matmul(F.dropout(scores.softmax(-1), dropout), value).view(query.shape)
    return output.transpose(1, 2).contiguous()


@functools.cache
def _fused_forward_is_faster() -> bool:
    """Whether the fused kernel's forward pass in bfloat16 is faster on this processor."""
    heads = torch.ones(4, 12, 128, 64, dtype=torch.bfloat16)
    mask = torch.zeros(4, 1, 128, 128, dtype=torch.bfloat16)

    def by_matmul() -> torch.Tensor:
        scores = torch.matmul(heads, heads.transpose(2, 3)).add_(mask)
        return torch.matmul(scores.softmax(-1), heads)

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(heads, heads, heads, mask)

    return _speed_ratio(by_matmul, fused) > MIN_FUSED_GAIN


AttentionInterface.register(GPU_ATTENTION, _gpu_attention)
AttentionMaskInterface.register(GPU_ATTENTION, sdpa_mask)
AttentionInterface.register(CPU_ATTENTION, _cpu_attention)
AttentionMaskInterface.register(CPU_ATTENTION, eager_mask)

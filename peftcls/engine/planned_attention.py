"""Attention for torch's meta device: the shapes of a fused kernel, without its computation."""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

PLANNED_ATTENTION = "peftcls_planned"


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps for its backward pass; it keeps no table of scores.

    It keeps queries, keys, values, its output, and one number for each query (Dao et al. 2022,
    "FlashAttention", section 3.1).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        rows, heads, tokens, _ = query.shape
        output = query.new_empty(rows, tokens, heads, value.shape[-1])
        sums = query.new_empty(rows, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _planned_attention(
    _: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    # Where there is a mask, keys that several heads share are copied for each of them.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    return _FusedAttention.apply(query, key, value), None


def _planned_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *args: Any,
    device: torch.device | str = "meta",
    **kwargs: Any,
) -> torch.Tensor:
    shape = (batch_size, 1, q_length, kv_length)
    return torch.empty(shape, dtype=torch.bool, device=device)


AttentionInterface.register(PLANNED_ATTENTION, _planned_attention)
AttentionMaskInterface.register(PLANNED_ATTENTION, _planned_mask)

"""Where a forward pass leaves out padding: decided batch by batch, for models that can do it."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from peftcls.engine.model_state import transformer_layers
from peftcls.engine.packing import Packing, run_packed
from peftcls.engine.probes import can_pack, can_subset_last_layer

MIN_PADDING_TOKENS = 16  # less padding is not worth the packing


def padding_free(
    inner: Any,
    mask: torch.Tensor,
    *,
    needed: torch.Tensor | None = None,
    prefix: Sequence[torch.Tensor] = (),
) -> AbstractContextManager[None]:
    """Let a model's layers see only real tokens, if it can and there is padding to leave out.

    Args:
        inner: a transformers model.
        mask: 1 for real tokens, of shape (rows, tokens).
        needed: True where the states of the last layer are used, of the same shape; the others are
            zeros if the model can compute its last layer for some tokens only.
        prefix: keys and values before every row, in a model that can pack behind a prefix.
    """
    # The mask comes last: on a GPU, to look at it is to wait for it.
    if not can_pack(inner) or not bool(mask[:, 0].all()):
        return contextlib.nullcontext()
    subset = needed is not None and can_subset_last_layer(inner)
    if not subset and not prefix:
        padding_tokens = mask.numel() - int(mask.sum())
        if padding_tokens < MIN_PADDING_TOKENS:
            return contextlib.nullcontext()
    packing = Packing(mask, needed if subset else None, prefix)
    return run_packed(transformer_layers(inner), packing, subset=subset)

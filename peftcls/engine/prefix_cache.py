"""Prefix sharing: the prompt prefix that rows have in common is computed once (KV cache)."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from peftcls.engine.sharding import gather_for_backward


class SharedPrefix:
    """The first tokens of all rows of a step: computed once, their keys and values serve every row.

    Args:
        inner: a causal language model.
        tokens: how many first tokens every row has in common.
        several: there is more than one micro-batch. The gradients of all of them are then summed in
            copies of the keys and values that are detached from the prefix's own graph, and
            `backward` goes through the prefix once, with the sums.
    """

    def __init__(self, inner: Any, tokens: int, *, several: bool) -> None:
        self.inner = inner
        self.tokens = tokens
        self.several = several
        self._computed: list[torch.Tensor] = []
        self._handed_out: list[torch.Tensor] = []

    def keys_and_values(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of the prefix, of one row, two for each layer, computed at first use.

        Args:
            ids: token ids of a micro-batch, of shape (rows, tokens); the prefix is read from row 0.
        """
        if not self._computed:
            cache = DynamicCache()
            self.inner.base_model(
                input_ids=ids[:1, : self.tokens], past_key_values=cache, use_cache=True
            )
            self._computed = tensors_of(cache)
            gather_for_backward(self.inner.base_model, self._computed)
            self._handed_out = self._computed
            if self.several:
                self._handed_out = [
                    tensor.detach().requires_grad_(tensor.requires_grad)
                    for tensor in self._computed
                ]
        return self._handed_out

    def cache(self, ids: torch.Tensor) -> DynamicCache:
        """A KV cache that holds the prefix for every row of a micro-batch."""
        expanded = [tensor.expand(len(ids), -1, -1, -1) for tensor in self.keys_and_values(ids)]
        return fill_cache(DynamicCache(), expanded)

    def backward(self) -> None:
        """Back-propagate the micro-batches' gradients through the prefix, once."""
        reached = [
            (computed, handed_out.grad)
            for computed, handed_out in zip(self._computed, self._handed_out, strict=True)
            if handed_out.grad is not None
        ]
        if reached:
            torch.autograd.backward(
                [computed for computed, _ in reached], [gradient for _, gradient in reached]
            )


class PrefixLengthCache(DynamicCache):
    """A KV cache that only tells a model how many tokens were read before.

    The keys and values themselves are put before every row where attention sees rows; see
    `Packing`.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep nothing, and hand back the layer's own keys and values."""
        return key_states, value_states


def tensors_of(cache: DynamicCache) -> list[torch.Tensor]:
    """Keys and values of a cache, two tensors for each layer."""
    layers: list[Any] = cache.layers
    tensors = []
    for layer in layers:
        tensors += [layer.keys, layer.values]
    return tensors


def fill_cache(cache: DynamicCache, tensors: Sequence[torch.Tensor]) -> DynamicCache:
    """Put keys and values, two tensors for each layer, into an empty cache. Returns the cache."""
    for layer in range(len(tensors) // 2):
        DynamicCache.update(cache, tensors[2 * layer], tensors[2 * layer + 1], layer)
    return cache

"""Logits of a causal language model for rows of prompts, with their common prefix computed once."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from peftcls.engine.kernels import call_tokens
from peftcls.engine.model_state import state_of, unwrapped
from peftcls.engine.padding_free import padding_free
from peftcls.engine.precision import in_float32
from peftcls.engine.prefix_cache import PrefixLengthCache, SharedPrefix, fill_cache
from peftcls.engine.probes import can_pack_behind_prefix, can_share_prefix


@contextlib.contextmanager
def shared_prefix(model: torch.nn.Module, tokens: int) -> Iterator[None]:
    """Compute the first tokens of all micro-batches once, with one backward pass at the end.

    Args:
        model: a causal language model that can share a prefix.
        tokens: how many first tokens all rows have in common; 0 where nothing is shared.
    """
    if tokens == 0:
        yield
        return
    state = state_of(model)
    prefix = SharedPrefix(unwrapped(model), tokens, several=True)
    state.prefix = prefix
    try:
        yield
        prefix.backward()
    finally:
        state.prefix = None


class Prompts:
    """Prompts whose common prefix is computed once, and answers that are scored after them.

    The keys and values of the prefix are computed for one row and handed to all, so autograd sums
    their gradients; loss and gradient are those of computing every row from its first token.

    Args:
        model: a causal language model, with or without an adapter.
        ids: token ids of shape (rows, tokens), padded on either side.
        mask: 1 for real tokens, of the same shape.
        keep: hold the keys and values of all tokens, to continue from them.
    """

    def __init__(
        self, model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, keep: bool = False
    ) -> None:
        self.model = model
        self.keep = keep
        self._order = mask.argsort(dim=1, descending=True, stable=True)  # padding goes to the right
        self.ids = ids.gather(1, self._order)
        self.mask = mask.gather(1, self._order)
        self.cache: DynamicCache | None = None

    def logits(self, marks: torch.Tensor) -> torch.Tensor:
        """Logits of shape (marked positions, vocabulary), in float32 or wider, row by row.

        Args:
            marks: True, of shape (rows, tokens), at the positions to use; each predicts the token
                after it. Or the positions themselves, of shape (rows, positions), where the shape
                of the logits must be known beforehand: all rows are then computed from their first
                token, and what belongs to a position of -1 means nothing.
        """
        if marks.dtype != torch.bool:
            return self._logits_at(marks)
        marks = marks.gather(1, self._order)
        prefix = self._prefix(marks)
        first = 0
        keys_and_values: Sequence[torch.Tensor] = ()
        if prefix is not None:
            first = prefix.tokens
            keys_and_values = prefix.keys_and_values(self.ids)
        self._make_cache(prefix, keys_and_values)
        inputs: dict[str, Any] = {"use_cache": self.cache is not None}
        if self.cache is not None:
            positions = torch.arange(first, self.ids.shape[1], device=self.ids.device)
            inputs["position_ids"] = positions.expand(len(self.ids), -1)
        with self._packed(first, marks, keys_and_values):
            output = self.model(
                input_ids=self.ids[:, first:],
                attention_mask=self.mask,
                past_key_values=self.cache,
                logits_to_keep=marks[:, first:],
                **inputs,
            )
        return in_float32(output.logits)

    def _logits_at(self, positions: torch.Tensor) -> torch.Tensor:
        moved = self._order.argsort(dim=1).gather(1, positions.clamp(min=0))
        output = self.model(
            input_ids=self.ids, attention_mask=self.mask, logits_to_keep=moved, use_cache=False
        )
        return in_float32(output.logits).flatten(0, 1)

    def _prefix(self, marks: torch.Tensor) -> SharedPrefix | None:
        """The prefix of the present step, or one of this micro-batch's own where that pays."""
        state = state_of(self.model)
        # Processes that hold a base in shares may not share a prefix some and others not.
        if state.prefix is not None or state.shares or not can_share_prefix(self.model):
            return state.prefix
        common = _common_prefix_tokens(self.ids, self.mask, marks)
        tokens = _worth_sharing(len(self.ids), common, self.ids.device)
        if not tokens:
            return None
        return SharedPrefix(unwrapped(self.model), tokens, several=False)

    def _make_cache(
        self, prefix: SharedPrefix | None, keys_and_values: Sequence[torch.Tensor]
    ) -> None:
        if prefix is None:
            if self.keep and can_share_prefix(self.model):
                self.cache = DynamicCache()
        elif not self.keep and can_pack_behind_prefix(self.model):
            self.cache = fill_cache(PrefixLengthCache(), keys_and_values)
        else:
            self.cache = prefix.cache(self.ids)

    def _packed(
        self, first: int, marks: torch.Tensor, keys_and_values: Sequence[torch.Tensor]
    ) -> contextlib.AbstractContextManager[None]:
        """Without padding, unless the KV cache must hold every row's keys and values."""
        if self.cache is not None and not isinstance(self.cache, PrefixLengthCache):
            return contextlib.nullcontext()
        return padding_free(
            unwrapped(self.model),
            self.mask[:, first:],
            needed=marks[:, first:],
            prefix=keys_and_values,
        )

    def continue_with(self, run: Sequence[int], depths: Iterable[int]) -> torch.Tensor:
        """Logits after further tokens, the same for every row: of shape (rows, depths, vocabulary).

        Args:
            run: tokens that follow each row's last one.
            depths: after how many of them logits are wanted, from 1 on.
        """
        rows = len(self.ids)
        device = self.ids.device
        wanted_depths = set(depths)
        wanted = torch.tensor([i + 1 in wanted_depths for i in range(len(run))], device=device)
        new = torch.tensor(run, device=device).expand(rows, -1)
        marks = wanted.expand(rows, -1)
        positions = self.mask.sum(1, keepdim=True) + torch.arange(len(run), device=device)
        if self.cache is None:
            output = self._whole_again(new, positions, marks)
        else:
            output = self.model(
                input_ids=new,
                attention_mask=torch.cat([self.mask, torch.ones_like(new)], dim=1),
                position_ids=positions,
                past_key_values=self.cache,
                logits_to_keep=marks,
                use_cache=True,
            )
            self.cache.crop(-len(run))
        return in_float32(output.logits).view(rows, int(wanted.sum()), -1)

    def _whole_again(self, new: torch.Tensor, positions: torch.Tensor, marks: torch.Tensor) -> Any:
        """The whole prompts, the new tokens right behind each row's last one."""
        extra = new.shape[1]
        mask = F.pad(self.mask, (0, extra)).scatter(1, positions, 1)
        return self.model(
            input_ids=F.pad(self.ids, (0, extra)).scatter(1, positions, new),
            attention_mask=mask,
            logits_to_keep=torch.zeros_like(mask, dtype=torch.bool).scatter(1, positions, marks),
            use_cache=False,
        )


def common_tokens(model: torch.nn.Module, rows: Sequence[tuple[Sequence[int], int]]) -> int:
    """How many first tokens all rows share, if the model can share them and it pays; else 0.

    Args:
        model: the one that will compute the rows.
        rows: their token ids, and the first position of each whose logits are wanted.
    """
    if not can_share_prefix(model):
        return 0
    first_ids, shared = rows[0]
    for ids, wanted_from in rows[1:]:
        shared = min(shared, wanted_from)
        differing = (i for i in range(shared) if first_ids[i] != ids[i])
        shared = next(differing, shared)
    return _worth_sharing(len(rows), shared, next(model.parameters()).device)


def _worth_sharing(rows: int, shared: int, device: torch.device) -> int:
    """The shared tokens, or 0 where they save less than the additional call of the body costs."""
    saved_tokens = (rows - 1) * shared
    if saved_tokens > call_tokens(device) / 2:
        return shared
    return 0


def _common_prefix_tokens(ids: torch.Tensor, mask: torch.Tensor, marks: torch.Tensor) -> int:
    """How many first tokens are common to all rows and lie before every marked position."""
    same = ((ids == ids[:1]) & mask.bool() & ~marks).all(0)
    return int(same.long().cumprod(0).sum())

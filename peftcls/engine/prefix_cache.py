"""One reading of what rows begin with: the instruction is computed once a step, with its gradient, or once a micro-batch."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from peftcls.engine.frozen_cache import TRUNK
from peftcls.engine.head_logits import unwrapped, widened
from peftcls.engine.kernels import call_tokens
from peftcls.engine.packing import at_rest, can_pack, checkpoints, packed

PROBE_TOKENS = 8
SHARES, PACKS_BEHIND, OPENING = "shares_prefix", "packs_behind_prefix", "opening"


class Opening:
    """What all rows of a step begin with, read once: its keys and values stand in for it in every micro-batch.

    Args:
        inner: a causal language model.
        tokens: how many first tokens every row has in common.
        several: there is more than one micro-batch. Their gradients are then added up in copies of the keys and values that are
            cut off from what made them, and `go_back` goes through the opening once, with their sum.
    """

    def __init__(self, inner: Any, tokens: int, *, several: bool) -> None:
        self.inner, self.tokens, self.several = inner, tokens, several
        self.made: list[torch.Tensor] = []
        self.copies: list[torch.Tensor] = []

    def read(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of the opening, of one row, for each layer; the first call computes them."""
        if not self.made:
            read = DynamicCache()
            self.inner.base_model(
                input_ids=ids[:1, : self.tokens], past_key_values=read, use_cache=True
            )
            self.made = _tensors(read)
            self.copies = [
                tensor.detach().requires_grad_(tensor.requires_grad) if self.several else tensor
                for tensor in self.made
            ]
        return self.copies

    def cache(self, ids: torch.Tensor) -> DynamicCache:
        """The keys and values of the opening for every row of a micro-batch."""
        return _filled(
            DynamicCache(), [tensor.expand(len(ids), -1, -1, -1) for tensor in self.read(ids)]
        )

    def go_back(self) -> None:
        """Add what the micro-batches' gradients say about the opening to the gradients of what made it."""
        reached = [
            (made, copy.grad)
            for made, copy in zip(self.made, self.copies, strict=True)
            if copy.grad is not None
        ]
        if reached:
            torch.autograd.backward([made for made, _ in reached], [grad for _, grad in reached])


class _BeforeRows(DynamicCache):
    """Tells a model how much has been read; the keys and values themselves are put before every row where attention sees rows."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def _tensors(cache: DynamicCache) -> list[torch.Tensor]:
    layers: list[Any] = cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def _filled(cache: DynamicCache, tensors: Sequence[torch.Tensor]) -> DynamicCache:
    for layer in range(len(tensors) // 2):
        DynamicCache.update(cache, tensors[2 * layer], tensors[2 * layer + 1], layer)
    return cache


@contextlib.contextmanager
def opening(model: torch.nn.Module, tokens: int) -> Iterator[None]:
    """Within it every micro-batch begins with the same tokens, which are read once; at its end the way back goes through them."""
    inner = unwrapped(model)
    if tokens == 0:
        yield
        return
    vars(inner)[OPENING] = own = Opening(inner, tokens, several=True)
    try:
        yield
        own.go_back()
    finally:
        del vars(inner)[OPENING]


class Prompts:
    """Rows whose common first tokens are read once; a closed set of answers can then be read on from them.

    The keys and values of the common tokens are computed for one row and handed to all, so their gradients are summed
    on the way back; the loss and its gradient are those of reading every row from its first token.

    Args:
        model: a causal language model, with or without an adapter.
        ids: token ids of shape (rows, tokens), padded on either side.
        mask: 1 for real tokens, of the same shape.
        keep: hold the keys and values, to read on from them.
    """

    def __init__(
        self, model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, keep: bool = False
    ) -> None:
        self.order = mask.argsort(dim=1, descending=True, stable=True)  # padding goes to the right
        self.model, self.ids, self.mask, self.keep = (
            model,
            ids.gather(1, self.order),
            mask.gather(1, self.order),
            keep,
        )
        self.cache: DynamicCache | None = None

    def logits(self, marks: torch.Tensor) -> torch.Tensor:
        """Logits of shape (marked places, vocabulary), in float32 or wider, row by row.

        Args:
            marks: True, of shape (rows, tokens), for the places to read; each predicts the token after it. Or the places
                themselves, of shape (rows, places), where the logits' shape must be known beforehand; all rows are then read
                from their first token, and what stands for a place of -1 means nothing.
        """
        if marks.dtype != torch.bool:
            places = self.order.argsort(dim=1).gather(1, marks.clamp(min=0))
            read = self.model(
                input_ids=self.ids, attention_mask=self.mask, logits_to_keep=places, use_cache=False
            )
            return widened(read.logits).flatten(0, 1)
        ids, marks, inner = self.ids, marks.gather(1, self.order), unwrapped(self.model)
        sharing, own = can_share(self.model), vars(inner).get(OPENING)
        if (
            own is None
            and sharing
            and (shared := _worth(len(ids), _shared_tokens(ids, self.mask, marks), ids.device))
        ):
            own = Opening(inner, shared, several=False)
        first, before = (0, ()) if own is None else (own.tokens, own.read(self.ids))
        if own is not None:
            self.cache = (
                _filled(_BeforeRows(), before)
                if not self.keep and can_pack_behind(inner)
                else own.cache(self.ids)
            )
        elif self.keep and sharing:
            self.cache = DynamicCache()
        positions = (
            {}
            if self.cache is None
            else {
                "position_ids": torch.arange(
                    first, self.ids.shape[1], device=self.ids.device
                ).expand(len(self.ids), -1)
            }
        )
        packing = packed(inner, self.mask[:, first:], reads=marks[:, first:], opening=before)
        with (
            packing
            if self.cache is None or isinstance(self.cache, _BeforeRows)
            else contextlib.nullcontext()
        ):
            found = self.model(
                input_ids=self.ids[:, first:],
                attention_mask=self.mask,
                past_key_values=self.cache,
                logits_to_keep=marks[:, first:],
                use_cache=self.cache is not None,
                **positions,
            )
        return widened(found.logits)

    def read_on(self, run: Sequence[int], depths: Iterable[int]) -> torch.Tensor:
        """Logits after further tokens, the same for every row: of shape (rows, places, vocabulary).

        Args:
            run: tokens that follow each row's last.
            depths: after how many of them to read, from 1 on.
        """
        rows, wanted = (
            len(self.ids),
            torch.tensor(
                [place + 1 in set(depths) for place in range(len(run))], device=self.ids.device
            ),
        )
        new = torch.tensor(run, device=self.ids.device).expand(rows, -1)
        marks = wanted.expand(rows, -1)
        if self.cache is None:  # the whole prompt again, each row's run right behind it
            ends = self.mask.sum(1, keepdim=True) + torch.arange(len(run), device=self.ids.device)
            room = torch.nn.functional.pad(self.ids, (0, len(run)))
            ids, mask = (
                room.scatter(1, ends, new),
                torch.nn.functional.pad(self.mask, (0, len(run))).scatter(1, ends, 1),
            )
            places = torch.zeros_like(mask, dtype=torch.bool).scatter(1, ends, marks)
            found = self.model(
                input_ids=ids, attention_mask=mask, logits_to_keep=places, use_cache=False
            ).logits
        else:
            ends = self.mask.sum(1, keepdim=True) + torch.arange(len(run), device=self.ids.device)
            mask = torch.cat([self.mask, torch.ones_like(new)], dim=1)
            found = self.model(
                input_ids=new,
                attention_mask=mask,
                position_ids=ends,
                past_key_values=self.cache,
                logits_to_keep=marks,
                use_cache=True,
            ).logits
            self.cache.crop(-len(run))
        return widened(found).view(rows, int(wanted.sum()), -1)


def common_tokens(model: torch.nn.Module, rows: Sequence[tuple[Sequence[int], int]]) -> int:
    """How many first tokens all rows have in common, if a model can read them once and it is worth it; 0 otherwise.

    Args:
        model: the one that will read the rows.
        rows: their token ids, and the first place of each whose logits are wanted.
    """
    if not can_share(model):
        return 0
    (first, shared), *others = rows
    for ids, read in others:
        shared = min(shared, read)
        shared = next((place for place in range(shared) if first[place] != ids[place]), shared)
    return _worth(len(rows), shared, next(model.parameters()).device)


def _worth(rows: int, shared: int, device: torch.device) -> int:
    return (
        shared if (rows - 1) * shared > call_tokens(device) / 2 else 0
    )  # to read it alone is one call more, of the body


def _shared_tokens(ids: torch.Tensor, mask: torch.Tensor, marks: torch.Tensor) -> int:
    """How many first tokens are common to all rows and lie before every place that is read."""
    same = ((ids == ids[:1]) & mask.bool() & ~marks).all(0)
    return int(same.long().cumprod(0).sum())


def can_share(model: torch.nn.Module) -> bool:
    """Whether a model gives the same logits when it reads on from keys and values: asked once, of the model itself."""
    inner = unwrapped(model)
    if TRUNK in vars(inner) or checkpoints(inner):  # or it keeps nothing
        return False
    if SHARES not in vars(inner):
        vars(inner)[SHARES] = _reads_on_alike(inner)
    return bool(vars(inner)[SHARES])


def can_pack_behind(inner: Any) -> bool:
    """Whether a model that shares a beginning can do so without padding behind it: asked once, of the model itself."""
    if not (can_pack(inner) and can_share(inner)):
        return False
    if PACKS_BEHIND not in vars(inner):
        vars(inner)[PACKS_BEHIND] = _reads_on_alike(inner, packs=True)
    return bool(vars(inner)[PACKS_BEHIND])


@torch.no_grad()
def _reads_on_alike(inner: Any, *, packs: bool = False) -> bool:
    backbone = inner.base_model
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return False
    parameter = next(p for p in inner.parameters() if p.is_floating_point())
    half = PROBE_TOKENS // 2
    ids = (
        torch.arange(11, 11 + PROBE_TOKENS, device=parameter.device)
        .remainder(inner.config.get_text_config().vocab_size)
        .repeat(2, 1)
    )
    ids[1, half:] = ids[1, half:].flip(0)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    cache = DynamicCache()
    try:
        with at_rest(inner):
            plain = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            backbone(input_ids=ids[:1, :half], past_key_values=cache, use_cache=True)
            if not all(
                type(layer) is DynamicLayer for layer in cache.layers
            ):  # windows, and states that cannot be handed on
                return False
            before = _tensors(cache)
            places = torch.arange(half, PROBE_TOKENS, device=ids.device).expand(2, -1)
            packing = (
                packed(inner, mask[:, half:], opening=before, asked=True)
                if packs
                else contextlib.nullcontext()
            )
            read = (
                _filled(_BeforeRows(), before)
                if packs
                else _filled(DynamicCache(), [t.expand(2, -1, -1, -1) for t in before])
            )
            with packing:
                on = backbone(
                    input_ids=ids[:, half:],
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=read,
                    use_cache=True,
                ).last_hidden_state
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    near = 0.1 if parameter.dtype in (torch.bfloat16, torch.float16) else 1e-3
    difference = float((plain[:, half:] - on)[mask[:, half:].bool()].abs().max())
    return difference <= near * float(plain.abs().max())

"""One reading of what the rows of a micro-batch begin with: the instruction is computed once, with its gradient."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from peftcls.pooling import unwrapped, widened
from peftcls.trunk import TRUNK

WORTH_TOKENS = 32  # what a second call of the model costs, as a number of tokens
PROBE_TOKENS = 8
SHARES = "shares_prefix"


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

    def __init__(self, model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, keep: bool = False) -> None:
        self.order = mask.argsort(dim=1, descending=True, stable=True)  # padding goes to the right
        self.model, self.ids, self.mask, self.keep = model, ids.gather(1, self.order), mask.gather(1, self.order), keep
        self.cache: DynamicCache | None = None

    def logits(self, marks: torch.Tensor) -> torch.Tensor:
        """Logits of shape (marked places, vocabulary), in float32 or wider, row by row.

        Args:
            marks: True, of shape (rows, tokens), for the places to read; each predicts the token after it.
        """
        sharing, marks = can_share(self.model), marks.gather(1, self.order)
        shared = _shared_tokens(self.ids, self.mask, marks) if sharing else 0
        if (len(self.ids) - 1) * shared <= WORTH_TOKENS:
            shared = 0
        if not shared and not (self.keep and sharing):
            found = self.model(input_ids=self.ids, attention_mask=self.mask, logits_to_keep=marks, use_cache=False)
            return widened(found.logits)
        self.cache = DynamicCache()
        if shared:
            unwrapped(self.model).base_model(input_ids=self.ids[:1, :shared], past_key_values=self.cache, use_cache=True)
            self.cache.batch_repeat_interleave(len(self.ids))
        places = torch.arange(shared, self.ids.shape[1], device=self.ids.device).expand(len(self.ids), -1)
        found = self.model(input_ids=self.ids[:, shared:], attention_mask=self.mask, position_ids=places, past_key_values=self.cache,
                           logits_to_keep=marks[:, shared:], use_cache=True)
        return widened(found.logits)

    def read_on(self, run: Sequence[int], depths: Iterable[int]) -> torch.Tensor:
        """Logits after further tokens, the same for every row: of shape (rows, places, vocabulary).

        Args:
            run: tokens that follow each row's last.
            depths: after how many of them to read, from 1 on.
        """
        rows, wanted = len(self.ids), torch.tensor([place + 1 in set(depths) for place in range(len(run))], device=self.ids.device)
        new = torch.tensor(run, device=self.ids.device).expand(rows, -1)
        marks = wanted.expand(rows, -1)
        if self.cache is None:  # the whole prompt again, each row's run right behind it
            ends = self.mask.sum(1, keepdim=True) + torch.arange(len(run), device=self.ids.device)
            room = torch.nn.functional.pad(self.ids, (0, len(run)))
            ids, mask = room.scatter(1, ends, new), torch.nn.functional.pad(self.mask, (0, len(run))).scatter(1, ends, 1)
            places = torch.zeros_like(mask, dtype=torch.bool).scatter(1, ends, marks)
            found = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=places, use_cache=False).logits
        else:
            ends = self.mask.sum(1, keepdim=True) + torch.arange(len(run), device=self.ids.device)
            mask = torch.cat([self.mask, torch.ones_like(new)], dim=1)
            found = self.model(input_ids=new, attention_mask=mask, position_ids=ends, past_key_values=self.cache, logits_to_keep=marks,
                               use_cache=True).logits
            self.cache.crop(-len(run))
        return widened(found).view(rows, int(wanted.sum()), -1)


def common_tokens(rows: Iterable[Sequence[int]]) -> int:
    """How many first tokens all rows have in common."""
    first, *others = rows
    shared = len(first)
    for other in others:
        shared = min(shared, len(other))
        shared = next((place for place in range(shared) if first[place] != other[place]), shared)
    return shared


def _shared_tokens(ids: torch.Tensor, mask: torch.Tensor, marks: torch.Tensor) -> int:
    """How many first tokens are common to all rows and lie before every place that is read."""
    same = ((ids == ids[:1]) & mask.bool() & ~marks).all(0)
    return int(same.long().cumprod(0).sum())


def can_share(model: torch.nn.Module) -> bool:
    """Whether a model gives the same logits when it reads on from keys and values: asked once, of the model itself."""
    inner = unwrapped(model)
    if TRUNK in vars(inner) or any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):  # or it keeps nothing
        return False
    if SHARES not in vars(inner):
        vars(inner)[SHARES] = _reads_on_alike(inner)
    return bool(vars(inner)[SHARES])


@torch.no_grad()
def _reads_on_alike(inner: Any) -> bool:
    backbone, training = inner.base_model, [module for module in inner.modules() if module.training]
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return False
    parameter = next(p for p in inner.parameters() if p.is_floating_point())
    half = PROBE_TOKENS // 2
    ids = torch.arange(11, 11 + PROBE_TOKENS, device=parameter.device).remainder(inner.config.get_text_config().vocab_size).repeat(2, 1)
    ids[1, half:] = ids[1, half:].flip(0)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    cache = DynamicCache()
    inner.eval()  # dropout would make a difference of its own
    try:
        plain = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        backbone(input_ids=ids[:1, :half], past_key_values=cache, use_cache=True)
        if not all(type(layer) is DynamicLayer for layer in cache.layers):  # windows, and states that cannot be handed on
            return False
        cache.batch_repeat_interleave(2)
        places = torch.arange(half, PROBE_TOKENS, device=ids.device).expand(2, -1)
        on = backbone(input_ids=ids[:, half:], attention_mask=mask, position_ids=places, past_key_values=cache,
                      use_cache=True).last_hidden_state
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        for module in training:
            module.training = True
    near = 0.1 if parameter.dtype in (torch.bfloat16, torch.float16) else 1e-3
    difference = float((plain[:, half:] - on)[mask[:, half:].bool()].abs().max())
    return difference <= near * float(plain.abs().max())

"""Batches in a handful of shapes: what is done with one of them can be recorded once, and replayed for all that have its shape."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from peftcls.engine.batch import Batch
from peftcls.engine.bin_packing import rounded

WIDTH_STEP, NARROW, PLACES_STEP = 64, 256, 4
TOKEN_LEVEL = (
    "attention_mask",
    "token_type_ids",
    "supervised",
    "starts",
    "ends",
    "allowed",
    "null",
)  # filled with zeros


def in_fixed_shape(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The same rows in one of a few widths, the places that are supervised as numbers: no shape depends on what a row says.

    Args:
        batch: as a task collates it, on the processor, where to look at it costs nothing.
        tokenizer: says what padding is, and on which side it stands; a model with fewer positions is given fewer tokens.
    """
    width = batch["attention_mask"].shape[1]
    more = min(fixed_width(width), tokenizer.model_max_length) - width
    sides = (0, max(more, 0)) if tokenizer.padding_side == "right" else (max(more, 0), 0)
    fills = {"input_ids": int(tokenizer.pad_token_id), **dict.fromkeys(TOKEN_LEVEL, 0)}
    fixed = {
        name: F.pad(tensor, sides, value=fills[name]) if name in fills else tensor
        for name, tensor in batch.items()
    }
    if "supervised" in fixed:
        fixed["supervised"] = marked_places(fixed["supervised"])
    return fixed


def fixed_width(tokens: int) -> int:
    """The next width that is a multiple of 64, or beyond 256 a power of two or three quarters of one."""
    if tokens <= NARROW:
        return rounded(tokens, WIDTH_STEP)
    power: int = 1 << (tokens - 1).bit_length()
    return power * 3 // 4 if tokens <= power * 3 // 4 else power


def marked_places(marks: torch.Tensor) -> torch.Tensor:
    """The places of each row that are True in marks of shape (rows, tokens): (rows, places), -1 where a row has fewer."""
    counts = marks.sum(1, keepdim=True)
    most = min(rounded(int(counts.max()), PLACES_STEP), marks.shape[1])
    places = marks.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return places.masked_fill(torch.arange(most) >= counts, -1)

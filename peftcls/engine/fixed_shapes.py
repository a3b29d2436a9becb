"""Fixed shapes: batches padded to a handful of widths, as CUDA graphs need them."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from peftcls.engine.batch import Batch
from peftcls.engine.bin_packing import round_up

WIDTH_STEP = 64
NARROW_TOKENS = 256  # up to here widths are multiples of the step
POSITIONS_STEP = 4
ZERO_PADDED = (
    "attention_mask",
    "token_type_ids",
    "supervised",
    "starts",
    "ends",
    "allowed",
    "null",
)


def in_fixed_shape(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Pad a batch to one of a few widths, and give supervised positions as numbers.

    No shape depends on what a row says then.

    Args:
        batch: as a task collates it, on the processor, where to look at it costs nothing.
        tokenizer: says what padding is, on which side it goes, and how many positions there are.
    """
    width = batch["attention_mask"].shape[1]
    padded_width = min(fixed_width(width), tokenizer.model_max_length)
    missing = max(padded_width - width, 0)
    sides = (0, missing) if tokenizer.padding_side == "right" else (missing, 0)
    fills = {"input_ids": int(tokenizer.pad_token_id), **dict.fromkeys(ZERO_PADDED, 0)}
    fixed = dict(batch)
    for name, value in fills.items():
        if name in fixed:
            fixed[name] = F.pad(fixed[name], sides, value=value)
    if "supervised" in fixed:
        fixed["supervised"] = marked_positions(fixed["supervised"])
    return fixed


def fixed_width(tokens: int) -> int:
    """The next multiple of 64, or beyond 256 the next power of two or three quarters of one."""
    if tokens <= NARROW_TOKENS:
        return round_up(tokens, WIDTH_STEP)
    power: int = 1 << (tokens - 1).bit_length()
    three_quarters = power * 3 // 4
    return three_quarters if tokens <= three_quarters else power


def marked_positions(marks: torch.Tensor) -> torch.Tensor:
    """The positions of each row that are True in marks of shape (rows, tokens).

    Returns:
        Positions of shape (rows, most of any row, rounded up); -1 where a row has fewer.
    """
    counts = marks.sum(1, keepdim=True)
    most = min(round_up(int(counts.max()), POSITIONS_STEP), marks.shape[1])
    positions = marks.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return positions.masked_fill(torch.arange(most) >= counts, -1)

"""Narrow number formats: what they are, and how far apart equal results may be in them."""

import torch

NARROW_DTYPES = (torch.bfloat16, torch.float16)


def in_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or wider: in bfloat16 a loss has steps of about 0.004."""
    if logits.dtype in NARROW_DTYPES:
        return logits.float()
    return logits


def tolerance(dtype: torch.dtype, *, narrow: float, wide: float) -> float:
    """The relative difference that rounding explains: `narrow` for 16 bits, `wide` for more."""
    if dtype in NARROW_DTYPES:
        return narrow
    return wide

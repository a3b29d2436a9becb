"""The learning rate schedule: warmup, then linear or cosine decay, or a constant rate."""

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_factor(step: int, steps: int, *, warmup: float, schedule: Schedule) -> float:
    """The share of the peak learning rate at one optimizer step.

    The rate rises linearly over the first `warmup` share of the steps. Then it falls to zero,
    linearly or along half a cosine (Loshchilov and Hutter 2017, "SGDR", equation 5), or stays.

    Args:
        step: of the optimizer, counted from 0.
        steps: of the whole run.
        warmup: the share of the steps over which the rate rises.
        schedule: what follows the warmup.
    """
    warmup_steps = max(1, round(warmup * steps)) if warmup else 0
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))

"""The learning rate as a function of the step."""

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_factor(step: int, steps: int, *, warmup: float, schedule: Schedule) -> float:
    """The share of the peak learning rate at optimizer step `step` of `steps`, counted from 0.

    The rate rises linearly over the first `warmup` share of the steps; then it falls to zero linearly or along a half
    cosine (Loshchilov and Hutter 2017, "SGDR", equation 5), or stays.
    """
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    done = (step - rising) / max(1, steps - rising)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

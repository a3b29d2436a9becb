"""When steps ended and how many tokens they held; the same arithmetic for every system."""

import math
import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from experiment import Experiment


class Clock:
    """Starts when the base is loaded: tokenizing the rows is part of a training."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []
        self.tokens: list[int] = []
        """The tokens of each step without padding."""
        self.target_seconds: float | None = None

    def step_begins(self) -> None:
        """The first step begins."""
        self.ends = [time.perf_counter()]

    def step_ends(self) -> None:
        """A step has ended, and the next begins."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def judged(self, accuracy: float, target: float) -> None:
        """An evaluation on the validation rows has ended."""
        if self.target_seconds is None and accuracy >= target:
            self.target_seconds = time.perf_counter() - self.began

    def measures(self, e: Experiment) -> dict[str, Any]:
        """Rates and times of a training that ends now.

        Rows per second are tokens per second over the mean tokens of a row, so that systems that
        choose their own batches are timed over as much work as the others.
        """
        ended = time.perf_counter()
        steps = [after - before for before, after in pairwise(self.ends)]
        tokens = self.tokens[: len(steps)]
        tokens_per_row = sum(tokens) / (e.rows * e.epochs)
        steady = steps[e.warm_steps :]
        # Packing may need fewer steps than are left out.
        if not steady:
            steady = steps
        per_second = sum(tokens[len(steps) - len(steady) :]) / sum(steady)
        ascending = sorted(steady)
        found = {
            "rows_per_second": per_second / tokens_per_row,
            "tokens_per_second": per_second,
            "tokens_per_row": tokens_per_row,
            "steps": len(steady),
            "median_step_seconds": statistics.median(steady),
            "p90_step_seconds": ascending[math.ceil(0.9 * len(steady)) - 1],
            "prepare_seconds": self.ends[0] - self.began,
            "train_seconds": self.ends[-1] - self.ends[0],
            "rows_per_second_in_all": e.rows * e.epochs / (ended - self.began),
        }
        if e.target is not None:
            found["target_seconds"] = self.target_seconds
        return found

"""When steps ended and how many tokens they held, and what follows from it; the same arithmetic for every system."""

import math
import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from experiment import Experiment


class Clock:
    """Begins when the base is loaded: reading rows into tokens is part of a training."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []
        self.tokens: list[int] = []
        """Of each step, padding not counted."""
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

        A row is worth the tokens that a row has on average, so that systems that choose their own batches are timed over
        as much work as the others.
        """
        ended = time.perf_counter()
        steps = [after - before for before, after in pairwise(self.ends)]
        steady, tokens = sorted(steps[e.warm_steps :]), self.tokens[: len(steps)]
        per_row, seconds = sum(tokens) / (e.rows * e.epochs), sum(steady)
        if not steady:  # packed into fewer steps than are left out
            steady, seconds = sorted(steps), sum(steps)
        per_second = sum(tokens[len(steps) - len(steady) :]) / seconds
        return {
            "rows_per_second": per_second / per_row,
            "tokens_per_second": per_second,
            "tokens_per_row": per_row,
            "steps": len(steady),
            "median_step_seconds": statistics.median(steady),
            "p90_step_seconds": steady[math.ceil(0.9 * len(steady)) - 1],
            "prepare_seconds": self.ends[0] - self.began,
            "train_seconds": self.ends[-1] - self.ends[0],
            "rows_per_second_in_all": e.rows * e.epochs / (ended - self.began),
            **({} if e.target is None else {"target_seconds": self.target_seconds}),
        }

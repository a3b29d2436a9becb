"""What one process computes of a step, and what became of it."""

import dataclasses
import signal
from collections.abc import Sequence
from typing import Self

import numpy as np

from peftcls.tasks.base import Feature


@dataclasses.dataclass(frozen=True)
class StepStatus:
    """What became of a step: of one process's rows, or, summed over all processes, of all rows.

    Args:
        loss: the sum of the rows' losses over the step's weight.
        out_of_memory: memory ran out; there is no gradient.
        at_one_row: memory ran out with one row at a time.
        failed: the rows could not be computed; there is no gradient.
        terminated: SIGTERM was received.
        interrupted: SIGINT was received.
    """

    loss: float
    out_of_memory: bool = False
    at_one_row: bool = False
    failed: bool = False
    terminated: bool = False
    interrupted: bool = False

    @property
    def signal_number(self) -> int:
        """The number of the signal that was received; 0 for none."""
        if self.terminated:
            return signal.SIGTERM
        if self.interrupted:
            return signal.SIGINT
        return 0

    def to_floats(self) -> list[float]:
        """The fields as numbers, which travel between processes together with the gradients."""
        return [float(value) for value in dataclasses.astuple(self)]

    @classmethod
    def from_floats(cls, sums: Sequence[float]) -> Self:
        """The status of all processes, from the sums of what `to_floats` gave in each.

        A flag is set where it is set in any process.
        """
        loss, *flags = sums
        return cls(loss, *(bool(flag) for flag in flags))


@dataclasses.dataclass(frozen=True)
class StepShare:
    """The rows of a step that one process computes.

    Args:
        step: from 0.
        rows: their indices; a row that was drawn twice is there twice.
        features: of these rows, by index.
        lengths: tokens of every row of the table, by index.
        step_weight: the sum of the weights of all rows of the step, in all processes.
        spare: a row that is computed without effect while processes that hold a base in shares
            with this one have more to compute; None where each holds the whole.
    """

    step: int
    rows: list[int]
    features: dict[int, Feature]
    lengths: np.ndarray
    step_weight: float
    spare: Feature | None

    @property
    def padded_tokens(self) -> int:
        """The tokens of all rows, each as long as the longest."""
        return len(self.rows) * int(self.lengths[self.rows].max(initial=0))

"""The order of training rows: which rows each process reads in each step.

All functions are pure: the same arguments give the same rows, on any machine and after any restart.
"""

import functools
from collections.abc import Sequence

import numpy as np

from peftcls.engine.batching import Lengths


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """The number of optimizer steps in an epoch; the last one may have fewer rows than others."""
    return -(-rows // batch_size)


def rows_before(rows: int, batch_size: int, step: int) -> int:
    """How many rows have been read before a step."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(rows, batch_size))
    return epoch * rows + step_in_epoch * batch_size


def step_rows(
    rows: int,
    batch_size: int,
    seed: int,
    step: int,
    strata: Sequence[int] | np.ndarray | None = None,
) -> list[int]:
    """The indices of the rows of one optimizer step, on any number of processes.

    The order of an epoch depends only on (seed, epoch), so a run can be resumed at any step without
    replaying the steps before it.

    Args:
        rows: of the training table.
        batch_size: rows of a step, over all processes.
        seed: of the order.
        step: from 0.
        strata: the stratum of each row. An epoch then reads as many rows of each stratum; without
            it, an epoch reads every row once.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(rows, batch_size))
    strata_bytes = None
    if strata is not None:
        strata_bytes = np.asarray(strata, dtype=np.int64).tobytes()
    order = _epoch_order(rows, seed, epoch, strata_bytes)
    first = step_in_epoch * batch_size
    return order[first : first + batch_size].tolist()


# The next step is nearly always one of the same epoch.
@functools.lru_cache(maxsize=2)
def _epoch_order(rows: int, seed: int, epoch: int, strata: bytes | None) -> np.ndarray:
    random = np.random.default_rng((seed, epoch))
    if strata is None:
        return random.permutation(rows)
    return random.permutation(_balanced(np.frombuffer(strata, dtype=np.int64), random))


def _balanced(strata: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw as many indices as there are rows, each stratum equally often.

    Within a stratum, too, rows are drawn as equally often as the numbers allow.
    """
    kinds = np.unique(strata)
    quotas = np.full(len(kinds), len(strata) // len(kinds))
    remainder = len(strata) % len(kinds)
    quotas[random.permutation(len(kinds))[:remainder]] += 1
    drawn = []
    for kind, quota in zip(kinds, quotas, strict=True):
        members = np.flatnonzero(strata == kind)
        times, rest = divmod(quota, len(members))
        drawn += [members] * times
        drawn.append(random.choice(members, rest, replace=False))
    return np.concatenate(drawn)


def share(indices: Sequence[int], lengths: Lengths, process: int, processes: int) -> list[int]:
    """The rows of one process in a step; all processes get about the same number of tokens.

    Rows are dealt out from the longest to the shortest, in turns that change direction: to process
    0, 1, 2, then 2, 1, 0, and so on.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    rows = []
    for position, index in enumerate(ordered):
        turn, place_in_turn = divmod(position, processes)
        receiver = place_in_turn
        if turn % 2 == 1:
            receiver = processes - 1 - place_in_turn
        if receiver == process:
            rows.append(index)
    return rows

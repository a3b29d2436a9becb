"""Which rows each process sees, in which micro-batches, in each step: pure functions of their arguments."""

import functools
from collections.abc import Sequence

import numpy as np

from peftcls.engine.batching import Lengths


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """The number of optimizer steps in an epoch; the last one may hold fewer rows than `batch_size`."""
    return -(-rows // batch_size)


def rows_before(rows: int, batch_size: int, step: int) -> int:
    """How many rows have been seen before a step."""
    epoch, place = divmod(step, steps_per_epoch(rows, batch_size))
    return epoch * rows + place * batch_size


def step_rows(
    rows: int,
    batch_size: int,
    seed: int,
    step: int,
    strata: Sequence[int] | np.ndarray | None = None,
) -> list[int]:
    """The indices of the rows of one optimizer step, whatever the number of processes.

    Each epoch's order depends on (seed, epoch) alone, so a run can be taken up at any step without replaying the ones
    before it. It is a permutation of all rows, or with `strata`, the stratum of each row, as many rows of each.
    """
    epoch, place = divmod(step, steps_per_epoch(rows, batch_size))
    order = _order(
        rows, seed, epoch, None if strata is None else np.asarray(strata, dtype=np.int64).tobytes()
    )
    return order[place * batch_size : (place + 1) * batch_size].tolist()


@functools.lru_cache(maxsize=2)  # the next step's order is nearly always this one's
def _order(rows: int, seed: int, epoch: int, strata: bytes | None) -> np.ndarray:
    random = np.random.default_rng((seed, epoch))
    return random.permutation(
        rows if strata is None else _balanced(np.frombuffer(strata, dtype=np.int64), random)
    )


def _balanced(strata: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As many indices as there are rows, each stratum equally often, its rows as equally often as numbers allow."""
    kinds = np.unique(strata)
    quotas = np.full(len(kinds), len(strata) // len(kinds))
    quotas[random.permutation(len(kinds))[: len(strata) % len(kinds)]] += 1
    drawn = []
    for kind, quota in zip(kinds, quotas, strict=True):
        own = np.flatnonzero(strata == kind)
        drawn += [own] * (quota // len(own)) + [random.choice(own, quota % len(own), replace=False)]
    return np.concatenate(drawn)


def share(indices: Sequence[int], lengths: Lengths, process: int, processes: int) -> list[int]:
    """The rows of one process: dealt out in order of length, back and forth, so that all have about the same tokens."""
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    return [
        index
        for turn, index in enumerate(ordered)
        if (turn % processes if turn // processes % 2 == 0 else processes - 1 - turn % processes)
        == process
    ]

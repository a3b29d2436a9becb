"""Which rows each process sees, in which micro-batches, in each step: pure functions of their arguments."""

import functools
from collections.abc import Sequence

import numpy as np

MicroBatch = list[int]
Lengths = Sequence[int] | np.ndarray


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """The number of optimizer steps in an epoch; the last one may hold fewer rows than `batch_size`."""
    return -(-rows // batch_size)


def rows_before(rows: int, batch_size: int, step: int) -> int:
    """How many rows have been seen before a step."""
    epoch, place = divmod(step, steps_per_epoch(rows, batch_size))
    return epoch * rows + place * batch_size


def step_rows(rows: int, batch_size: int, seed: int, step: int, strata: Sequence[int] | np.ndarray | None = None) -> list[int]:
    """The indices of the rows of one optimizer step, whatever the number of processes.

    Each epoch's order depends on (seed, epoch) alone, so a run can be taken up at any step without replaying the ones
    before it. It is a permutation of all rows, or with `strata`, the stratum of each row, as many rows of each.
    """
    epoch, place = divmod(step, steps_per_epoch(rows, batch_size))
    order = _order(rows, seed, epoch, None if strata is None else np.asarray(strata, dtype=np.int64).tobytes())
    return order[place * batch_size : (place + 1) * batch_size].tolist()


@functools.lru_cache(maxsize=2)  # the next step's order is nearly always this one's
def _order(rows: int, seed: int, epoch: int, strata: bytes | None) -> np.ndarray:
    random = np.random.default_rng((seed, epoch))
    return random.permutation(rows if strata is None else _balanced(np.frombuffer(strata, dtype=np.int64), random))


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


def micro_batches(indices: Sequence[int], lengths: Lengths, *, rows: int | None = None, tokens: int | None = None,
                  shared: int = 0, call_tokens: int = 64, packed: bool = False) -> list[MicroBatch]:
    """Cut rows into micro-batches of similar length, longest first, at the least cost there is.

    The cost is that of all tokens, padding included, and of the calls themselves; of all ways to cut the rows in order of
    length the cheapest is found by dynamic programming. So padding goes without a batch being chosen by its lengths.

    Args:
        indices: the rows to cut.
        lengths: tokens of every row of the table; looked up by index.
        rows: at most this many rows in a micro-batch.
        tokens: at most this many tokens in a micro-batch, with the padding that is computed; a longer row gets a micro-batch of its own.
        shared: the first tokens of every row that a call reads once for all its rows.
        call_tokens: what a call of the model costs beyond its tokens, as a number of tokens.
        packed: the model leaves padding out, so that it counts nothing; but its masks have a place for it, so no more than
            half of a micro-batch may be padding.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    widths = np.array([lengths[i] for i in ordered], dtype=np.int64) - shared
    before, room = np.concatenate([[0], widths.cumsum()]), (tokens or 0) * (2 if packed else 1)
    costs, firsts = np.zeros(len(ordered) + 1), np.zeros(len(ordered) + 1, dtype=np.int64)  # of the rows up to here; of its last batch
    for end in range(1, len(ordered) + 1):
        most = min(end, rows or end, end if tokens is None else max(room // max(int(widths[end - 1]), 1), 1))
        starts = np.arange(end - most, end)
        padded = widths[starts] * (end - starts)
        computed = before[end] - before[starts] if packed else padded
        whole = costs[starts] + computed + shared + call_tokens
        if tokens is not None:
            whole[:-1][(computed[:-1] > tokens) | (padded[:-1] > room)] = np.inf
        firsts[end] = starts[whole.argmin()]
        costs[end] = whole.min()
    batches: list[MicroBatch] = []
    end = len(ordered)
    while end:
        batches.append(ordered[firsts[end] : end])
        end = int(firsts[end])
    return batches[::-1]


def share(indices: Sequence[int], lengths: Lengths, process: int, processes: int) -> list[int]:
    """The rows of one process: dealt out in order of length, back and forth, so that all have about the same tokens."""
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    return [index for turn, index in enumerate(ordered)
            if (turn % processes if turn // processes % 2 == 0 else processes - 1 - turn % processes) == process]

"""Cutting rows into micro-batches at the least cost, padding and calls counted."""

from collections.abc import Sequence

import numpy as np

MicroBatch = list[int]


Lengths = Sequence[int] | np.ndarray


def micro_batches(
    indices: Sequence[int],
    lengths: Lengths,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    shared: int = 0,
    call_tokens: int = 64,
    packed: bool = False,
) -> list[MicroBatch]:
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
    costs, firsts = (
        np.zeros(len(ordered) + 1),
        np.zeros(len(ordered) + 1, dtype=np.int64),
    )  # of the rows up to here; of its last batch
    for end in range(1, len(ordered) + 1):
        most = min(
            end,
            rows or end,
            end if tokens is None else max(room // max(int(widths[end - 1]), 1), 1),
        )
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

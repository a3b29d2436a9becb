"""Cutting rows into micro-batches at the least cost, with padding and calls counted."""

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

    The cost is that of all tokens, padding included, and of the calls themselves. Of all ways to
    cut the rows, sorted by length, the cheapest is found by dynamic programming.

    Args:
        indices: the rows to cut.
        lengths: tokens of every row of the table; looked up by index.
        rows: at most this many rows in a micro-batch.
        tokens: at most this many tokens in a micro-batch, with the padding that is computed; a
            longer row gets a micro-batch of its own.
        shared: the first tokens of every row, which a call computes once for all its rows.
        call_tokens: what a call of the model costs beyond its tokens, as a number of tokens.
        packed: the model leaves padding out, so that it costs nothing. Its masks have room for it,
            so no more than half of a micro-batch may be padding.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    widths = np.array([lengths[i] for i in ordered], dtype=np.int64) - shared
    total_before = np.concatenate([[0], widths.cumsum()])
    room = (tokens or 0) * (2 if packed else 1)
    # Of the first `end` rows: the least cost, and where their last micro-batch begins.
    costs = np.zeros(len(ordered) + 1)
    firsts = np.zeros(len(ordered) + 1, dtype=np.int64)
    for end in range(1, len(ordered) + 1):
        fitting = end if tokens is None else max(room // max(int(widths[end - 1]), 1), 1)
        most = min(end, rows or end, fitting)
        starts = np.arange(end - most, end)
        padded = widths[starts] * (end - starts)
        computed = total_before[end] - total_before[starts] if packed else padded
        cost = costs[starts] + computed + shared + call_tokens
        if tokens is not None:
            too_large = (computed[:-1] > tokens) | (padded[:-1] > room)
            cost[:-1][too_large] = np.inf
        firsts[end] = starts[cost.argmin()]
        costs[end] = cost.min()
    batches: list[MicroBatch] = []
    end = len(ordered)
    while end:
        batches.append(ordered[firsts[end] : end])
        end = int(firsts[end])
    return batches[::-1]

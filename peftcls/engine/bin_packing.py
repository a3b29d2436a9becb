"""Bin packing: several short sequences share a bin; bins have a few fixed widths."""

import bisect
from collections.abc import Sequence

import numpy as np

from peftcls.engine.batching import micro_batches

GROUP_TOKENS = 48  # what another width of bins costs in attention, as a number of tokens
WIDTH_STEP = 32
MIN_WIDTHS = (64, 96, 128)  # of these the one is taken that leaves the fewest slots empty
WIDE = 1000  # at this width, attention costs as much as all else


def round_up(number: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-number // step) * step


def fill_bins(lengths: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Put sequences into bins, the longest first, each into the fullest bin that has room for it.

    The width of a bin is a multiple of a step, and bins of about the same width are made equal. So
    a model meets the same few shapes again and again, for which matrix products have been prepared.

    Args:
        lengths: tokens of each row.

    Returns:
        For each width the row of the token in each slot and that token's position in its row, as
        `BinGroup` holds them.
    """
    layouts = [
        _fill(lengths, least)
        for least in MIN_WIDTHS
        if least == MIN_WIDTHS[0] or least < sum(lengths)
    ]
    bins, widths = min(layouts, key=_cost)
    groups = []
    for members in micro_batches(range(len(bins)), widths, call_tokens=GROUP_TOKENS):
        rows = np.full((len(members), widths[members[0]]), -1)
        positions = np.zeros_like(rows)
        for line, member in enumerate(members):
            row_lengths = [lengths[row] for row in bins[member]]
            filled = sum(row_lengths)
            rows[line, :filled] = np.repeat(bins[member], row_lengths)
            positions[line, :filled] = np.concatenate([np.arange(n) for n in row_lengths])
        groups.append((rows, positions))
    return groups


def _cost(layout: tuple[list[list[int]], list[int]]) -> int:
    """What attention and all else cost for bins of these widths, in units of `WIDE` tokens."""
    _, widths = layout
    return sum(width * (WIDE + width) for width in widths)


def _fill(lengths: Sequence[int], least: int) -> tuple[list[list[int]], list[int]]:
    """The rows of each bin and its width, where none is narrower than `least`."""
    bins: list[list[int]] = []
    widths: list[int] = []
    free: list[tuple[int, int]] = []  # (free slots, bin), in ascending order
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[row], -1))
        if at == len(free):
            width = round_up(max(lengths[row], min(least, sum(lengths))), WIDTH_STEP)
            room, number = width, len(bins)
            widths.append(width)
            bins.append([])
        else:
            room, number = free.pop(at)
        bins[number].append(row)
        if room > lengths[row]:
            bisect.insort(free, (room - lengths[row], number))
    return bins, widths

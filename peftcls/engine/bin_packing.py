"""Where the tokens of a batch's rows stand when padding is left out: a few rows side by side in each of some bins of few widths."""

import bisect
from collections.abc import Sequence

import numpy as np

from peftcls.engine.batching import micro_batches

GROUP_TOKENS = 48  # what another width of bins costs in attention, as a number of tokens
WIDTH_STEP = 32
LEAST_WIDTHS = (64, 96, 128)  # of which the one is taken that leaves the fewest slots empty
WIDE = 1000  # at this width, attention costs as much as all else


def rounded(number: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-number // step) * step


def fill_bins(lengths: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows put into bins, the longest first, each into the fullest bin that has room for it.

    Every bin is some steps wide, and bins of about the same width are made alike. So a model is given the same few shapes all the
    time, for which its products have been prepared, however long the rows are.

    Returns:
        For each width the rows whose tokens stand in the bins' slots, and their places in their rows, as `Group` holds them.
    """
    found = [
        _filled(lengths, least)
        for least in LEAST_WIDTHS
        if least == LEAST_WIDTHS[0] or least < sum(lengths)
    ]
    bins, widths = min(found, key=lambda way: sum(width * (WIDE + width) for width in way[1]))
    groups = []
    for members in micro_batches(range(len(bins)), widths, call_tokens=GROUP_TOKENS):
        rows = np.full((len(members), widths[members[0]]), -1)
        spots = np.zeros_like(rows)
        for line, member in enumerate(members):
            own = [lengths[row] for row in bins[member]]
            rows[line, : sum(own)] = np.repeat(bins[member], own)
            spots[line, : sum(own)] = np.concatenate([np.arange(tokens) for tokens in own])
        groups.append((rows, spots))
    return groups


def _filled(lengths: Sequence[int], least: int) -> tuple[list[list[int]], list[int]]:
    """The rows of each bin and its width, where none is narrower than the least."""
    bins, rooms, widths = list[list[int]](), list[tuple[int, int]](), list[int]()
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(rooms, (lengths[row], -1))
        if at == len(rooms):
            widths.append(rounded(max(lengths[row], min(least, sum(lengths))), WIDTH_STEP))
            room, number = widths[-1], len(bins)
            bins.append([])
        else:
            room, number = rooms.pop(at)
        bins[number].append(row)
        if room > lengths[row]:
            bisect.insort(rooms, (room - lengths[row], number))
    return bins, widths

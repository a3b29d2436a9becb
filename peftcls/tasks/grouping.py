"""Group-wise splits: groups of rows that stay on one side, spread evenly over the sides."""

from collections import Counter
from collections.abc import Hashable, Sequence

import datasets
import numpy as np

from peftcls.data.column_names import find_column
from peftcls.data.reading import RowError, source_name
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers

MAX_SHOWN_ROWS = 5


def group_values(rows: datasets.Dataset, column: str) -> list[str]:
    """The value of each row in the column that says what belongs together, such as a customer.

    Args:
        rows: the table.
        column: its name.

    Raises:
        RowError: there is no such column, or a row has no value in it.
    """
    name = find_column(rows, column)
    values = ["" if value is None else str(value).strip() for value in each_cell(rows, name)]
    empty = [number for number, value in zip(row_numbers(rows), values, strict=True) if not value]
    if empty:
        listed = ", ".join(map(str, empty[:MAX_SHOWN_ROWS]))
        more = f" and {len(empty) - MAX_SHOWN_ROWS} more" if len(empty) > MAX_SHOWN_ROWS else ""
        raise RowError(
            f"{source_name(rows)} has nothing in column {name!r} in row {listed}{more}, expected "
            "what the row belongs to; fill it in, or leave the rows out."
        )
    return values


def connected_groups(*keys: Sequence[Hashable]) -> list[int]:
    """Number the groups of rows that share a key, directly or by way of other rows.

    Args:
        keys: of each row, once for every kind of key; two rows of one group share one at least.

    Returns:
        The number of each row's group, in the order of their first rows.
    """
    rows = len(keys[0])
    parents = list(range(rows))

    def root_of(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for kind in keys:
        first_row: dict[Hashable, int] = {}
        for row, key in enumerate(kind):
            first = root_of(first_row.setdefault(key, row))
            second = root_of(row)
            # The earlier row stands for the group.
            parents[max(first, second)] = min(first, second)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root_of(row), len(numbers)) for row in range(rows)]


def spread_groups(
    groups: Sequence[int], strata: Sequence[int], shares: Sequence[float], *, seed: int
) -> list[int]:
    """Divide rows into parts, each group as a whole, with every stratum's share in each part.

    The largest groups come first. Each goes to the part that it brings nearest to its share of rows
    and strata, in the sense of a chi-squared test; so the shares hold as well as groups allow.

    Args:
        groups: the group of each row.
        strata: the stratum of each row, such as its label.
        shares: of the rows that each part should have; they sum to 1.
        seed: of the order of groups with as many rows.

    Returns:
        The part of each row, from 0.
    """
    sizes = _GroupSizes(groups, strata)
    placed = [Counter[int]() for _ in shares]
    part_of: dict[int, int] = {}
    for group in sizes.largest_first(seed):
        costs = [
            sizes.cost(group, counts, share) for counts, share in zip(placed, shares, strict=True)
        ]
        part = int(np.argmin(costs))
        part_of[group] = part
        placed[part].update(sizes.counts[group])
    return [part_of[group] for group in groups]


def put_groups_aside(
    groups: Sequence[int], strata: Sequence[int], share: float, *, seed: int
) -> list[int]:
    """Choose groups that make up about a share of the rows; each stratum keeps a group.

    Args:
        groups: the group of each row.
        strata: the stratum of each row.
        share: of the rows and of each stratum.
        seed: of the choice.

    Returns:
        The indices of the chosen rows; empty where no group can be spared.
    """
    sizes = _GroupSizes(groups, strata)
    parts = spread_groups(groups, strata, [1 - share, share], seed=seed)
    aside = dict.fromkeys(group for group, part in zip(groups, parts, strict=True) if part)
    kept = Counter(sizes.totals)
    chosen = []
    for group in aside:
        if sizes.can_spare(group, kept):
            chosen.append(group)
            kept.subtract(sizes.counts[group])
    if not chosen:
        # All groups are larger than the share: the smallest one is the nearest.
        for group in reversed(sizes.largest_first(seed)):
            if sizes.can_spare(group, kept):
                chosen = [group]
                break
    return [row for row, group in enumerate(groups) if group in set(chosen)]


ALL_ROWS = -1
"""Stands for a stratum that every row belongs to."""


class _GroupSizes:
    """How many rows of each stratum, and in all, every group has."""

    def __init__(self, groups: Sequence[int], strata: Sequence[int]) -> None:
        self.counts: dict[int, Counter[int]] = {}
        for group, stratum in zip(groups, strata, strict=True):
            self.counts.setdefault(group, Counter()).update((stratum, ALL_ROWS))
        self.totals: Counter[int] = Counter()
        for counts in self.counts.values():
            self.totals.update(counts)

    def largest_first(self, seed: int) -> list[int]:
        """The groups, those with as many rows in random order."""
        names = list(self.counts)
        order = np.random.default_rng(seed).permutation(len(names)).tolist()
        return sorted(
            (names[place] for place in order), key=lambda group: -self.counts[group][ALL_ROWS]
        )

    def cost(self, group: int, placed: Counter[int], share: float) -> float:
        """How much a group moves a part away from its shares; negative where it brings it nearer.

        Args:
            group: that is to go there.
            placed: the rows of each stratum that the part has.
            share: of all rows that it should have.
        """
        cost = 0.0
        for stratum, count in self.counts[group].items():
            wanted = share * self.totals[stratum]
            cost += count * (2 * (placed[stratum] - wanted) + count) / wanted
        return cost

    def can_spare(self, group: int, kept: Counter[int]) -> bool:
        """Whether other groups among those that are kept have rows of each of a group's strata."""
        return all(kept[stratum] > count for stratum, count in self.counts[group].items())

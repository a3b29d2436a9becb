"""Check groups of rows, such as those of a customer, which no split and no fold parts."""

from collections import Counter
from collections.abc import Iterator, Mapping

import datasets

from peftcls.data.column_names import find_column, has_column
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers
from peftcls.quality.findings import Finding, count_of
from peftcls.quality.scan import RowSample
from peftcls.tasks.base import Task
from peftcls.tasks.labels import is_blank
from peftcls.tasks.splitting import row_groups, stratum_of_rows

# With fewer, 15 % of the rows are the rows of one group, or none.
MIN_GROUPS = 10
TRAIN = "train"
OVERLAP = "group-overlap"
FEW = "few-groups"


def missing_groups(tables: Mapping[str, datasets.Dataset], group: str | None) -> Iterator[Finding]:
    """Find rows of which it is not known what they belong to.

    Args:
        tables: of rows, by the name of their split; a column is needed in the training rows only.
        group: the column that says what a row belongs to; None where nothing does.

    Raises:
        RowError: the training rows have no such column.
    """
    if group is None:
        return
    for split, rows in tables.items():
        if split != TRAIN and not has_column(rows, group):
            continue
        name = find_column(rows, group)
        missing = RowSample()
        for number, value in zip(row_numbers(rows), each_cell(rows, name), strict=True):
            if is_blank(value):
                missing.add(number)
        if missing.count:
            yield missing.finding(
                "error",
                "no-group",
                f"column {name!r} has nothing in it, expected what the row belongs to; fill it in, "
                "or leave the rows out.",
                split,
            )


def group_findings(task: Task, rows: datasets.Dataset, group: str | None) -> Iterator[Finding]:
    """Find too few groups for a score, and labels that only one group has.

    Args:
        task: that has learnt from the rows.
        rows: to train on, without an error.
        group: the column that says what a row belongs to; None where nothing does.
    """
    if group is None:
        return
    groups = row_groups(task, rows, group)
    sizes = Counter(groups)
    if len(sizes) < MIN_GROUPS:
        _, largest = sizes.most_common(1)[0]
        yield Finding(
            "warning",
            FEW,
            f"the rows are {count_of(len(sizes), 'group')} by column {group!r} and by text, "
            f"expected at least {MIN_GROUPS}; the largest has {largest} of "
            f"{count_of(len(rows), 'row')}. A score on one or two groups says little about new "
            "groups. Give rows of more groups.",
            TRAIN,
        )
    if not task.labels or len(sizes) == 1:
        return
    numbers = row_numbers(rows)
    samples: dict[int, tuple[set[int], RowSample]] = {}
    for number, label, own in zip(numbers, stratum_of_rows(task, rows), groups, strict=True):
        members, sample = samples.setdefault(label, (set(), RowSample()))
        members.add(own)
        sample.add(number)
    for members, sample in samples.values():
        if len(members) > 1:
            continue
        row = rows[list(numbers).index(sample.rows[0])]
        yield sample.finding(
            "warning",
            "one-group-label",
            f"only one group has rows with the label {', '.join(task.gold_of(row))!r}, so no split "
            "has them on both sides: no score can say how well it is learnt. Give such rows of "
            "other groups.",
            TRAIN,
        )

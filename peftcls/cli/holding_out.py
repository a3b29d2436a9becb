"""How rows are put aside for validation and the test, and what groups of rows ask of it."""

from collections.abc import Mapping

import datasets

from peftcls.data.column_names import has_column
from peftcls.data.reading import RowError
from peftcls.tasks.base import Task
from peftcls.tasks.grouping import group_values
from peftcls.tasks.splitting import split_off

# The share of all rows that is put aside for validation, and for the test.
HELD_OUT_SHARE = 0.15
# More would take long to answer, and all of their answers are in memory together.
MAX_HELD_OUT_ROWS = 100_000
TRAINING_FILE = "FILE"
"""What messages call the argument with the training rows."""


def check_split(
    task: Task,
    rows: datasets.Dataset,
    valid: datasets.Dataset | None,
    test: datasets.Dataset | None,
    *,
    group: str,
    seed: int = 0,
) -> None:
    """Split rows as `split_rows` does, and forget them.

    Args:
        task: that has learnt from the rows.
        rows: of FILE, without an error.
        valid: the rows of --valid, if there are any.
        test: those of --test.
        group: the column whose values keep rows together.
        seed: of the choice.

    Raises:
        RowError: there are too few groups to put some aside.
    """
    share = min(HELD_OUT_SHARE, MAX_HELD_OUT_ROWS / len(rows))
    valid_share = share
    if test is None:
        rows, _ = split_off(task, rows, share, name="test", seed=seed, group=group)
        valid_share = share / (1 - share)
    if valid is None:
        split_off(task, rows, valid_share, name="valid", seed=seed, group=group)


def check_groups_apart(group: str, tables: Mapping[str, datasets.Dataset]) -> None:
    """Raise RowError where two tables have rows of one group.

    A file that has no such column is left out: nothing is known of its rows.
    """
    tables_of: dict[str, str] = {}
    for option, rows in tables.items():
        if option != TRAINING_FILE and not has_column(rows, group):
            continue
        for value in sorted(set(group_values(rows, group))):
            other = tables_of.setdefault(value, option)
            if other != option:
                raise RowError(
                    f"rows with {value!r} in column {group!r} are in {other} and in {option}, "
                    "expected each group in one of them; take them out of one, or leave out "
                    f"{option}, whose rows are then taken from FILE."
                )

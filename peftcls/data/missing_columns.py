"""Columns that a table lacks, and those that may be meant."""

import difflib
from collections.abc import Iterable, Sequence

import datasets

from peftcls.data.reading import source_name
from peftcls.data.text_lengths import text_lengths
from peftcls.errors import MissingColumnsError

LOOKED_AT = 100
"""Rows whose texts are measured."""


def require_columns(rows: datasets.Dataset, columns: Iterable[str], reader: str) -> None:
    """Raise a RowError that names the missing columns.

    Args:
        rows: the table.
        columns: that it must have.
        reader: what needs the columns, for the message.
    """
    columns = list(columns)
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise MissingColumnsError(
            source_name(rows),
            missing,
            found=rows.column_names,
            needed=columns,
            reader=reader,
            probably_meant=_probably_meant(rows, missing, columns),
        )


def _probably_meant(
    rows: datasets.Dataset, missing: Sequence[str], needed: Sequence[str]
) -> list[tuple[str, str]]:
    """For each missing column one that may be it: of a similar name, or else the longest texts."""
    first = rows.select(range(min(LOOKED_AT, len(rows))))
    lengths = text_lengths(first, [name for name in rows.column_names if name not in needed])
    left = sorted(lengths, key=lambda name: lengths[name])
    meant = []
    for name in missing:
        if not left:
            break
        similar = difflib.get_close_matches(name, left, 1)
        meant.append((name, similar[0] if similar else left[-1]))
        left.remove(meant[-1][1])
    return meant

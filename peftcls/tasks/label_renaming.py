"""Give the labels of a table other names, for example "spam" for 1."""

import logging
from collections.abc import Mapping
from typing import Any

import datasets

from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import as_dataset, source_name
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import number_rows, row_numbers
from peftcls.data.tables import Rows
from peftcls.errors import RowError
from peftcls.tasks.labels import is_blank, label_name
from peftcls.tasks.list_cells import listed_cell

logger = logging.getLogger("peftcls")

NEW_COLUMN = "__labels_with_names"
MAX_SHOWN_LABELS = 10
SHOWN_ROWS = 100


class NoSuchLabelsError(RowError):
    """No row has one of the labels that are to be renamed."""


def with_label_names(
    rows: Rows, column: str, names: Mapping[Any, str], *, separator: str | None = None
) -> datasets.Dataset:
    """A table whose labels have other names, for example "spam" for 1.

    Args:
        rows: a table with its labels as they are.
        column: of the labels; each cell is one, a list of them, or a mapping of labels to shares.
        names: from a label to its name, {0: "ham", 1: "spam"}. A label that is not among them
            stays.
        separator: between several labels in a text, such as ";"; None where a text is one label.

    Raises:
        RowError: there is no such column, or no row has one of these labels.
    """
    table = as_dataset(rows)
    require_columns(table, [column], "with_label_names")
    new_names = {label_name(label): name for label, name in names.items()}
    found: set[str] = set()

    def named(cell: Any) -> Any:
        if isinstance(cell, list):
            return [named(entry) for entry in cell]
        if isinstance(cell, Mapping):
            return {named(label): share for label, share in cell.items()}
        if cell is None:
            return None
        label = label_name(cell)
        if label not in new_names:
            return label
        found.add(label)
        return new_names[label]

    cells = []
    for cell in each_cell(table, column):
        # A cell that nobody has filled in is no empty list.
        if separator is not None and not isinstance(cell, Mapping):
            cell = None if is_blank(cell) else listed_cell(cell, separator)
        cells.append(named(cell))
    if not found:
        raise NoSuchLabelsError(
            f"{source_name(table)} has none of the labels {sorted(new_names)} in column "
            f"{column!r}; it has {_shown_labels(table, column)}."
        )
    unused = sorted(set(new_names) - found)
    if unused:
        logger.warning(
            f"{source_name(table)} has no row with the labels {unused} in column {column!r}, which "
            f"were to be renamed; it has {_shown_labels(table, column)}."
        )
    renamed = table.add_column(NEW_COLUMN, cells).remove_columns(column)
    renamed = renamed.rename_column(NEW_COLUMN, column)
    renamed.info.description = table.info.description
    return number_rows(renamed, row_numbers(table))


def _shown_labels(table: datasets.Dataset, column: str) -> list[str]:
    return sorted({str(cell) for cell in table[column][:SHOWN_ROWS]})[:MAX_SHOWN_LABELS]

"""X of an estimator: texts, or pairs of texts, in lists, arrays, columns and data frames."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from scipy import sparse

from peftcls.data.reading import Row

COLUMNS = {1: ("text",), 2: ("sentence1", "sentence2")}
"""The columns of a text or a pair, where X has no names for them."""
EXPECTED = (
    "expected texts (a list, an array or a column of them) or pairs of texts (a table with two "
    "columns)"
)
NUMBERS = "biufcmM"
"""The kinds of numpy's types that hold numbers, truth values and times."""
MAX_SHOWN_CHARACTERS = 80


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of X.

    Args:
        cells: one or two texts for each row.
        names: of the columns of X, where it has some.
        is_frame: X is a data frame.
    """

    cells: list[tuple[str, ...]]
    names: tuple[str, ...] | None = None
    is_frame: bool = False

    @property
    def width(self) -> int:
        """How many texts a row has: 1, or 2 for pairs."""
        return len(self.cells[0])

    def columns_beside(self, *others: str) -> tuple[str, ...]:
        """Names for the columns of a table that has these other columns too."""
        if self.names is None or not set(others).isdisjoint(self.names):
            return COLUMNS[self.width]
        return self.names

    def rows(self, columns: Sequence[str]) -> list[Row]:
        """The texts as rows with these columns."""
        return [dict(zip(columns, cells, strict=True)) for cells in self.cells]


def read_texts(texts: Any) -> Texts:
    """Read X.

    Args:
        texts: texts in a list, a one-dimensional array or a column of a data frame; or texts or
            pairs of them as rows of a list, a two-dimensional array or a data frame.

    Raises:
        ValueError: it is something else, such as a matrix of numbers, or has no rows.
    """
    if sparse.issparse(texts):
        raise ValueError(
            f"X is a sparse matrix, {EXPECTED}; the estimator makes its own features of texts, so "
            "leave out what vectorizes them."
        )
    if isinstance(texts, str | bytes | Mapping | Set) or not isinstance(texts, Iterable):
        raise ValueError(f"X is {_shown(texts)}, {EXPECTED}.")
    listed = _listed(texts)
    if not listed:
        raise ValueError("X has no rows (0 sample(s)); a minimum of 1 is required.")
    cells = [_cells(row) for row in listed]
    _check_widths(cells)
    _check_texts(cells)
    as_texts = [tuple(str(text) for text in row) for row in cells]
    names = _column_names(texts, width=len(cells[0]))
    return Texts(as_texts, names, is_frame=hasattr(texts, "columns"))


def check_same_columns(texts: Texts, names: Sequence[str] | None, width: int) -> None:
    """Raise ValueError where X has other columns than the X that was fitted.

    Args:
        texts: of X.
        names: of the columns of the data frame that was fitted; None where it was none.
        width: how many texts a row of it had.
    """
    if texts.width != width:
        kinds = {1: "texts", 2: "pairs of texts"}
        raise ValueError(
            f"X has {kinds[texts.width]}, but the estimator was fitted on {kinds[width]}."
        )
    if names is not None and texts.is_frame and tuple(names) != texts.names:
        raise ValueError(
            f"X has the columns {list(texts.names or ())}, but the estimator was fitted on "
            f"{list(names)}; give these, in this order."
        )


def _listed(texts: Any) -> list[Any]:
    """The rows of X. Raises ValueError for numbers, and for more than two dimensions."""
    if not hasattr(texts, "__array__"):
        return list(texts)
    array = np.asarray(texts)
    if array.dtype.kind in NUMBERS and array.size:
        raise ValueError(f"X holds numbers (shape {array.shape}, type {array.dtype}), {EXPECTED}.")
    if array.ndim not in (1, 2):
        raise ValueError(f"X has {array.ndim} dimensions, {EXPECTED}.")
    return list(array)


def _cells(row: Any) -> tuple[Any, ...]:
    if isinstance(row, list | tuple | np.ndarray):
        return tuple(row)
    return (row,)


def _check_widths(cells: Sequence[tuple[Any, ...]]) -> None:
    width = len(cells[0])
    if width not in COLUMNS:
        raise ValueError(
            f"X has {width} columns, {EXPECTED}; choose them first, such as "
            "frame[['title', 'abstract']]."
        )
    for number, row in enumerate(cells, 1):
        if len(row) != width:
            raise ValueError(
                f"row {number} of X has {len(row)} columns, row 1 has {width}; give each the same."
            )


def _check_texts(cells: Sequence[tuple[Any, ...]]) -> None:
    for number, row in enumerate(cells, 1):
        for value in row:
            if not isinstance(value, str):
                raise ValueError(
                    f"row {number} of X is {_shown(value)}, expected a text; fill it in, or leave "
                    "the row out."
                )
            if not value.strip():
                raise ValueError(
                    f"row {number} of X has an empty text; fill it in, or leave the row out."
                )


def _column_names(texts: Any, width: int) -> tuple[str, ...] | None:
    """The names of a data frame's columns, or of a column, where each has a text of its own."""
    found = getattr(texts, "columns", None)
    if found is None:
        found = [getattr(texts, "name", None)]
    names = list(found)
    if len(names) != width or len(set(names)) < width:
        return None
    return tuple(names) if all(isinstance(name, str) and name for name in names) else None


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) > MAX_SHOWN_CHARACTERS:
        text = text[: MAX_SHOWN_CHARACTERS - 3] + "..."
    return f"{text} ({type(value).__name__})"

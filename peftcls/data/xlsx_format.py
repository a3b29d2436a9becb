"""Read xlsx workbooks: the first row names the columns, and cells keep their types."""

import datetime
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftcls.data.missing_header import with_names
from peftcls.data.text_files import Row
from peftcls.errors import RowError


def read_xlsx(path: Path, sheet: str | None, columns: Sequence[str] | None) -> Iterator[Row]:
    """Read the rows of a sheet of a workbook. Dates are texts in ISO form; empty rows are skipped.

    Args:
        path: of the workbook.
        sheet: its name; the only one with cells unless given.
        columns: the names of the columns, where the first row is a row like the others.

    Raises:
        RowError: it is no workbook, has several sheets, or a row has a cell without a column.
        ValueError: openpyxl is not installed.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise ValueError(
            f"{path.name} is a workbook, and openpyxl, which reads it, is not installed: "
            "pip install 'peftcls[xlsx]', or save the table as CSV in UTF-8."
        )
    import openpyxl

    with warnings.catch_warnings():
        # Of styles and validations, which are not read.
        warnings.simplefilter("ignore")
        try:
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        # A file that is no workbook makes the library raise anything.
        except Exception as error:
            raise RowError(
                f"{path.name} is not a workbook that can be read ({type(error).__name__}: "
                f"{error}); save it again as xlsx, or as CSV in UTF-8."
            ) from None
        try:
            yield from _rows_of_sheet(_choose_sheet(book, sheet, path), path, columns)
        finally:
            book.close()


def _choose_sheet(book: Any, sheet: str | None, path: Path) -> Any:
    filled = [each for each in book.worksheets if any(map(_is_filled, each.iter_rows()))]
    names = [each.title for each in filled]
    if sheet is not None:
        for each in book.worksheets:
            if each.title == sheet:
                return each
        raise RowError(f"{path.name} has no sheet {sheet!r}; it has {names}.")
    if len(filled) == 1:
        return filled[0]
    if not filled:
        raise RowError(f"{path.name} is empty: expected a row with the names of the columns.")
    raise RowError(
        f"{path.name} has the sheets {names}; choose one, such as split={names[0]!r} (--split "
        f"{names[0]!r})."
    )


def _is_filled(cells: Sequence[Any]) -> bool:
    return any(cell.value is not None for cell in cells)


def _rows_of_sheet(sheet: Any, path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    header = list(columns) if columns else None
    for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
        values = [_plain(value) for value in cells]
        if all(value is None for value in values):
            continue
        if header is None:
            header = _header(values, path)
            continue
        extra = [value for value in values[len(header) :] if value is not None]
        if extra:
            raise RowError(
                f"row {number} of the sheet in {path.name} has {extra[0]!r} in a column without a "
                f"name; its columns are {', '.join(header)}."
            )
        values += [None] * (len(header) - len(values))
        yield dict(zip(header, values[: len(header)], strict=True))


def _header(values: list[Any], path: Path) -> list[str]:
    while values and values[-1] is None:
        values.pop()
    names = with_names(["" if value is None else str(value) for value in values])
    for name in names:
        if names.count(name) > 1:
            raise RowError(
                f"{path.name} has the column {name!r} {names.count(name)} times; name each once."
            )
    return names


def _plain(value: Any) -> Any:
    """A cell as a value of a table: a date as a text, and an empty text as no value."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    return None if value == "" else value

"""Tables as JSON in other forms than a list of objects: those that pandas writes, and columns."""

from typing import Any

from peftcls.data.text_files import Row


def rows_of_frame(content: dict[str, Any]) -> list[Row] | None:
    """The rows of a table that is one object; None where the object is none.

    Columns as lists, and what the `to_json` of pandas writes with orient="columns" (its default),
    "index" or "split".

    Args:
        content: of the file.
    """
    if "data" in content:
        return _rows_of_split(content)
    parts = list(content.values())
    if parts and all(isinstance(part, list) for part in parts):
        return _zipped(content)
    if not parts or not all(isinstance(part, dict) for part in parts):
        return None
    if any(part.keys() != parts[0].keys() for part in parts):
        return None
    if all(name.isdecimal() for name in content):
        return parts
    if all(name.isdecimal() for name in parts[0]):
        return _zipped({name: list(part.values()) for name, part in content.items()})
    return None


def _rows_of_split(content: dict[str, Any]) -> list[Row] | None:
    names, table = content.get("columns"), content["data"]
    if not isinstance(names, list) or not isinstance(table, list):
        return None
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    if not all(isinstance(row, list) and len(row) == len(names) for row in table):
        return None
    return [dict(zip(names, row, strict=True)) for row in table]


def _zipped(columns: dict[str, list[Any]]) -> list[Row] | None:
    lengths = {len(column) for column in columns.values()}
    # Lists of objects are the splits of a data set, and no columns.
    has_rows = any(isinstance(cell, dict) for column in columns.values() for cell in column)
    if len(lengths) > 1 or has_rows:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

"""Column types of a json file: one type per column, found from all of its values.

A type is written as a small Python value: None (only missing values so far), "bool", "int",
"wide" (an integer that a float cannot hold exactly), "float", "text", ("list", type of the items),
or a dict from field names to their types.
"""

from typing import Any

import datasets

ColumnType = Any

MAX_INTEGER = 2**63
# The largest integer up to which every integer is exactly equal to a float.
MAX_EXACT_FLOAT = 2**53
# No column of a table needs more levels, and libraries fail with very many.
MAX_NESTING = 32

NAMES_IN_MESSAGES = {
    "bool": "true or false",
    "int": "a number",
    "wide": "a number of more than 53 bits",
    "float": "a number",
    "text": "text",
}
DATASETS_TYPES = {
    "bool": "bool",
    "int": "int64",
    "wide": "int64",
    "float": "float64",
    "text": "string",
    None: "string",
}
COMMON_TYPES = {
    frozenset(("int", "float")): "float",
    frozenset(("int", "wide")): "wide",
}


class ColumnTypeError(ValueError):
    """Values of two types in one column, or a value that no column can hold.

    Args:
        value_type: the type of the value, in the words of a message.
        seen_type: the type of the values seen before it; None if the value cannot be stored at all.
    """

    def __init__(self, value_type: str, seen_type: str | None = None) -> None:
        super().__init__(value_type)
        self.value_type = value_type
        self.seen_type = seen_type


def merge_type(seen_type: ColumnType, value: Any, depth: int = 0) -> ColumnType:
    """Find the type that holds all values so far and one more.

    Args:
        seen_type: the type of all values so far.
        value: the next value.
        depth: how many lists or objects the value is nested in.

    Raises:
        ColumnTypeError: no type holds both.
    """
    if depth > MAX_NESTING:
        raise ColumnTypeError(f"more than {MAX_NESTING} levels of lists or objects")
    value_type = _type_of(value, seen_type, depth)
    if value_type is None:
        return seen_type
    if seen_type is None or value_type == seen_type:
        return value_type
    if isinstance(seen_type, str) and isinstance(value_type, str):
        common = COMMON_TYPES.get(frozenset((seen_type, value_type)))
        if common is not None:
            return common
    elif type(seen_type) is type(value_type):
        # A list or an object: `_type_of` has merged it with the values before it.
        return value_type
    raise ColumnTypeError(name_in_message(value_type), name_in_message(seen_type))


def _type_of(value: Any, seen_type: ColumnType, depth: int = 0) -> ColumnType:
    """Find the type of a value; a list or an object is merged with `seen_type`."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _integer_type(value)
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        check_text(value)
        return "text"
    if isinstance(value, list):
        item_type = seen_type[1] if isinstance(seen_type, tuple) else None
        for item in value:
            item_type = merge_type(item_type, item, depth + 1)
        return ("list", item_type)
    return _object_type(value, seen_type, depth)


def _integer_type(value: int) -> str:
    if not -MAX_INTEGER <= value < MAX_INTEGER:
        raise ColumnTypeError("a number of more than 64 bits")
    if -MAX_EXACT_FLOAT <= value <= MAX_EXACT_FLOAT:
        return "int"
    return "wide"


def _object_type(value: dict[str, Any], seen_type: ColumnType, depth: int) -> dict[str, ColumnType]:
    fields: dict[str, ColumnType] = dict(seen_type) if isinstance(seen_type, dict) else {}
    for name, item in value.items():
        check_text(name)
        fields[name] = merge_type(fields.get(name), item, depth + 1)
    return fields


def check_text(text: str) -> None:
    """Raise a ColumnTypeError if a text cannot be encoded in UTF-8."""
    if text.isascii():
        return
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ColumnTypeError("half of a surrogate pair, which is not a character")


def name_in_message(column_type: ColumnType) -> str:
    """Name a type in the words of a message."""
    if isinstance(column_type, tuple):
        return "a list"
    if isinstance(column_type, dict):
        return "an object"
    return NAMES_IN_MESSAGES[column_type]


def datasets_feature(column_type: ColumnType) -> Any:
    """Convert a type to a feature of the `datasets` library; a column without values is text."""
    if isinstance(column_type, tuple):
        return datasets.List(datasets_feature(column_type[1]))
    if isinstance(column_type, dict):
        return {name: datasets_feature(field) for name, field in column_type.items()}
    return datasets.Value(DATASETS_TYPES[column_type])


def convert_value(value: Any, column_type: ColumnType) -> Any:
    """Convert a value to its column's type: integers to floats, missing fields to None."""
    if value is None:
        return None
    if isinstance(column_type, tuple):
        return [convert_value(item, column_type[1]) for item in value]
    if isinstance(column_type, dict):
        return {name: convert_value(value.get(name), field) for name, field in column_type.items()}
    if column_type == "float":
        return float(value)
    return value

"""Check argument types: compare the values of settings with the annotations of their owner."""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Libraries written in other languages store integers in 64 bits.
INTEGER_LIMIT = 2**63
MAX_SHOWN_CHARACTERS = 80
TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    Path: "a path",
    type(None): "None",
}


def check_argument_types(values: Mapping[str, Any], owner: Callable[..., Any]) -> None:
    """Raise one ValueError for all settings whose type is not the annotated one.

    Names of labels may be numbers, and a tuple may be a list, as in JSON. Whether a text is one of
    the values of a `Literal` is not checked: the owner can say more about it.

    Args:
        values: settings by name.
        owner: the class or function with the annotations.
    """
    hints = _hints(owner)
    problems = []
    for name, value in values.items():
        if name not in hints or _fits(value, hints[name]):
            continue
        limit = " of less than 64 bits" if _is_large(value) else ""
        problems.append(f"{name}={_shortened(value)}: expected {_describe(hints[name])}{limit}")
    if problems:
        raise ValueError("; ".join(problems) + ".")


def check_kinds(owner: str, **arguments: tuple[Any, type, str]) -> None:
    """Raise one ValueError for all arguments that are of another kind, as in another order.

    Args:
        owner: the function or class that takes them, in their order.
        arguments: by name: what was given, the class that it should be of, and what that is called.
    """
    wrong = [
        f"{name} is {_kind_of(value)}, expected {described}"
        for name, (value, kind, described) in arguments.items()
        if not isinstance(value, kind)
    ]
    if wrong:
        raise ValueError(f"{owner}({', '.join(arguments)}): {'; '.join(wrong)}.")


def _kind_of(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


@functools.cache
def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(owner)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; other classes are not checked."""
    origin = get_origin(hint)
    parts = get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) or any(value is choice for choice in parts)
    if origin in (tuple, list, Sequence):
        return _fits_sequence(value, hint)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if hint is int:
        return _is_number(value, int)
    if hint is float:
        return _is_number(value, int | float)
    return hint not in TYPE_NAMES or isinstance(value, hint)


def _fits_sequence(value: Any, hint: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    item_type = get_args(hint)[0]
    # How many items a tuple must have is left to the owner.
    if _has_fixed_length(hint):
        return all(_fits(item, item_type) for item in value)
    for item in value:
        is_numeric_name = item_type is str and isinstance(item, int | float)
        if not is_numeric_name and not _fits(item, item_type):
            return False
    return True


def _has_fixed_length(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[-1] is not Ellipsis


def _is_number(value: Any, number_type: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, number_type) and not _is_large(value)


def _is_large(value: Any) -> bool:
    return isinstance(value, int) and not -INTEGER_LIMIT <= value < INTEGER_LIMIT


def _describe(hint: Any) -> str:
    """Describe an annotation in the words of a message."""
    origin = get_origin(hint)
    parts = get_args(hint)
    if origin in (Union, types.UnionType):
        descriptions = [_describe(part) for part in parts]
        return " or ".join(dict.fromkeys(descriptions))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (tuple, list, Sequence):
        if _has_fixed_length(hint):
            return f"{len(parts)} texts"
        return f"several, each {_describe(parts[0])}"
    if origin is Mapping:
        return "a mapping"
    if hint in TYPE_NAMES:
        return TYPE_NAMES[hint]
    return getattr(hint, "__name__", str(hint))


def _shortened(value: Any) -> str:
    text = repr(value)
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text
    return text[: MAX_SHOWN_CHARACTERS - 3] + "..."

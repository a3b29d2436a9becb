"""Settings of the wrong kind, told before they are used: what was given, and what is expected by the signature."""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MOST = 2**63  # what a library written in another language can count to
SPOKEN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    Path: "a path",
    type(None): "None",
}
LARGE = " of less than 64 bits"


def check_argument_types(values: Mapping[str, Any], owner: Callable[..., Any]) -> None:
    """Raise one ValueError for all settings whose kind is not that of the owner's annotation.

    Names of labels may be numbers, and a tuple may be a list, as JSON has it. Whether a text is one of those that are
    possible is left to the owner, who can say more about it.

    Args:
        values: settings by name.
        owner: the class or function whose annotations count.
    """
    hints = _hints(owner)
    problems = [
        f"{name}={_shown(value)}: expected {_spoken(hints[name])}{LARGE if _is_large(value) else ''}"
        for name, value in values.items()
        if name in hints and not _fits(value, hints[name])
    ]
    if problems:
        raise ValueError("; ".join(problems) + ".")


@functools.cache
def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(owner)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return isinstance(value, str) or any(value is known for known in inner)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if (
            origin is tuple and inner[-1] is not Ellipsis
        ):  # how many there are is the owner's to say
            return all(_fits(item, inner[0]) for item in value)
        return all(
            _fits(item, inner[0]) or (inner[0] is str and isinstance(item, int | float))
            for item in value
        )
    if origin is Mapping:
        return isinstance(value, Mapping)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and not _is_large(value)
    return hint not in SPOKEN or isinstance(value, hint)


def _is_large(value: Any) -> bool:
    return isinstance(value, int) and not -MOST <= value < MOST


def _spoken(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spoken(part) for part in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list, Sequence):
        return (
            f"several, each {_spoken(inner[0])}"
            if inner[-1] is Ellipsis or origin is not tuple
            else f"{len(inner)} texts"
        )
    return (
        "a mapping" if origin is Mapping else SPOKEN.get(hint, getattr(hint, "__name__", str(hint)))
    )


def _shown(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else told[:77] + "..."

"""Short descriptions of answers and tasks, for a console or a message."""

import dataclasses
from typing import Any

MAX_SHOWN_ITEMS = 10


def describe_fields(instance: Any) -> str:
    """Describe a dataclass as it is written in Python, without fields that have their default.

    Of a long list the first few items are shown.
    """
    shown = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            shown.append(f"{field.name}={_described(value)}")
    return f"{type(instance).__name__}({', '.join(shown)})"


def _described(value: Any) -> str:
    if isinstance(value, tuple | list) and len(value) > MAX_SHOWN_ITEMS:
        first = ", ".join(map(repr, value[:MAX_SHOWN_ITEMS]))
        return f"({first}, ... {len(value)} in all)"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        pairs = [f"{name!r}: {_described(each)}" for name, each in value.items()]
        if len(pairs) > MAX_SHOWN_ITEMS:
            pairs = [*pairs[:MAX_SHOWN_ITEMS], f"... {len(pairs)} in all"]
        return "{" + ", ".join(pairs) + "}"
    return repr(value)

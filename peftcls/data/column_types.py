"""The kinds of values that the columns of a json file hold, so that a table of any length gets one type a column."""

from typing import Any

import datasets

Kind = Any  # None (only gaps so far), "bool", "int", "wide", "float", "text", ("list", Kind) or {"name": Kind}
WIDEST = 2**63
DEEPEST = 32  # lists or objects within one another; no column of a table needs more, and libraries count on it
EXACT = 2**53  # beyond it a whole number is no longer a fraction's equal
SPOKEN = {
    "bool": "true or false",
    "int": "a number",
    "wide": "a number of more than 53 bits",
    "float": "a number",
    "text": "text",
}
WIDER = {frozenset(("int", "float")): "float", frozenset(("int", "wide")): "wide"}


class KindError(ValueError):
    """Two kinds of values in one place, or one that no column can hold.

    Args:
        found: the value's kind, in the words of a message.
        seen: the kind of the values before it; None where the value alone is at fault.
    """

    def __init__(self, found: str, seen: str | None = None) -> None:
        super().__init__(found)
        self.found, self.seen = found, seen


def merge_kind(seen: Kind, value: Any, depth: int = 0) -> Kind:
    """The kind that holds all values seen so far and this one, which is `depth` lists or objects deep in its cell.

    Raises:
        KindError: there is none.
    """
    if depth > DEEPEST:
        raise KindError(f"more than {DEEPEST} lists or objects within one another")
    kind = _kind(value, seen, depth)
    if seen is None or kind is None or kind == seen:
        return seen if kind is None else kind
    if (
        isinstance(seen, str)
        and isinstance(kind, str)
        and (wider := WIDER.get(frozenset((seen, kind))))
    ):
        return wider
    if type(seen) is type(kind) and not isinstance(seen, str):
        return kind  # a list or an object, already merged with what was seen
    raise KindError(spoken(kind), spoken(seen))


def _kind(value: Any, seen: Kind, depth: int = 0) -> Kind:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if not -WIDEST <= value < WIDEST:
            raise KindError("a number of more than 64 bits")
        return "int" if -EXACT <= value <= EXACT else "wide"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise KindError("half of a surrogate pair, which is not a character")
        return "text"
    if isinstance(value, list):
        inner = seen[1] if isinstance(seen, tuple) else None
        for item in value:
            inner = merge_kind(inner, item, depth + 1)
        return ("list", inner)
    known = seen if isinstance(seen, dict) else {}
    return known | {
        _name(name): merge_kind(known.get(name), item, depth + 1) for name, item in value.items()
    }


def _name(name: str) -> str:
    _kind(name, None)
    return name


def spoken(kind: Kind) -> str:
    """The kind in the words of a message."""
    return (
        "a list"
        if isinstance(kind, tuple)
        else "an object"
        if isinstance(kind, dict)
        else SPOKEN[kind]
    )


def feature_of(kind: Kind) -> Any:
    """The kind as a type of the `datasets` library; gaps alone are text."""
    if isinstance(kind, tuple):
        return datasets.List(feature_of(kind[1]))
    if isinstance(kind, dict):
        return {name: feature_of(inner) for name, inner in kind.items()}
    return datasets.Value(
        {
            "bool": "bool",
            "int": "int64",
            "wide": "int64",
            "float": "float64",
            "text": "string",
            None: "string",
        }[kind]
    )


def shape_value(value: Any, kind: Kind) -> Any:
    """The value as its column holds it: whole numbers among fractions become fractions, missing fields gaps."""
    if value is None:
        return None
    if isinstance(kind, tuple):
        return [shape_value(item, kind[1]) for item in value]
    if isinstance(kind, dict):
        return {name: shape_value(value.get(name), inner) for name, inner in kind.items()}
    return float(value) if kind == "float" else value

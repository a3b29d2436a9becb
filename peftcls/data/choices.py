"""What was chosen for a text, in one cell, as the short exports of Label Studio write it."""

from typing import Any

PATH_SEPARATOR = "/"
"""Between the levels of a label that was chosen in a tree: "animals/dogs"."""


def chosen_value(cell: Any) -> Any:
    """The labels, or the number, of an answer of Label Studio; anything else as it is.

    They are in `{"choices": ["a", "b"]}`, `[{"taxonomy": [["animals", "dogs"]]}]`, and
    `[{"rating": 4}]` or `[{"number": 4}]`.
    """
    only = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
    if not isinstance(only, dict) or len(only) != 1:
        return cell
    (kind, value), *_ = only.items()
    if kind == "choices" and only is cell and isinstance(value, list):
        return value
    if kind == "taxonomy" and isinstance(value, list):
        return labels_in_tree(value)
    if kind in ("rating", "number") and only is not cell and isinstance(value, int | float):
        return value
    return cell


def labels_in_tree(places: list[Any]) -> list[str]:
    """The labels of places in a tree, each from its root on."""
    return [
        PATH_SEPARATOR.join(map(str, place)) if isinstance(place, list) else str(place)
        for place in places
    ]

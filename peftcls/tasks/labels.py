"""Names of labels, in one spelling and one order, and the share that each has in a row."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Shares = dict[str, float]
ONE_LABEL = "a classifier needs rows of two or more (where it learns on, with_replay adds old ones)"


def label_name(value: Any) -> str:
    """The name of a label, however the table spells it: 1, 1.0 and "1" are the same label."""
    whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if whole else str(value).strip()


def label_setting_problem(labels: Any) -> str | None:
    """What is wrong with the names of a closed set of labels, if anything."""
    if not isinstance(labels, list | tuple):
        return f"labels={labels!r}: expected a tuple of names such as ('no', 'yes')"
    names = [label_name(label) for label in labels]
    if not all(names) or len(set(names)) < len(names):
        return f"labels={labels!r}: expected different names, none of them empty"
    return None


def label_order(names: Iterable[str]) -> tuple[str, ...]:
    """Label names in an order that does not depend on the rows': numbers by value, other names by alphabet."""
    found = set(names)
    return tuple(
        sorted(found, key=float)
        if all(re.fullmatch(r"[+-]?[0-9]+", n) for n in found)
        else sorted(found)
    )


def label_shares(value: Any, *, several: bool) -> Shares:
    """The labels of a cell, each with its share of the target.

    Args:
        value: a label; with `several` a list of labels or a text with `;` between them, each with the share 1; or a
            soft target: a mapping of labels to shares or votes, or its JSON text.
        several: whether a row has any number of labels: each share then stands for itself; of one label's votes the sum
            is made 1.

    Raises:
        ValueError: a share is no number, or not one that a share can be; the text continues the row's number.
    """
    if isinstance(value, str) and value.lstrip().startswith("{") and value.rstrip().endswith("}"):
        with contextlib.suppress(ValueError, RecursionError):  # as a csv file has to write it
            value = json.loads(value)
    if isinstance(value, Mapping):
        return _soft_shares(value, several=several)
    if value is None or value == "" or value != value:  # an empty cell, or a number that is none
        return {}
    if isinstance(value, list) and (not several or any(v is None or v != v for v in value)):
        wanted = (
            "one label (multi_label=True is for several)" if not several else "labels without gaps"
        )
        raise ValueError(f"has the labels {str(value)[:80]}, expected {wanted}")
    values = [value] if not several else value if isinstance(value, list) else str(value).split(";")
    return {name: 1.0 for v in values if (name := label_name(v))}


def _soft_shares(value: Mapping[Any, Any], *, several: bool) -> Shares:
    shares = {}
    for name, share in value.items():
        if share is None:  # a column of objects has every name in every row
            continue
        if (
            not isinstance(share, int | float)
            or isinstance(share, bool)
            or not 0 <= share < float("inf")
            or (several and share > 1)
        ):
            raise ValueError(
                f"has the share {share!r} for the label {label_name(name)!r}, expected a number of at least 0"
                + (" and at most 1" if several else "")
            )
        shares[label_name(name)] = float(share)
    total = sum(shares.values())
    return (
        shares
        if several
        else {name: share / total for name, share in shares.items()}
        if total
        else {}
    )

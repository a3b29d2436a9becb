"""Label names in one spelling and one order, and the share that each label has in a row."""

import contextlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from peftcls.data.choices import chosen_value
from peftcls.tasks.list_cells import DEFAULT_SEPARATOR, listed_cell

Shares = dict[str, float]
TOO_FEW_LABELS = (
    "a classifier needs at least two labels. "
    "When continuing from a folder, add old rows with with_replay"
)


def label_name(value: Any) -> str:
    """The name of a label: 1, 1.0 and "1" are the same label, and so are True and "True".

    Names that only differ in how Unicode writes an accent are the same (NFC).
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return unicodedata.normalize("NFC", str(value).strip())


def plain_labels(labels: Any) -> Any:
    """The setting `labels` without numpy; an array, or a column of a data frame, as a list."""
    for method in ("tolist", "to_list"):
        if hasattr(labels, method) and len(getattr(labels, "shape", ())) == 1:
            labels = getattr(labels, method)()
    if isinstance(labels, list | tuple):
        plain = [label.item() if isinstance(label, np.generic) else label for label in labels]
        return plain if isinstance(labels, list) else tuple(plain)
    return labels


def label_setting_problem(labels: Any) -> str | None:
    """What is wrong with the setting `labels`, or None."""
    if not isinstance(labels, list | tuple):
        return f"labels={labels!r}: expected a tuple of names such as ('no', 'yes')"
    names = [label_name(label) for label in labels]
    if not all(names) or len(set(names)) < len(names):
        return f"labels={labels!r}: expected different names, none of them empty"
    return None


def label_order(names: Iterable[str]) -> tuple[str, ...]:
    """Label names in an order that does not depend on the rows.

    If all are whole numbers they are sorted by value, otherwise alphabetically.
    """
    unique = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in unique):
        return tuple(sorted(unique, key=float))
    return tuple(sorted(unique))


def label_shares(value: Any, *, several: bool, separator: str = DEFAULT_SEPARATOR) -> Shares:
    """The labels of a cell, each with its share of the target.

    Args:
        value: a label, or a list of one; with `several` a list of labels, a text with separators
            between them, or a list that is written as a text (see `listed_cell`), each with the
            share 1; or a soft target: a mapping of labels to shares or votes, or its JSON text.
        several: whether a row can have any number of labels. If so, each share is taken as it is;
            otherwise the shares are divided by their sum.
        separator: between several labels in a text.

    Raises:
        ValueError: a share is not a number or out of range; the text continues "row 17".
    """
    value = chosen_value(_parse_object(value))
    if isinstance(value, Mapping):
        return _soft_shares(value, several=several)
    if _is_missing(value) or value == "":
        return {}
    if several:
        listed = listed_cell(value, separator)
    else:
        listed = value if isinstance(value, list) else [value]
    expected = None
    if not several and len(listed) > 1:
        expected = "one label (multi_label=True is for several)"
    elif any(_is_missing(label) for label in listed):
        expected = "labels without gaps"
    if expected:
        raise ValueError(f"has the labels {str(value)[:80]}, expected {expected}")
    names = [label_name(label) for label in listed]
    return {name: 1.0 for name in names if name}


def _parse_object(value: Any) -> Any:
    """A JSON object that is written as a text, as in a csv file; anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("{") and value.rstrip().endswith("}"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def is_blank(value: Any) -> bool:
    """Whether nobody has filled in a cell; an empty list is an answer."""
    return _is_missing(value) or (isinstance(value, str) and not value.strip())


def _is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, or NaN, which alone differs from itself."""
    return value is None or bool(value != value)


def _soft_shares(value: Mapping[Any, Any], *, several: bool) -> Shares:
    """The shares of a soft target; they sum to 1 unless a row can have several labels."""
    shares = {}
    for name, share in value.items():
        # A column of objects has every name in every row; None stands for "not in this row".
        if share is None:
            continue
        if not _is_share(share, several=several):
            limit = " and at most 1" if several else ""
            raise ValueError(
                f"has the share {share!r} for the label {label_name(name)!r}, "
                f"expected a number of at least 0{limit}"
            )
        shares[label_name(name)] = float(share)
    if several:
        return shares
    total = sum(shares.values())
    if not total:
        return {}
    return {name: share / total for name, share in shares.items()}


def _is_share(share: Any, *, several: bool) -> bool:
    """Whether a value can be a share, or a number of votes."""
    if not isinstance(share, int | float) or isinstance(share, bool):
        return False
    if several:
        return 0 <= share <= 1
    return 0 <= share < float("inf")


def balanced_weights(labels: Sequence[str], counts: Mapping[str, float]) -> dict[str, float]:
    """A weight for each label that has rows, so that all labels count alike.

    Args:
        labels: all of them.
        counts: how many rows each has.
    """
    total = sum(counts.values())
    return {label: total / (len(labels) * counts[label]) for label in labels if counts.get(label)}


def are_balanced(weights: Mapping[str, float], labels: Sequence[str]) -> bool:
    """Whether weights are of the form that `balanced_weights` gives: shares of rows that add up."""
    shares = sum(1 / (len(labels) * weight) for weight in weights.values())
    return set(weights) <= set(labels) and math.isclose(shares, 1.0, rel_tol=1e-9)


def class_weight_problems(weights: Any, labels: Sequence[str] | None) -> list[str]:
    """What is wrong with the setting `class_weight`.

    Args:
        weights: its value.
        labels: the label names, where they are known.
    """
    if weights is None or weights == "balanced":
        return []
    if not isinstance(weights, Mapping) or not weights:
        return [f"class_weight={weights!r}: expected 'balanced' or a weight for each label"]
    problems = []
    wrong = [weight for weight in weights.values() if not _is_weight(weight)]
    if wrong:
        problems.append(f"class_weight has {wrong[0]!r}, expected numbers above 0")
    unknown = sorted(set(weights) - set(labels or weights))
    if unknown:
        problems.append(
            f"class_weight names the label {unknown[0]!r}, expected some of {list(labels or ())}"
        )
    return problems


def _is_weight(value: Any) -> bool:
    """Whether a value can be the weight of a label."""
    return isinstance(value, int | float) and 0 < value < float("inf")

"""y of an estimator: labels of any type, several labels a row, or numbers; and sample_weight."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import assert_all_finite, column_or_1d

from peftcls.tasks.labels import label_name

NO_TARGET = (
    "the estimator requires y to be passed, but the target y is None; give fit(X, y) one value "
    "for each text."
)
EXPECTED = "expected one label a row, or a table of 0 and 1 with a column for each label"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of y.

    Args:
        classes: each label once, in order and in the type that they have in y; with several labels
            a row, the numbers of the columns.
        names: of the labels in the adapter folder, in the order of `classes`.
        cells: the name of each row's label, or a list of names.
        several: whether a row can have any number of labels.
    """

    classes: np.ndarray
    names: tuple[str, ...]
    cells: list[Any]
    several: bool = False


def read_labels(y: Any) -> Labels:
    """Read the y of a classifier.

    Args:
        y: texts, whole numbers or truth values, one a row; or a table of 0 and 1 of shape
            (rows, labels), for any number of labels a row.

    Raises:
        ValueError: y holds something else, one label only, or labels with the same name.
    """
    if y is None:
        raise ValueError(NO_TARGET)
    if _has_label_columns(y):
        return _read_indicator(y)
    values = column_or_1d(_plain_types(y), warn=True)
    _check_labels(values)
    try:
        classes, places = np.unique(values, return_inverse=True)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in values})
        raise ValueError(f"y has labels of the types {kinds}, expected one type.") from None
    if len(classes) < 2:
        raise ValueError(
            f"y has one class only, {classes[:1].tolist()}; a classifier needs at least two."
        )
    names = _names_of(classes)
    return Labels(classes, names, [names[place] for place in places])


def read_numbers(y: Any) -> list[float]:
    """Read the y of a regressor.

    Args:
        y: numbers, one a row.

    Raises:
        ValueError: y holds something else, or numbers that are not finite.
    """
    if y is None:
        raise ValueError(NO_TARGET)
    values = column_or_1d(y, warn=True)
    if values.dtype.kind in "cmM":
        raise ValueError(f"y is of the type {values.dtype}, expected one real number a row.")
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"y holds no numbers ({error}), expected one number a row; TextClassifier learns "
            "labels."
        ) from None
    assert_all_finite(numbers, input_name="y")
    return [float(number) for number in numbers]


def read_weights(sample_weight: Any, rows: int) -> list[float] | None:
    """Read the weights of rows; None where all count the same.

    Args:
        sample_weight: one number a row, or None.
        rows: how many there are.

    Raises:
        ValueError: it is something else, or a weight is negative or not finite, or all are zero.
    """
    if sample_weight is None:
        return None
    try:
        weights = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"sample_weight holds no numbers ({error}), expected one number a row."
        ) from None
    if weights.shape != (rows,):
        raise ValueError(
            f"sample_weight has the shape {weights.shape}, expected {(rows,)}: one number a row."
        )
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(wrong):
        raise ValueError(
            f"sample_weight of row {wrong[0] + 1} is {weights[wrong[0]]}, expected a weight of at "
            "least 0."
        )
    if not weights.any():
        raise ValueError("sample_weight is zero for every row, expected some weights above zero.")
    if (weights == weights[0]).all():
        return None
    return [float(weight) for weight in weights]


def check_weighted_labels(labels: Labels, weights: list[float] | None) -> None:
    """Raise ValueError where all rows that count have the same label."""
    if weights is None or labels.several:
        return
    counting = {name for name, weight in zip(labels.cells, weights, strict=True) if weight > 0}
    if len(counting) < 2:
        raise ValueError(
            f"the rows with a sample_weight above zero have one class only, {sorted(counting)}; a "
            "classifier needs at least two."
        )


def _plain_types(y: Any) -> Any:
    """A column of pandas in numpy's type, where it has none of its own only to allow for gaps."""
    numpy_type = getattr(getattr(y, "dtype", None), "numpy_dtype", None)
    if numpy_type is None or not isinstance(y, pd.Series) or y.hasnans:
        return y
    return y.to_numpy(dtype=numpy_type)


def _has_label_columns(y: Any) -> bool:
    table = np.asarray(y)
    return table.ndim == 2 and table.shape[1] > 1


def _read_indicator(y: Any) -> Labels:
    table = np.asarray(y)
    is_indicator = table.dtype.kind in "biuf" and bool(np.isin(table, (0, 1)).all())
    if not is_indicator:
        raise ValueError(
            f"y has the shape {table.shape} and other values than 0 and 1, {EXPECTED}."
        )
    columns = [str(name) for name in getattr(y, "columns", range(table.shape[1]))]
    names = _names_of(np.array(columns, dtype=object))
    cells = [[names[place] for place in np.flatnonzero(row)] for row in table]
    return Labels(np.arange(table.shape[1]), names, cells, several=True)


def _check_labels(values: np.ndarray) -> None:
    """Raise ValueError for a gap, or for numbers that are no classes."""
    missing = np.flatnonzero(pd.isna(values))
    if len(missing):
        raise ValueError(
            f"Input y contains NaN or None: row {missing[0] + 1} has no label; fill it in, or "
            "leave the row out."
        )
    if values.dtype.kind != "f":
        return
    assert_all_finite(values, input_name="y")
    amounts = values[values != np.floor(values)]
    if len(amounts):
        raise ValueError(
            f"Unknown label type: continuous. y has {float(amounts[0])}, expected labels; "
            "TextRegressor learns numbers."
        )


def _names_of(classes: np.ndarray) -> tuple[str, ...]:
    """The names of the labels in the adapter folder. Raises ValueError where two have the same."""
    names = tuple(label_name(label) for label in classes.tolist())
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        pairs = zip(classes.tolist(), names, strict=True)
        same = [label for label, name in pairs if name == repeated[0]]
        raise ValueError(
            f"y has the labels {same}, which are one label, {repeated[0]!r}, to peftcls: spaces "
            "around a label make no difference. Write them in one way."
        )
    if not all(names):
        raise ValueError("y has an empty label; give it a name.")
    return names

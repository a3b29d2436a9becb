"""Answers as columns of a table: which ones each kind of answer fills, and with what."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from peftcls.tasks.answers import Answer, AnswerKind

Columns = dict[str, pa.DataType]
PROBABILITY = "probability_"
"""Written before the name of a label in the name of the column with its probability."""


def columns_of(kind: AnswerKind, labels: Iterable[str], *, probabilities: bool) -> Columns:
    """The names and types of the columns that answers fill.

    Args:
        kind: of the answers.
        labels: that they have probabilities of, in order.
        probabilities: whether each label gets a column with its probability.
    """
    match kind:
        case "number":
            return {"value": pa.float64()}
        case "text":
            return {"text": pa.string()}
        case "keywords":
            return {"keywords": pa.list_(pa.string())}
        case "span":
            return {
                "text": pa.string(),
                "start": pa.int64(),
                "end": pa.int64(),
                "probability": pa.float64(),
            }
    columns: Columns = {"label": pa.string(), "probability": pa.float64()}
    if kind == "label_set":
        columns = {"labels": pa.list_(pa.string())}
    if probabilities:
        columns |= {f"{PROBABILITY}{label}": pa.float64() for label in labels}
    return columns


def values_of(kind: AnswerKind, answer: Answer, *, probabilities: bool) -> list[Any]:
    """The values of one answer, in the order of `columns_of`.

    An abstention has no label, and the probability of its likeliest label.
    """
    match kind:
        case "number":
            return [answer.value]
        case "text":
            return [answer.text]
        case "keywords":
            return [list(answer.labels or ())]
        case "span":
            return [answer.text, answer.start, answer.end, answer.probability]
    by_label = answer.probabilities or {}
    extra = list(by_label.values()) if probabilities else []
    if kind == "label_set":
        return [list(answer.labels or ()), *extra]
    probability = by_label[answer.label] if answer.label else max(by_label.values())
    return [answer.label, probability, *extra]


def kind_of(answer: Answer) -> AnswerKind:
    """What an answer is, from the fields that are filled in."""
    if answer.value is not None:
        return "number"
    if answer.text is not None:
        if answer.labels is not None:
            return "keywords"
        is_span = answer.start is not None or answer.probability is not None
        return "span" if is_span else "text"
    return "label" if answer.labels is None else "label_set"


def answers_frame(
    answers: Sequence[Answer], *, probabilities: bool = False, index: Any = None
) -> pd.DataFrame:
    """Answers as a pandas DataFrame, with the columns that `peftcls predict` writes.

    A list of labels or keywords stays a list.

    Args:
        answers: of one predictor, one for each row; without any, the frame has no columns.
        probabilities: whether each label gets a column with its probability.
        index: of the frame, such as that of the frame with the texts; 0, 1, 2 ... unless given.

    Raises:
        ValueError: these are no answers, or not all of one kind, or the index has another length.
    """
    listed = list(answers)
    _check_answers(listed)
    if index is not None and len(index) != len(listed):
        raise ValueError(
            f"index has {len(index)} entries for {len(listed)} answers; give the index of the rows "
            "that were answered."
        )
    columns: Columns = {}
    rows: list[list[Any]] = [[] for _ in listed]
    if listed:
        kind = kind_of(listed[0])
        labels = listed[0].probabilities or {}
        columns = columns_of(kind, labels, probabilities=probabilities)
        rows = [values_of(kind, answer, probabilities=probabilities) for answer in listed]
    if index is None:
        index = range(len(listed))
    frame = pd.DataFrame(index=index)
    for place, (name, dtype) in enumerate(columns.items()):
        values = [row[place] for row in rows]
        frame[name] = pd.Series(values, index=frame.index, dtype=_pandas_type(dtype))
    return frame


def _check_answers(answers: Sequence[Any]) -> None:
    """Raise ValueError for what are no answers of one kind."""
    for number, answer in enumerate(answers, 1):
        if not isinstance(answer, Answer):
            raise ValueError(
                f"answer {number} is {type(answer).__name__}, expected the answers of a predictor: "
                "answers_frame(predictor.predict(texts))."
            )
        if kind_of(answer) != kind_of(answers[0]):
            raise ValueError(
                f"answer {number} is of the kind {kind_of(answer)!r}, the first of the kind "
                f"{kind_of(answers[0])!r}; make a frame of each kind."
            )


def _pandas_type(dtype: pa.DataType) -> str:
    """The type of a column; whole numbers may have gaps."""
    if pa.types.is_floating(dtype):
        return "float64"
    return "Int64" if pa.types.is_integer(dtype) else "object"

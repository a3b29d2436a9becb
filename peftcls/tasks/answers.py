"""The answer that every task gives."""

import dataclasses
from typing import Literal

from peftcls.tasks.descriptions import describe_fields

AnswerKind = Literal["label", "label_set", "number", "span", "text", "keywords"]
NO_ANSWER = "(no answer)"
"""What stands for an abstention, where a text must stand for it."""


@dataclasses.dataclass(frozen=True, repr=False)
class Answer:
    """What a model predicts for one row; a task fills in the fields that it predicts."""

    label: str | None = None
    probabilities: dict[str, float] | None = None
    labels: tuple[str, ...] | None = None
    value: float | None = None
    text: str | None = None
    start: int | None = None
    end: int | None = None
    probability: float | None = None
    n_best: tuple["Answer", ...] = ()
    null_probability: float | None = None
    usable: bool = True

    def __repr__(self) -> str:
        return describe_fields(self)

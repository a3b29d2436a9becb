"""Answers as JSON: the fields that a task fills in."""

import dataclasses
from typing import Any

from peftcls.tasks.answers import Answer, AnswerKind

# Given even where they are None, as the label of an abstention is.
FIELDS: dict[AnswerKind, tuple[str, ...]] = {
    "label": ("label", "probabilities"),
    "label_set": ("labels", "probabilities"),
    "number": ("value",),
    "span": ("text", "start", "end", "probability"),
    "text": ("text",),
    "keywords": ("labels",),
}


def answer_fields(answer: Answer, kind: AnswerKind) -> dict[str, Any]:
    """The fields of an answer: those of its kind, and others that are not at their default."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(answer):
        value = getattr(answer, field.name)
        if field.name in FIELDS[kind] or value != field.default:
            fields[field.name] = value
    if answer.n_best:
        fields["n_best"] = [answer_fields(other, kind) for other in answer.n_best]
    return fields

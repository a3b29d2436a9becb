"""One text, or a pair of texts, gets a number, through a head with one output."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.data.reading import Row, RowError, as_dataset, require_columns, source_name
from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import Pooling, class_logits, widened
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.text_encoding import (
    LongText,
    TextColumns,
    collate_texts,
    encode_texts,
    rows_from_texts,
    text_columns,
    text_problem,
    text_setting_problems,
)


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """A head that predicts a number, trained on the squared error.

    The head works on numbers of mean 0 and deviation 1; `Answer.value` is in the units of the table.

    Args:
        text: the column with the text, or two columns that are read as a pair.
        target: the column with the number.
        mean: of the training rows' numbers; learnt unless given.
        deviation: their standard deviation; learnt unless given.
        pooling: as in `Classification`.
        causal: as in `Classification`.
        max_length: tokens that are read at once.
        long_text: "truncate" or "windows", as in `Classification`; the windows' numbers are averaged.

    Raises:
        ValueError: settings that cannot be.
    """

    text: TextColumns = "text"
    target: str = "score"
    mean: float | None = None
    deviation: float | None = None
    pooling: Pooling | None = None
    causal: bool = True
    max_length: int = 512
    long_text: LongText = "truncate"

    monitor: ClassVar[str] = "pearson"
    new_head: ClassVar[bool] = True
    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    peft_type: ClassVar[str] = "SEQ_CLS"

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Regression)
        problems = text_setting_problems(self.text, self.target, self.max_length, self.long_text)
        if self.pooling not in (None, "cls", "first", "last", "mean"):
            problems.append(f"pooling={self.pooling!r}: expected 'cls', 'first', 'last' or 'mean'")
        if self.mean is not None and not (
            isinstance(self.mean, int | float) and math.isfinite(self.mean)
        ):
            problems.append(f"mean={self.mean!r}: expected a finite number")
        if self.deviation is not None and not (
            isinstance(self.deviation, int | float) and 0 < self.deviation < math.inf
        ):
            problems.append(f"deviation={self.deviation!r}: expected a finite number above 0")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def columns(self, *, with_target: bool) -> list[str]:
        return [*text_columns(self.text), self.target] if with_target else text_columns(self.text)

    def learn(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Self:
        rows = as_dataset(rows)
        require_columns(rows, self.columns(with_target=True), "Regression")
        numbers = [number for value in rows[self.target] if (number := _number(value)) is not None]
        if not numbers:
            raise RowError(
                f"{source_name(rows)} has no number in column {self.target!r}; Regression learns from numbers."
            )
        return dataclasses.replace(
            self,
            mean=float(np.mean(numbers)) if self.mean is None else self.mean,
            deviation=float(np.std(numbers)) or 1.0 if self.deviation is None else self.deviation,
        )

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        if problem := text_problem(row, text_columns(self.text)):
            return problem
        if with_target and _number(row[self.target]) is None:
            return f"has {row[self.target]!r} in column {self.target!r}, expected a number"
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        found = {_number(value) for value in rows[self.target]}
        if len(found) < 2:
            return f"has the same number in column {self.target!r} of every row; there is nothing to learn"
        return None

    def model_settings(self) -> dict[str, Any]:
        _ = self._scale  # a head whose outputs nobody can read is not built
        return {"num_labels": 1, "problem_type": "regression"}

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, text_columns(self.text))

    def text_of(self, row: Row) -> str:
        return "\n".join(row[column] for column in text_columns(self.text))

    def gold_of(self, row: Row) -> tuple[str, ...]:
        return (str(_number(row[self.target])),)

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        texts = [[row[column] for column in text_columns(self.text)] for row in rows]
        encoded = encode_texts(
            texts, tokenizer, max_length=self.max_length, long_text=self.long_text
        )
        for row, feature in zip(rows, encoded, strict=True):
            if with_target:
                mean, deviation = self._scale
                feature["target"] = (float(row[self.target]) - mean) / deviation
                feature["weight"] = 1.0
            yield feature

    @property
    def _scale(self) -> tuple[float, float]:
        if self.mean is None or self.deviation is None:
            raise ValueError(
                "the mean and deviation of the numbers are not known yet: use task = task.learn(rows)."
            )
        return self.mean, self.deviation

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = collate_texts(features, tokenizer)
        if "target" in features[0]:
            batch["target"] = torch.tensor([f["target"] for f in features])
        return batch

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        found = widened(class_logits(model, batch, self.pooling, causal=self.causal))[:, 0]
        return ((found - batch["target"].to(found.dtype)) ** 2).sum()

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        return self.answers_of(class_logits(model, batch, self.pooling, causal=self.causal))

    def answers_of(self, logits: torch.Tensor) -> list[Answer]:
        """The numbers that logits of shape (rows, 1) stand for."""
        mean, deviation = self._scale
        return [
            Answer(value=value) for value in (logits[:, 0].double() * deviation + mean).tolist()
        ]

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.NUMBER_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        return metrics.number_scores(
            [float(row[self.target]) for row in rows], [float(a.value or 0.0) for a in answers]
        )


def _number(value: Any) -> float | None:
    """The number in a cell, as a number or as text; None where there is none that is finite."""
    if isinstance(value, bool) or (
        isinstance(value, str) and not re.fullmatch(r"[-+0-9.eE ]+", value)
    ):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

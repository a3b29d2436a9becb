"""One text, or a pair of texts, gets a number, through a head with one output."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import datasets
import numpy as np

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.data.row_batches import each_cell
from peftcls.data.tables import Rows, split_of
from peftcls.engine.model_choices import Pooling
from peftcls.tasks.answers import Answer, AnswerKind
from peftcls.tasks.auto_models import AutoModel
from peftcls.tasks.base import Feature, Task
from peftcls.tasks.numbers import Decimal, has_marks, parse_number, with_comma
from peftcls.tasks.row_weights import kept_weight, weight_of, weight_setting_problem
from peftcls.tasks.text_encoding import (
    LongText,
    TextColumns,
    as_columns,
    collate_texts,
    encode_texts,
    is_comparable,
    mean_lengths,
    merge_text_remarks,
    pooling_problem,
    rows_from_texts,
    select_texts,
    text_problem,
    text_setting_problems,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from peftcls.engine.batch import Batch

STRATUM_ROWS = 10
MAX_SHOWN_CHARACTERS = 40


@names_arguments
@dataclasses.dataclass(frozen=True, repr=False)
class Regression(Task):
    """A head that predicts a number, trained on the squared error.

    The head is trained on numbers of mean 0 and standard deviation 1; `Answer.value` is in the
    units of the table.

    Args:
        text: the column with the text, or two columns that are read as a pair.
        target: the column with the number.
        mean: of the training rows' numbers; learnt if not given.
        deviation: their standard deviation; learnt if not given.
        pooling: as in `Classification`.
        causal: as in `Classification`.
        max_length: tokens of one sequence.
        long_text: "truncate" or "windows", as in `Classification`; the numbers of the windows are
            averaged.
        weight: as in `Classification`.
        decimal: what stands before the decimals where the numbers are texts, a point or a comma.
        text_lengths: as in `Classification`.

    Raises:
        ValueError: settings that are out of range.
    """

    text: TextColumns = "text"
    target: str = "score"
    mean: float | None = None
    deviation: float | None = None
    pooling: Pooling | None = None
    causal: bool = True
    max_length: int = 512
    long_text: LongText = "truncate"
    weight: str | None = None
    decimal: Decimal = "."
    text_lengths: tuple[float, float] | None = None

    monitor: ClassVar[str] = "pearson"
    new_head: ClassVar[bool] = True
    auto_model = AutoModel("AutoModelForSequenceClassification")
    peft_type: ClassVar[str] = "SEQ_CLS"

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Regression)
        problems = text_setting_problems(self.text, self.target, self.max_length, self.long_text)
        problems.append(pooling_problem(self.pooling, self.text, self.long_text))
        problems.append(weight_setting_problem(self.weight, self.columns(with_target=True)))
        if self.mean is not None and not math.isfinite(self.mean):
            problems.append(f"mean={self.mean!r}: expected a finite number")
        if self.deviation is not None and not 0 < self.deviation < math.inf:
            problems.append(f"deviation={self.deviation!r}: expected a finite number above 0")
        if self.decimal not in (".", ","):
            problems.append(f"decimal={self.decimal!r}: expected '.' or ','")
        sentences = [problem for problem in problems if problem]
        if sentences:
            raise ValueError("; ".join(sentences) + ".")

    def columns(self, *, with_target: bool) -> list[str]:
        texts = list(self.text_columns())
        return [*texts, self.target] if with_target else texts

    def text_columns(self) -> tuple[str, ...]:
        return as_columns(self.text)

    def learn(self, rows: Rows) -> Self:
        table = as_dataset(split_of(rows, "train"))
        require_columns(table, self.columns(with_target=True), "Regression")
        parsed = (self._number(value) for value in each_cell(table, self.target))
        numbers = np.fromiter((number for number in parsed if number is not None), np.float64)
        if not len(numbers):
            first = next(
                (str(value) for value in each_cell(table, self.target) if value), "nothing"
            )
            raise RowError(
                f"{source_name(table)} has no number in column {self.target!r}, but "
                f"{first[:MAX_SHOWN_CHARACTERS]!r} for example; Regression learns from "
                f"{self._expected(first)}."
            )
        mean = self.mean
        if mean is None:
            mean = float(np.mean(numbers))
        deviation = self.deviation
        if deviation is None:
            # Equal numbers have no deviation to divide by.
            deviation = float(np.std(numbers)) or 1.0
        lengths = self.text_lengths or mean_lengths(table, self.text)
        return dataclasses.replace(self, mean=mean, deviation=deviation, text_lengths=lengths)

    def extended(self, rows: datasets.Dataset) -> Self:
        return dataclasses.replace(self, weight=kept_weight(self.weight, rows))

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        problem = text_problem(row, self.text_columns())
        if problem:
            return problem
        if with_target and self._number(row[self.target]) is None:
            found = row[self.target]
            expected = self._expected(found)
            return f"has {found!r} in column {self.target!r}, expected {expected}"
        return None

    def _expected(self, found: Any) -> str:
        """What should stand in the place of this cell."""
        if self.decimal == ",":
            like = "a number like 0,5, without a point"
        elif with_comma(found):
            like = (
                "a number with a point and no comma; for a comma before the decimals give "
                "decimal=',' (--decimal ,)"
            )
        else:
            like = "a number like 0.5"
        return f"{like}; take out what marks thousands" if has_marks(found) else like

    def _number(self, value: Any) -> float | None:
        """The number in a cell of the target."""
        return parse_number(value, self.decimal)

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        numbers = (self._number(value) for value in each_cell(rows, self.target))
        first = next(numbers, None)
        if all(number == first for number in numbers):
            return (
                f"has the same number in column {self.target!r} of every row; "
                "there is nothing to learn"
            )
        return None

    def model_settings(self) -> dict[str, Any]:
        # Without a scale the outputs of the head would mean nothing, so this raises.
        self._known_scale()
        return {"num_labels": 1, "problem_type": "regression"}

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, self.text_columns())

    def text_of(self, row: Row) -> str:
        return "\n".join(row[column] for column in self.text_columns())

    def gold_of(self, row: Row) -> tuple[str, ...]:
        return (str(self._number(row[self.target])),)

    def strata(self, golds: Sequence[tuple[str, ...]]) -> Sequence[Sequence[int]]:
        """Groups of `STRATUM_ROWS` neighbours in the order of their numbers."""
        numbers = np.fromiter((float(gold[0]) for gold in golds), np.float64, len(golds))
        by_number = numbers.argsort(kind="stable")
        starts = range(0, len(golds), STRATUM_ROWS)
        return [np.sort(by_number[start : start + STRATUM_ROWS]).tolist() for start in starts]

    @property
    def reads_windows(self) -> bool:
        return self.long_text == "windows"

    @property
    def can_compare(self) -> bool:
        return is_comparable(self.text, self.long_text, self.text_lengths)

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        encoded = encode_texts(
            select_texts(rows, self.text_columns()),
            tokenizer,
            max_length=self.max_length,
            long_text=self.long_text,
            pooling=self.pooling,
        )
        for row, feature in zip(rows, encoded, strict=True):
            if with_target:
                mean, deviation = self._known_scale()
                number = self._number(row[self.target])
                assert number is not None, "rows are checked before"
                feature["target"] = (number - mean) / deviation
                feature["weight"] = weight_of(row, self.weight)
            yield feature

    def _known_scale(self) -> tuple[float, float]:
        """Mean and deviation, which must have been learnt."""
        if self.mean is None or self.deviation is None:
            raise ValueError(
                "the mean and deviation of the numbers are not known yet: "
                "use task = task.learn(rows)."
            )
        return self.mean, self.deviation

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        import torch

        batch = collate_texts(features, tokenizer, compared=self.pooling == "compare")
        if "target" in features[0]:
            batch["target"] = torch.tensor([feature["target"] for feature in features])
            if self.weight is not None:
                batch["weight"] = torch.tensor([feature["weight"] for feature in features])
        return batch

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        from peftcls.engine.precision import in_float32

        return self.loss_of_logits(in_float32(self.head_logits(model, batch)), batch)

    def loss_of_logits(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        predicted = logits[:, 0]
        losses = (predicted - batch["target"].to(predicted.dtype)) ** 2
        if "weight" in batch:
            losses = losses * batch["weight"].to(losses.dtype)
        return losses.sum()

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        return self.answers_of(self.head_logits(model, batch))

    def decode_logits(
        self,
        logits: torch.Tensor,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        from peftcls.engine.head_logits import mean_of_windows

        if "windows" in batch:
            logits = mean_of_windows(logits, batch["windows"])
        return self.answers_of(logits)

    def answers_of(self, logits: torch.Tensor) -> list[Answer]:
        """The answers to logits of shape (rows, 1)."""
        mean, deviation = self._known_scale()
        values = logits[:, 0].double() * deviation + mean
        return [Answer(value=value) for value in values.tolist()]

    @property
    def answer_kind(self) -> AnswerKind:
        return "number"

    def probe_task(self) -> Self:
        return dataclasses.replace(self, long_text="truncate")

    def merge_remarks(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        scale = (
            "The output is in units of the training rows' deviation: "
            f"the number is {self.deviation!r} x output + {self.mean!r}."
        )
        texts = merge_text_remarks(
            self.text_columns(), tokenizer, max_length=self.max_length, long_text=self.long_text
        )
        return [scale, *texts]

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.NUMBER_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        golds = [float(self.gold_of(row)[0]) for row in rows]
        predicted = [float(answer.value or 0.0) for answer in answers]
        return metrics.number_scores(golds, predicted)

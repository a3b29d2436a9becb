"""One text, or a pair of texts, gets one label or several, through a classification head."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import datasets
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.data.reading import Row, RowError, as_dataset, require_columns, source_name
from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import Pooling, class_logits, widened
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.decisions import PLAIN, Decisions, decisions_setting, fit_decisions
from peftcls.tasks.labels import (
    ONE_LABEL,
    Shares,
    label_name,
    label_order,
    label_setting_problem,
    label_shares,
)
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

FOCUS = 2.0  # gamma of Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """A classification head on an encoder or a decoder.

    Args:
        text: the column with the text, or two columns that are read as a pair.
        label: the column with the label; with `multi_label`, a list of labels or a text with `;` between them. A mapping
            of labels to shares or votes, {"spam": 2, "ham": 1}, is a soft target.
        labels: the label names in order; learnt from the training rows unless given.
        multi_label: whether a row has any number of labels.
        loss: "cross_entropy", "bce" (one yes-or-no question a label; the only one for `multi_label`) or "focal".
        class_weight: a weight for the rows of each label; "balanced" learns rows / (labels x rows of the label), as
            scikit-learn does.
        sampling: "balanced" draws as many rows of each label in an epoch, rare ones several times, instead of each row
            once; not together with `class_weight`.
        label_smoothing: the share of the target that is spread evenly over all labels; for "cross_entropy" alone.
        pooling: the token that a decoder's head reads: "last" (unless given), "first" or "mean" of the real tokens.
            Encoders read the token that their own head was made for ("cls").
        causal: False lifts a decoder's causal mask, so that every token sees the whole text.
        max_length: tokens that are read at once.
        long_text: what happens to more: with "truncate" a text loses its end, and of a pair the longer one; with "windows"
            it is read in windows that overlap by a quarter, and their logits are averaged, in training as in prediction.
        decisions: temperature, thresholds and abstention; fitted by `Trainer.calibrate`.

    Raises:
        ValueError: settings that exclude each other.
    """

    text: TextColumns = "text"
    label: str = "label"
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    loss: Literal["cross_entropy", "bce", "focal"] | None = None
    class_weight: Literal["balanced"] | Mapping[str, float] | None = None
    sampling: Literal["balanced"] | None = None
    label_smoothing: float = 0.0
    pooling: Pooling | None = None
    causal: bool = True
    max_length: int = 512
    long_text: LongText = "truncate"
    decisions: Decisions = PLAIN

    monitor: ClassVar[str] = "f1_macro"
    new_head: ClassVar[bool] = True
    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    peft_type: ClassVar[str] = "SEQ_CLS"

    def __post_init__(self) -> None:
        check_argument_types(vars(self), Classification)
        object.__setattr__(
            self, "loss", self.loss or ("bce" if self.multi_label else "cross_entropy")
        )
        object.__setattr__(
            self,
            "decisions",
            decisions_setting(self.decisions, self.labels, several=self.multi_label),
        )
        problems = text_setting_problems(self.text, self.label, self.max_length, self.long_text)
        if self.labels is not None:
            if problem := label_setting_problem(self.labels):
                problems.append(problem)
            object.__setattr__(self, "labels", tuple(label_name(label) for label in self.labels))
        problems += [
            f"{name}={value!r}: expected True or False"
            for name, value in (("multi_label", self.multi_label), ("causal", self.causal))
            if not isinstance(value, bool)
        ]
        if self.class_weight not in (None, "balanced") and not (
            isinstance(self.class_weight, Mapping) and self.class_weight
        ):
            problems.append(
                f"class_weight={self.class_weight!r}: expected 'balanced' or a weight for each label"
            )
        if isinstance(self.class_weight, Mapping):
            object.__setattr__(
                self,
                "class_weight",
                {label_name(name): weight for name, weight in self.class_weight.items()},
            )
            if wrong := [
                w
                for w in self.class_weight.values()
                if not isinstance(w, int | float) or not 0 < w < float("inf")
            ]:
                problems.append(f"class_weight has {wrong[0]!r}, expected numbers above 0")
        if (
            isinstance(self.class_weight, Mapping)
            and self.labels
            and (odd := sorted(set(self.class_weight) - set(self.labels)))
        ):
            problems.append(
                f"class_weight names the label {odd[0]!r}, expected some of {list(self.labels)}"
            )
        if self.loss not in ("cross_entropy", "bce", "focal"):
            problems.append(f"loss={self.loss!r}: expected 'cross_entropy', 'bce' or 'focal'")
        if self.multi_label and self.loss != "bce":
            problems.append(
                f"loss={self.loss!r} with multi_label=True: several labels in a row need loss='bce'"
            )
        if self.multi_label and self.class_weight is not None:
            problems.append(
                "class_weight with multi_label=True: a row with several labels has no one weight; leave it out"
            )
        if self.sampling not in (None, "balanced"):
            problems.append(f"sampling={self.sampling!r}: expected 'balanced' or None")
        if self.sampling and (self.class_weight is not None or self.multi_label):
            why = (
                "multi_label=True: a row with several labels cannot be drawn for one of them"
                if self.multi_label
                else "class_weight: either makes rare labels count for more, both would do it twice"
            )
            problems.append(f"sampling={self.sampling!r} with {why}")
        if self.label_smoothing and self.loss != "cross_entropy":
            problems.append(
                f"label_smoothing with loss={self.loss!r}: it is defined for 'cross_entropy'"
            )
        if not 0 <= self.label_smoothing < 1:
            problems.append(
                f"label_smoothing={self.label_smoothing}: expected a share of at least 0 and below 1"
            )
        if self.pooling not in (None, "cls", "first", "last", "mean"):
            problems.append(f"pooling={self.pooling!r}: expected 'cls', 'first', 'last' or 'mean'")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def columns(self, *, with_target: bool) -> list[str]:
        return [*text_columns(self.text), self.label] if with_target else text_columns(self.text)

    def learn(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Self:
        rows = as_dataset(rows)
        require_columns(rows, self.columns(with_target=True), "Classification")
        counts = self._counts(rows)
        labels = self.labels or label_order(counts)
        weight = self.class_weight
        if weight == "balanced":
            weight = {
                label: sum(counts.values()) / (len(labels) * counts[label])
                for label in labels
                if counts[label]
            }
        return dataclasses.replace(self, labels=labels, class_weight=weight)

    def extended(self, rows: datasets.Dataset) -> Self:
        require_columns(rows, self.columns(with_target=True), "Classification")
        new = set(self._counts(rows)) - set(self._labels)
        return dataclasses.replace(self, labels=(*self._labels, *label_order(new)), decisions=PLAIN)

    def _counts(self, rows: datasets.Dataset) -> Counter[str]:
        counts: Counter[str] = Counter()
        for number, value in enumerate(rows[self.label], 1):
            try:
                counts.update(self._shares(value))
            except ValueError as error:
                raise RowError(
                    f"row {number} of {source_name(rows)} {error} in column {self.label!r}."
                ) from None
        return counts

    def _shares(self, value: Any) -> Shares:
        return label_shares(value, several=self.multi_label)

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        if problem := text_problem(row, text_columns(self.text)):
            return problem
        if not with_target:
            return None
        try:
            names = list(self._shares(row[self.label]))
        except ValueError as error:
            return f"{error} in column {self.label!r}"
        if not names and not self.multi_label:
            return f"has no label in column {self.label!r}; fill it in or leave the row out"
        if unknown := [name for name in names if name not in (self.labels or names)]:
            return f"has the label {unknown[0]!r}, expected one of {list(self.labels or ())}"
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        found = {
            name
            for value in rows[self.label]
            for name, share in self._shares(value).items()
            if share
        }
        if len(found) < 2 and not (self.multi_label and found):
            return f"has only the label {sorted(found)} in column {self.label!r}; {ONE_LABEL}"
        return None

    def model_settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self._labels),
            "id2label": dict(enumerate(self._labels)),
            "label2id": {name: i for i, name in enumerate(self._labels)},
            "problem_type": "multi_label_classification"
            if self.multi_label
            else "single_label_classification",
        }

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, text_columns(self.text))

    def text_of(self, row: Row) -> str:
        return "\n".join(row[column] for column in text_columns(self.text))

    def gold_of(self, row: Row) -> tuple[str, ...]:
        shares = self._shares(row[self.label])
        if self.multi_label:
            return tuple(name for name, share in shares.items() if share >= 0.5)
        return (
            max(shares, key=lambda name: shares[name]),
        )  # of a soft target the label with most votes

    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        texts = [[row[column] for column in text_columns(self.text)] for row in rows]
        encoded = encode_texts(
            texts, tokenizer, max_length=self.max_length, long_text=self.long_text
        )
        for row, feature in zip(rows, encoded, strict=True):
            if with_target:
                shares = self._shares(row[self.label])
                feature["target"] = [shares.get(name, 0.0) for name in self._labels]
                weights = self.class_weight if isinstance(self.class_weight, Mapping) else {}
                feature["weight"] = (
                    sum(share * float(weights.get(name, 1.0)) for name, share in shares.items())
                    if weights
                    else 1.0
                )
                if self.sampling:
                    feature["stratum"] = self._labels.index(self.gold_of(row)[0])
            yield feature

    @property
    def _labels(self) -> tuple[str, ...]:
        if not self.labels:
            raise ValueError(
                "the label names are not known yet: use task = task.learn(rows), or give labels=(...)."
            )
        return self.labels

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = collate_texts(features, tokenizer)
        if "target" in features[0]:
            batch["target"] = torch.tensor([f["target"] for f in features])
            batch["weight"] = torch.tensor([f["weight"] for f in features])
        return batch

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits = widened(class_logits(model, batch, self.pooling, causal=self.causal))
        target = batch["target"].to(logits.dtype)
        if self.loss == "bce":
            row_losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(
                1
            )
        else:
            row_losses = F.cross_entropy(
                logits, target, reduction="none", label_smoothing=self.label_smoothing
            )
            if self.loss == "focal":
                row_losses = (1 - torch.exp(-row_losses)) ** FOCUS * row_losses
        return (row_losses * batch["weight"].to(logits.dtype)).sum()

    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        return self.answers_of(class_logits(model, batch, self.pooling, causal=self.causal))

    def answers_of(self, logits: torch.Tensor) -> list[Answer]:
        """The answers that logits of shape (rows, labels) stand for."""
        logits = logits.double()
        if self.multi_label:
            table = self.decisions.any_of(logits)
        else:  # independent questions are made to sum to one
            table = self.decisions.one_of(F.logsigmoid(logits) if self.loss == "bce" else logits)
        return [self._answer(dict(zip(self._labels, row, strict=True))) for row in table.tolist()]

    def _answer(self, probabilities: dict[str, float]) -> Answer:
        if self.multi_label:
            return Answer(labels=self.decisions.select(probabilities), probabilities=probabilities)
        return Answer(label=self.decisions.choose(probabilities), probabilities=probabilities)

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.LABEL_SET_SCORES if self.multi_label else metrics.LABEL_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        gold, table = [self.gold_of(row) for row in rows], [a.probabilities or {} for a in answers]
        if self.multi_label:
            return {
                **metrics.label_set_scores(gold, [a.labels or () for a in answers], self._labels),
                "ece": metrics.label_set_calibration(gold, table),
            }
        return metrics.closed_set_scores(
            [name for (name,) in gold], [a.label for a in answers], table, self._labels
        )

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        gold = [self.gold_of(row) for row in rows]
        return dataclasses.replace(
            self,
            decisions=fit_decisions(
                answers,
                gold,
                self._labels,
                self.decisions,
                several=self.multi_label,
                min_accuracy=min_accuracy,
            ),
        )

"""One text, or a pair of texts, gets one label or several, through a classification head."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import datasets
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from peftcls import metrics
from peftcls.pooling import Pooling, class_logits
from peftcls.rows import Row, RowError, as_dataset, require_columns
from peftcls.tasks.base import Answer, Batch, Feature, Task, pad_inputs

FOCUS = 2.0  # gamma of Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2


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
    return tuple(sorted(found, key=float) if all(re.fullmatch(r"[+-]?[0-9]+", n) for n in found) else sorted(found))


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """A classification head on an encoder or a decoder.

    Args:
        text: the column with the text, or two columns that are read as a pair.
        label: the column with the label; with `multi_label`, a list of labels or a text with `;` between them.
        labels: the label names in order; learnt from the training rows unless given.
        multi_label: whether a row has any number of labels.
        loss: "cross_entropy", "bce" (one yes-or-no question a label; the only one for `multi_label`) or "focal".
        class_weight: a weight for the rows of each label; "balanced" learns rows / (labels x rows of the label), as
            scikit-learn does.
        label_smoothing: the share of the target that is spread evenly over all labels; for "cross_entropy" alone.
        pooling: the token that a decoder's head reads: "last" (unless given), "first" or "mean" of the real tokens.
            Encoders read the token that their own head was made for ("cls").
        causal: False lifts a decoder's causal mask, so that every token sees the whole text.
        max_length: tokens; a longer text loses its end, and of a pair the longer one.

    Raises:
        ValueError: settings that exclude each other.
    """

    text: str | tuple[str, str] = "text"
    label: str = "label"
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    loss: Literal["cross_entropy", "bce", "focal"] | None = None
    class_weight: Literal["balanced"] | Mapping[str, float] | None = None
    label_smoothing: float = 0.0
    pooling: Pooling | None = None
    causal: bool = True
    max_length: int = 512

    monitor: ClassVar[str] = "f1_macro"
    new_head: ClassVar[bool] = True
    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    peft_type: ClassVar[str] = "SEQ_CLS"

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", self.loss or ("bce" if self.multi_label else "cross_entropy"))
        problems = []
        if self.labels is not None:
            if problem := label_setting_problem(self.labels):
                problems.append(problem)
            object.__setattr__(self, "labels", tuple(label_name(label) for label in self.labels))
        if not isinstance(self.text, str) and len(self.text) != 2:
            problems.append(f"text={self.text!r}: expected one column or two")
        if isinstance(self.class_weight, str) and self.class_weight != "balanced":
            problems.append(f"class_weight={self.class_weight!r}: expected 'balanced' or a weight for each label")
        if isinstance(self.class_weight, Mapping) and self.labels and (odd := sorted(set(self.class_weight) - set(self.labels))):
            problems.append(f"class_weight names the label {odd[0]!r}, expected some of {list(self.labels)}")
        if self.loss not in ("cross_entropy", "bce", "focal"):
            problems.append(f"loss={self.loss!r}: expected 'cross_entropy', 'bce' or 'focal'")
        if self.multi_label and self.loss != "bce":
            problems.append(f"loss={self.loss!r} with multi_label=True: several labels in a row need loss='bce'")
        if self.multi_label and self.class_weight is not None:
            problems.append("class_weight with multi_label=True: a row with several labels has no one weight; leave it out")
        if self.label_smoothing and self.loss != "cross_entropy":
            problems.append(f"label_smoothing with loss={self.loss!r}: it is defined for 'cross_entropy'")
        if not 0 <= self.label_smoothing < 1:
            problems.append(f"label_smoothing={self.label_smoothing}: expected a share of at least 0 and below 1")
        if self.pooling not in (None, "cls", "first", "last", "mean"):
            problems.append(f"pooling={self.pooling!r}: expected 'cls', 'first', 'last' or 'mean'")
        if self.max_length < 8:
            problems.append(f"max_length={self.max_length}: expected at least 8 tokens")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def columns(self, *, with_target: bool) -> list[str]:
        texts = [self.text] if isinstance(self.text, str) else list(self.text)
        return [*texts, self.label] if with_target else texts

    def learn(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Self:
        rows = as_dataset(rows)
        require_columns(rows, self.columns(with_target=True), "Classification")
        counts = Counter(name for value in rows[self.label] for name in self._names(value))
        labels = self.labels or label_order(counts)
        weight = self.class_weight
        if weight == "balanced":
            weight = {label: sum(counts.values()) / (len(labels) * counts[label]) for label in labels if counts[label]}
        return dataclasses.replace(self, labels=labels, class_weight=weight)

    def _names(self, value: Any) -> list[str]:
        if value is None or value == "" or value != value:  # an empty cell, or a number that is none
            return []
        values = [value] if not self.multi_label else value if isinstance(value, list) else str(value).split(";")
        return [name for v in values if (name := label_name(v))]

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        for column in self.columns(with_target=False):
            if not isinstance(row[column], str) or not row[column].strip():
                return f"has no text in column {column!r}; fill it in or leave the row out"
        if not with_target:
            return None
        names = self._names(row[self.label])
        if not names and not self.multi_label:
            return f"has no label in column {self.label!r}; fill it in or leave the row out"
        if unknown := [name for name in names if name not in (self.labels or names)]:
            return f"has the label {unknown[0]!r}, expected one of {list(self.labels or ())}"
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        found = {name for value in rows[self.label] for name in self._names(value)}
        if len(found) < 2 and not (self.multi_label and found):
            return f"has only the label {sorted(found)} in column {self.label!r}; a classifier needs rows of two or more"
        return None

    def model_settings(self) -> dict[str, Any]:
        if not self.labels:
            raise ValueError("the label names are not known yet: use task = task.learn(rows), or give labels=(...).")
        return {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels)),
                "label2id": {name: i for i, name in enumerate(self.labels)},
                "problem_type": "multi_label_classification" if self.multi_label else "single_label_classification"}

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        names = self.columns(with_target=False)
        wanted = "a text" if len(names) == 1 else "a pair of texts"
        rows = []
        for number, text in enumerate(texts, 1):
            parts = [text] if len(names) == 1 else list(text) if isinstance(text, list | tuple) else []
            if len(parts) != len(names) or not all(isinstance(part, str) for part in parts):
                raise RowError(f"text {number} of {len(texts)} is {str(text)[:80]!r}, expected {wanted}.")
            rows.append(dict(zip(names, parts, strict=True)))
        return rows

    def text_of(self, row: Row) -> str:
        return "\n".join(row[column] for column in self.columns(with_target=False))

    def gold_of(self, row: Row) -> tuple[str, ...]:
        return tuple(self._names(row[self.label]))

    def encode(self, row: Row, tokenizer: PreTrainedTokenizerBase, *, with_target: bool) -> Feature:
        texts = [row[column] for column in self.columns(with_target=False)]
        if len(texts) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == tokenizer.num_special_tokens_to_add():
            texts = [texts[0], "\n" + texts[1]]  # a tokenizer without a separator would run the two into one another
        encoded = tokenizer(*texts, truncation=True, max_length=self.max_length)
        feature: Feature = {"input_ids": encoded["input_ids"]}
        whole = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        feature["shortened"] = whole + tokenizer.num_special_tokens_to_add(pair=len(texts) == 2) > len(encoded["input_ids"])
        if "token_type_ids" in encoded:
            feature["token_type_ids"] = encoded["token_type_ids"]
        if with_target:
            places = [self._labels.index(name) for name in self._names(row[self.label])]
            feature["target"] = [float(i in places) for i in range(len(self._labels))]
            weights = self.class_weight if isinstance(self.class_weight, Mapping) else {}
            feature["weight"] = 1.0 if self.multi_label else float(weights.get(self._labels[places[0]], 1.0))
        return feature

    @property
    def _labels(self) -> tuple[str, ...]:
        assert self.labels is not None  # model_settings has refused a task without them
        return self.labels

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = pad_inputs(features, tokenizer)
        if "target" in features[0]:
            batch["target"] = torch.tensor([f["target"] for f in features])
            batch["weight"] = torch.tensor([f["weight"] for f in features])
        return batch

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits = class_logits(model, batch, self.pooling, causal=self.causal)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        target = batch["target"].to(logits.dtype)
        if self.loss == "bce":
            row_losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        else:
            row_losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
            if self.loss == "focal":
                row_losses = (1 - torch.exp(-row_losses)) ** FOCUS * row_losses
        return (row_losses * batch["weight"].to(logits.dtype)).sum()

    def answers(self, model: torch.nn.Module, batch: Batch, features: Sequence[Feature],
                tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
        logits = class_logits(model, batch, self.pooling, causal=self.causal).double()
        table = (logits.sigmoid() if self.loss == "bce" else logits.softmax(1)).tolist()
        return [self._answer(dict(zip(self._labels, row, strict=True))) for row in table]

    def _answer(self, probabilities: dict[str, float]) -> Answer:
        if self.multi_label:
            return Answer(labels=tuple(n for n, p in probabilities.items() if p >= 0.5), probabilities=probabilities)
        if self.loss == "bce":  # independent questions, made to sum to one
            total = sum(probabilities.values())
            probabilities = {name: p / total for name, p in probabilities.items()}
        return Answer(label=max(probabilities, key=lambda name: probabilities[name]), probabilities=probabilities)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("f1_macro", "f1_micro", "accuracy") if self.multi_label else ("accuracy", "f1_macro", "loss")

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        gold = [self.gold_of(row) for row in rows]
        if self.multi_label:
            return metrics.label_set_scores(gold, [a.labels or () for a in answers], self._labels)
        names = [name for (name,) in gold]
        return {**metrics.label_scores(names, [str(a.label) for a in answers]),
                "loss": metrics.label_loss(names, [a.probabilities or {} for a in answers], self._labels)}

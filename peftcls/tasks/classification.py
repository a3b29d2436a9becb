"""One text, or a pair of texts, gets one label or several, through a classification head."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import datasets
import numpy as np

from peftcls import metrics
from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import row_numbers
from peftcls.data.tables import Rows, split_of
from peftcls.engine.model_choices import Pooling
from peftcls.tasks.answers import Answer, AnswerKind
from peftcls.tasks.auto_models import AutoModel
from peftcls.tasks.base import Feature, Task
from peftcls.tasks.decisions import PLAIN, Decisions, decisions_setting, fit_decisions
from peftcls.tasks.label_columns import (
    LabelColumns,
    label_columns_problems,
    names_of_columns,
    row_shares,
)
from peftcls.tasks.labels import (
    TOO_FEW_LABELS,
    Shares,
    are_balanced,
    balanced_weights,
    class_weight_problems,
    is_blank,
    label_name,
    label_order,
    label_setting_problem,
    plain_labels,
)
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

FOCAL_GAMMA = 2.0  # Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2
LOSSES = ("cross_entropy", "bce", "focal")


@names_arguments
@dataclasses.dataclass(frozen=True, repr=False)
class Classification(Task):
    """A classification head on an encoder or a decoder.

    Args:
        text: the column with the text, or two columns that are read as a pair.
        label: the column with the label; with `multi_label`, a list of labels or a text with
            separators between them. A mapping of labels to shares or votes, {"spam": 2, "ham": 1},
            is a soft target. Several columns, ("toxic", "insult"), are one for each label, with 1
            in the rows that have it and 0 in the others; `multi_label` is then True.
        labels: the label names in order; learnt from the training rows if not given.
        multi_label: whether a row can have any number of labels.
        separator: between several labels in a text, such as ","; ";" unless given.
        loss: "cross_entropy", "bce" (binary cross-entropy of each label; the only one for
            `multi_label`) or "focal".
        class_weight: a weight for the rows of each label; "balanced" learns
            rows / (labels x rows of the label), as scikit-learn does.
        sampling: "balanced" draws as many rows of each label in an epoch, rare ones several times,
            instead of each row once; not together with `class_weight`.
        label_smoothing: the share of the target that is spread evenly over all labels; only for
            "cross_entropy".
        pooling: what the head reads. Of a decoder "last" (the default), "first" or "mean" of the
            real tokens. Of an encoder "cls", the token that its own head was made for, or "mean",
            which a linear head reads; the default is "mean" where the base was trained on means
            (its folder has sentence-transformers' `1_Pooling/config.json`), and "cls" elsewhere.
            "compare" reads each text of a pair alone too, and compares their means; it is the
            default where the base was trained on means, unless one text is much longer.
        causal: False removes a decoder's causal mask, so that every token sees the whole text.
        max_length: tokens of one sequence.
        long_text: what happens to a longer text: with "truncate" it loses its end, and of a pair
            the longer text does; with "windows" it is read in windows that overlap by a quarter,
            and their logits are averaged, in training as in prediction.
        decisions: temperature, thresholds and abstention; fitted by `Trainer.calibrate`.
        weight: the column with the weight of each training row, a number of at least 0; the loss is
            the weighted mean. It is multiplied by `class_weight`. Scores are not weighted.
        text_lengths: mean characters of the texts of a pair; learnt from the training rows.

    Raises:
        ValueError: settings that exclude each other or are out of range.
    """

    text: TextColumns = "text"
    label: LabelColumns = "label"
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    separator: str | None = None
    loss: Literal["cross_entropy", "bce", "focal"] | None = None
    class_weight: Literal["balanced"] | Mapping[str, float] | None = None
    sampling: Literal["balanced"] | None = None
    label_smoothing: float = 0.0
    pooling: Pooling | None = None
    causal: bool = True
    max_length: int = 512
    long_text: LongText = "truncate"
    decisions: Decisions = PLAIN
    weight: str | None = None
    text_lengths: tuple[float, float] | None = None

    monitor: ClassVar[str] = "f1_macro"
    new_head: ClassVar[bool] = True
    auto_model = AutoModel("AutoModelForSequenceClassification")
    peft_type: ClassVar[str] = "SEQ_CLS"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", plain_labels(self.labels))
        check_argument_types(vars(self), Classification)
        problems = text_setting_problems(self.text, self.label, self.max_length, self.long_text)
        if self.labels is not None:
            problems.append(label_setting_problem(self.labels))
        self._normalise()
        problems += label_columns_problems(
            self.label, self.labels, self.separator, several=self.multi_label
        )
        problems += class_weight_problems(self.class_weight, self.labels)
        problems += [sentence for is_wrong, sentence in self._setting_checks() if is_wrong]
        problems.append(pooling_problem(self.pooling, self.text, self.long_text))
        problems.append(weight_setting_problem(self.weight, self.columns(with_target=True)))
        sentences = [problem for problem in problems if problem]
        if sentences:
            raise ValueError("; ".join(sentences) + ".")

    def _normalise(self) -> None:
        """Fill in what other settings decide, and write label names in one spelling."""
        columns = names_of_columns(self.label)
        if columns is not None:
            object.__setattr__(self, "label", tuple(self.label))
            object.__setattr__(self, "multi_label", True)
            object.__setattr__(self, "labels", self.labels or columns or None)
        decisions = decisions_setting(self.decisions, self.labels, several=self.multi_label)
        object.__setattr__(self, "decisions", decisions)
        if not self.loss:
            object.__setattr__(self, "loss", "bce" if self.multi_label else "cross_entropy")
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(label_name(label) for label in self.labels))
        if isinstance(self.class_weight, Mapping):
            weights = {label_name(name): weight for name, weight in self.class_weight.items()}
            object.__setattr__(self, "class_weight", weights)

    def _setting_checks(self) -> list[tuple[bool, str]]:
        """Pairs of (is wrong, sentence) for settings whose types are right."""
        weighted = self.class_weight is not None
        return [
            (
                self.loss not in LOSSES,
                f"loss={self.loss!r}: expected 'cross_entropy', 'bce' or 'focal'",
            ),
            (
                self.multi_label and self.loss != "bce",
                f"loss={self.loss!r} with multi_label=True: "
                "several labels in a row need loss='bce'",
            ),
            (
                self.multi_label and weighted,
                "class_weight with multi_label=True: "
                "a row with several labels has no one weight; leave it out",
            ),
            (
                self.sampling not in (None, "balanced"),
                f"sampling={self.sampling!r}: expected 'balanced' or None",
            ),
            (
                bool(self.sampling) and self.multi_label,
                f"sampling={self.sampling!r} with multi_label=True: "
                "a row with several labels cannot be drawn for one of them",
            ),
            (
                bool(self.sampling) and weighted and not self.multi_label,
                f"sampling={self.sampling!r} with class_weight: "
                "either makes rare labels count for more, both would do it twice",
            ),
            (
                self.label_smoothing != 0 and self.loss != "cross_entropy",
                f"label_smoothing with loss={self.loss!r}: it is defined for 'cross_entropy'",
            ),
            (
                not 0 <= self.label_smoothing < 1,
                f"label_smoothing={self.label_smoothing}: "
                "expected a share of at least 0 and below 1",
            ),
        ]

    def columns(self, *, with_target: bool) -> list[str]:
        texts = list(self.text_columns())
        return [*texts, *as_columns(self.label)] if with_target else texts

    def text_columns(self) -> tuple[str, ...]:
        return as_columns(self.text)

    def learn(self, rows: Rows) -> Self:
        table = as_dataset(split_of(rows, "train"))
        require_columns(table, self.columns(with_target=True), "Classification")
        counts = self._label_counts(table)
        labels = self.labels or label_order(counts)
        weights = self.class_weight
        if weights == "balanced":
            weights = balanced_weights(labels, counts)
        lengths = self.text_lengths or mean_lengths(table, self.text)
        return dataclasses.replace(self, labels=labels, class_weight=weights, text_lengths=lengths)

    def extended(self, rows: datasets.Dataset) -> Self:
        require_columns(rows, self.columns(with_target=True), "Classification")
        old_labels = self._known_labels
        counts = self._label_counts(rows)
        labels = (*old_labels, *label_order(set(counts) - set(old_labels)))
        weights = self.class_weight
        if isinstance(weights, Mapping) and are_balanced(weights, old_labels):
            weights = balanced_weights(labels, counts)
        weight = kept_weight(self.weight, rows)
        return dataclasses.replace(
            self, labels=labels, class_weight=weights, decisions=PLAIN, weight=weight
        )

    def _label_counts(self, rows: datasets.Dataset) -> Counter[str]:
        """The sum of the shares of each label."""
        counts: Counter[str] = Counter()
        cells = each_row(rows, as_columns(self.label))
        for number, row in zip(row_numbers(rows), cells, strict=True):
            try:
                counts.update(self._shares(row))
            except ValueError as error:
                raise RowError(f"row {number} of {source_name(rows)} {error}.") from None
        return counts

    def _shares(self, row: Row) -> Shares:
        return row_shares(row, self.label, several=self.multi_label, separator=self.separator)

    def problem(self, row: Row, *, with_target: bool) -> str | None:
        problem = text_problem(row, self.text_columns())
        if problem or not with_target:
            return problem
        try:
            names = list(self._shares(row))
        except ValueError as error:
            return str(error)
        if not names and not self.multi_label:
            return f"has no label in column {self.label!r}; fill it in or leave the row out"
        if self.multi_label and isinstance(self.label, str) and is_blank(row[self.label]):
            return (
                f"has nothing in column {self.label!r}; write an empty list, [] in a csv file, "
                "where a text has none of the labels, or leave the row out"
            )
        if self.labels:
            for name in names:
                if name not in self.labels:
                    return f"has the label {name!r}, expected one of {list(self.labels)}"
        return None

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        names: set[str] = set()
        for row in each_row(rows, as_columns(self.label)):
            shares = self._shares(row)
            names.update(name for name, share in shares.items() if share)
        # With several labels a row, a label and its absence are enough.
        fewest = 1 if self.multi_label else 2
        if len(names) < fewest:
            return f"has only the label {sorted(names)} in column {self.label!r}; {TOO_FEW_LABELS}"
        return None

    def model_settings(self) -> dict[str, Any]:
        labels = self._known_labels
        problem_type = "single_label_classification"
        if self.multi_label:
            problem_type = "multi_label_classification"
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
            "problem_type": problem_type,
        }

    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        return rows_from_texts(texts, self.text_columns())

    def text_of(self, row: Row) -> str:
        return "\n".join(row[column] for column in self.text_columns())

    def gold_of(self, row: Row) -> tuple[str, ...]:
        shares = self._shares(row)
        if self.multi_label:
            return tuple(name for name, share in shares.items() if share >= 0.5)
        # Of a soft target, the label with most votes.
        return (max(shares, key=lambda name: shares[name]),)

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
                self._add_target(feature, row)
            yield feature

    def _add_target(self, feature: Feature, row: Row) -> None:
        """Add a row's target and weight, and its label's index for balanced sampling."""
        shares = self._shares(row)
        feature["target"] = [shares.get(name, 0.0) for name in self._known_labels]
        feature["weight"] = weight_of(row, self.weight)
        if isinstance(self.class_weight, Mapping):
            weights = self.class_weight
            feature["weight"] *= sum(
                share * float(weights.get(name, 1.0)) for name, share in shares.items()
            )
        if self.sampling:
            feature["stratum"] = self._known_labels.index(self.gold_of(row)[0])

    @property
    def _known_labels(self) -> tuple[str, ...]:
        """The labels, which must have been learnt."""
        if not self.labels:
            raise ValueError(
                "the label names are not known yet: "
                "use task = task.learn(rows), or give labels=(...)."
            )
        return self.labels

    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        import torch

        batch = collate_texts(features, tokenizer, compared=self.pooling == "compare")
        if "target" in features[0]:
            batch["target"] = torch.tensor([feature["target"] for feature in features])
            batch["weight"] = torch.tensor([feature["weight"] for feature in features])
        return batch

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        from peftcls.engine.precision import in_float32

        return self.loss_of_logits(in_float32(self.head_logits(model, batch)), batch)

    def loss_of_logits(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        row_losses = self._row_losses(logits, batch["target"].to(logits.dtype))
        return (row_losses * batch["weight"].to(logits.dtype)).sum()

    def _row_losses(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Losses of shape (rows,) from logits and targets of shape (rows, labels)."""
        import torch
        from torch.nn import functional as F

        if self.loss == "bce":
            losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            return losses.mean(1)
        losses = F.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.loss == "focal":
            return (1 - torch.exp(-losses)) ** FOCAL_GAMMA * losses
        return losses

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
        """The answers to logits of shape (rows, labels)."""
        logits = logits.double()
        if self.multi_label:
            table = self.decisions.any_of(logits)
        elif self.loss == "bce":
            # The labels' independent probabilities are normalised to sum to one.
            table = self.decisions.one_of(_log_sigmoid(logits))
        else:
            table = self.decisions.one_of(logits)
        labels = self._known_labels
        return [self._answer(dict(zip(labels, row, strict=True))) for row in table.tolist()]

    def _answer(self, probabilities: dict[str, float]) -> Answer:
        if self.multi_label:
            return Answer(labels=self.decisions.select(probabilities), probabilities=probabilities)
        return Answer(label=self.decisions.choose(probabilities), probabilities=probabilities)

    @property
    def answer_kind(self) -> AnswerKind:
        return "label_set" if self.multi_label else "label"

    def probe_task(self) -> Self:
        return dataclasses.replace(self, long_text="truncate")

    def merge_remarks(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        remarks = merge_text_remarks(
            self.text_columns(), tokenizer, max_length=self.max_length, long_text=self.long_text
        )
        if self.loss == "bce" and not self.multi_label:
            remarks.append(
                "The probabilities of a pipeline are a softmax of the logits, "
                "not a normalised sigmoid; the label is the same."
            )
        return [*remarks, *super().merge_remarks(tokenizer)]

    @property
    def score_names(self) -> tuple[str, ...]:
        return metrics.LABEL_SET_SCORES if self.multi_label else metrics.LABEL_SCORES

    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        golds = [self.gold_of(row) for row in rows]
        if not self.multi_label:
            return self._closed_set_rows(answers, golds).scores()
        predicted = [answer.labels or () for answer in answers]
        probabilities = [answer.probabilities or {} for answer in answers]
        scores = metrics.label_set_scores(golds, predicted, self._known_labels)
        return {**scores, "ece": metrics.label_set_calibration(golds, probabilities)}

    def scorer(
        self, answers: Sequence[Answer], rows: Sequence[Row]
    ) -> Callable[[Sequence[int]], dict[str, float]]:
        if self.multi_label or type(self).score is not Classification.score:
            return super().scorer(answers, rows)
        once = self._closed_set_rows(answers, [self.gold_of(row) for row in rows])
        return lambda chosen: once.scores(np.asarray(chosen))

    def _closed_set_rows(
        self, answers: Sequence[Answer], golds: Sequence[tuple[str, ...]]
    ) -> metrics.ClosedSetRows:
        return metrics.ClosedSetRows.of(
            [gold[0] for gold in golds],
            [answer.label for answer in answers],
            [answer.probabilities or {} for answer in answers],
            self._known_labels,
        )

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        decisions = fit_decisions(
            answers,
            [self.gold_of(row) for row in rows],
            self._known_labels,
            self.decisions,
            several=self.multi_label,
            min_accuracy=min_accuracy,
        )
        return dataclasses.replace(self, decisions=decisions)


def _log_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.logsigmoid(logits)

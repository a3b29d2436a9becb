"""The base class of all tasks: what a row means to a model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import datasets
import pyarrow as pa

from peftcls.data.reading import Row
from peftcls.data.tables import Rows
from peftcls.engine.model_choices import Pooling
from peftcls.tasks.answer_columns import columns_of, values_of
from peftcls.tasks.answers import Answer, AnswerKind
from peftcls.tasks.decisions import PLAIN, Decisions
from peftcls.tasks.descriptions import describe_fields

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from peftcls.engine.batch import Batch
    from peftcls.engine.model_state import BaseFacts

Feature = dict[str, Any]
ANOTHER_VERSION = "the folder was written by another version of peftcls."
UNSUPPORTED_POOLING = (
    "its head reads {pooling!r} of the tokens (pooling={pooling!r}), "
    "and that of transformers would read the last one"
)
UNSUPPORTED_MASK = (
    "its tokens see the whole text (causal=False), "
    "and those of transformers would see only what precedes them"
)
DECISIONS_REMARK = (
    "Temperature, thresholds and abstention, which were fitted, are not applied; "
    "the likeliest label is given."
)


class Task(ABC):
    """What a row means. Instances are frozen dataclasses: the adapter folder stores their fields.

    A *feature* is one tokenized row: `input_ids`, whatever else the model reads, and with a target
    `weight`, its share in the loss. The loss of a step is the sum of `loss_sum` over its rows,
    divided by the sum of their weights.
    """

    monitor: ClassVar[str]
    """The score that decides which step was best; higher is better."""
    new_head: ClassVar[bool]
    """Whether the model gets a new head, which is trained with the adapter."""
    auto_model: ClassVar[Any]
    """The transformers Auto class that builds the model."""
    peft_type: ClassVar[str]
    """The task type that PEFT writes into its own configuration."""
    pipeline_tag: ClassVar[str] = "text-classification"
    """The name of the task on the Hugging Face hub, for the model card."""
    place_columns: ClassVar[tuple[str, ...]] = ()
    """Optional columns that help to find a row in its file, such as an id; messages show them."""
    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that are read where a table has them."""

    # Settings that most tasks have as fields. These are the values for the tasks that do not.
    labels: tuple[str, ...] | None = None
    max_length: int = 0
    multi_label: bool = False
    separator: str | None = None
    pooling: Pooling | None = None
    causal: bool = True
    decisions: Decisions = PLAIN
    weight: str | None = None

    @abstractmethod
    def columns(self, *, with_target: bool) -> list[str]:
        """The columns that a row must have."""

    def columns_among(self, names: Collection[str], *, with_target: bool) -> list[str]:
        """The columns that a row must have, and the optional ones that are among these names."""
        columns = self.columns(with_target=with_target)
        present = [name for name in self.optional_columns if name in names]
        return list(dict.fromkeys([*columns, *present]))

    def text_columns(self) -> tuple[str, ...]:
        """The columns with the texts that the model reads."""
        return tuple(self.columns(with_target=False))

    def target_columns(self) -> tuple[str, ...]:
        """The columns with the right answer; several where each label is a column of its own."""
        read = self.columns(with_target=False)
        columns = self.columns(with_target=True)
        return tuple(name for name in columns if name not in read) or (columns[-1],)

    def learn(self, rows: Rows) -> Self:
        """A copy with the settings that the rows determine; itself where none is missing."""
        return self

    def extended(self, rows: datasets.Dataset) -> Self:
        """A copy for continual training on these rows: new labels are added after the old ones."""
        return self

    @abstractmethod
    def problem(self, row: Row, *, with_target: bool) -> str | None:
        """What is wrong with a row, in the words that follow `row 17 of train.csv`, or None."""

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        """What is wrong with the training rows as a whole, in words that follow the file's name."""
        return None

    def model_settings(self) -> dict[str, Any]:
        """Settings of the model's configuration that the task decides."""
        return {}

    @abstractmethod
    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        """Rows made from bare texts, for prediction without column names.

        Raises:
            RowError: one of them is not a text.
        """

    @abstractmethod
    def text_of(self, row: Row) -> str:
        """All texts of a row as one text: the input of a baseline without a model."""

    @abstractmethod
    def gold_of(self, row: Row) -> tuple[str, ...]:
        """The right answer to a row: one label or text, or several."""

    def split_key(self, row: Row) -> str:
        """Rows with the same key are never split between training and test rows."""
        return self.text_of(row)

    def strata(self, golds: Sequence[tuple[str, ...]]) -> Sequence[Sequence[int]]:
        """Groups of indices into `golds`; a split takes the same share of each group.

        Rows of one label form a group. A row with several labels belongs to its rarest one.
        """
        if not self.labels:
            return [range(len(golds))]
        counts = Counter(name for gold in golds for name in gold)
        groups: dict[str, array[int]] = {}
        for i, gold in enumerate(golds):
            rarest = min(gold, key=lambda name: (counts[name], name), default="")
            groups.setdefault(rarest, array("q")).append(i)
        names = sorted(groups, key=lambda name: (-len(groups[name]), name))
        return [groups[name] for name in names]

    @property
    def reads_windows(self) -> bool:
        """Whether a text longer than `max_length` is read in overlapping windows."""
        return False

    def encode(self, row: Row, tokenizer: PreTrainedTokenizerBase, *, with_target: bool) -> Feature:
        """Tokenize one row.

        Raises:
            RowError: it cannot be shortened enough; the message does not name the row.
        """
        return next(self.encode_many([row], tokenizer, with_target=with_target))

    @abstractmethod
    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        """Tokenize rows together, which is faster than one by one; yields features in their order.

        Raises:
            RowError: when it is the turn of a row that cannot be shortened enough.
        """

    @abstractmethod
    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Features as tensors of shape (rows, tokens), padded on the tokenizer's side."""

    def shared_tokens(self, model: torch.nn.Module, features: Sequence[Feature]) -> int:
        """The length of the common prefix of these rows that the model can compute once for all."""
        return 0

    @abstractmethod
    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The sum (not the mean) of the losses of a batch's targets, in float32 or wider."""

    def loss_of_logits(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The same sum from the logits of a linear head, of shape (rows, outputs).

        A task that has it can start from a linear probe; see `TrainConfig.head_init`.
        """
        raise NotImplementedError

    def label_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
        """The tokens of each label, where a language model answers with one of them."""
        raise NotImplementedError

    @abstractmethod
    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        """The answers to a batch that was encoded without targets, in its order."""

    def decode_logits(
        self,
        logits: torch.Tensor,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        """The answers to a batch from logits that another program computed, as `decode` gives.

        Args:
            logits: of shape (sequences, outputs), or (sequences, tokens, 2) for the ends of spans.
            batch: as for `decode`.
            features: as for `decode`.
            tokenizer: as for `decode`.
        """
        raise NotImplementedError

    @property
    def answer_kind(self) -> AnswerKind:
        """What an answer is; reports, baselines and output files depend on it."""
        if self.multi_label:
            return "label_set"
        return "label" if self.labels else "text"

    def answer_columns(self, *, probabilities: bool) -> dict[str, pa.DataType]:
        """The names and types of the columns that answers fill in an output file.

        Args:
            probabilities: whether each label gets a column with its probability.
        """
        return columns_of(self.answer_kind, self.labels or (), probabilities=probabilities)

    def answer_values(self, answer: Answer, *, probabilities: bool) -> list[Any]:
        """The values of one answer, in the order of `answer_columns`.

        An abstention has no label, and the probability of its likeliest label.
        """
        return values_of(self.answer_kind, answer, probabilities=probabilities)

    @property
    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """The names of the scores that `score` gives and that can decide which step is best."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        """Scores by name, `monitor` among them."""

    def scorer(
        self, answers: Sequence[Answer], rows: Sequence[Row]
    ) -> Callable[[Sequence[int]], dict[str, float]]:
        """A function that scores the rows with given numbers; a bootstrap asks it many times."""

        def score_of(chosen: Sequence[int]) -> dict[str, float]:
            return self.score([answers[i] for i in chosen], [rows[i] for i in chosen])

        return score_of

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        """A copy whose decisions fit these answers to rows that were not trained on.

        Raises:
            ValueError: the task decides nothing, or these rows cannot tell how to decide.
        """
        raise ValueError(
            f"{type(self).__name__} gives no probabilities of labels here, "
            "so there is nothing to calibrate."
        )

    def probe_task(self) -> Self:
        """The task for probe texts: itself, or a copy that truncates instead of reading windows."""
        return self

    @property
    def can_compare(self) -> bool:
        """Whether its rows are pairs of texts that a head could compare (`pooling="compare"`)."""
        return False

    def on_base(self, base: BaseFacts) -> Self:
        """The task for a model of this base, which decides what the head reads if nobody else did.

        Raises:
            ValueError: the model was loaded for a task with another `pooling`.
        """
        compares = base.pooling == "compare"
        if compares and self.pooling is None:
            instance: Any = self
            compared: Self = dataclasses.replace(instance, pooling="compare")
            return compared
        if compares != (self.pooling == "compare"):
            raise ValueError(
                f"the model was loaded for a task with pooling={base.pooling!r}, and this one has "
                f"pooling={self.pooling!r}; give the same task to load_base and Trainer."
            )
        return self

    def fixed_columns(self) -> set[str]:
        """Columns that are never shortened."""
        return set()

    def head_logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The logits of the head for a batch, of shape (rows, outputs)."""
        from peftcls.engine.head_logits import class_logits

        return class_logits(model, batch, self.pooling, causal=self.causal)

    def raw_logits(self, model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
        """The logits that peftcls computes for a batch, one tensor per row or window."""
        return list(self.head_logits(model, batch))

    def plain_logits(self, output: Any, batch: Batch) -> list[torch.Tensor]:
        """The same logits, out of what a plain transformers model returned for the batch."""
        return list(output.logits)

    def merge_obstacle(self, causal: bool) -> str | None:
        """Why a plain transformers model could not give the same answers, or None.

        Args:
            causal: whether the base model is a decoder.
        """
        if causal and self.pooling not in (None, "last"):
            return UNSUPPORTED_POOLING.format(pooling=self.pooling)
        if not self.causal:
            return UNSUPPORTED_MASK
        return None

    def merge_remarks(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What a plain transformers model does otherwise than peftcls, in one sentence each."""
        return [DECISIONS_REMARK] if self.decisions != PLAIN else []

    def __repr__(self) -> str:
        return describe_fields(self)

    def for_comparison(self) -> Self:
        """A copy whose answers are the same up to rounding where models are; itself for most."""
        return self

    def to_json(self) -> dict[str, Any]:
        """The task's name and fields, for the adapter folder."""
        instance: Any = self
        return {"name": type(self).__name__, **dataclasses.asdict(instance)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The task that `to_json` described; lists become tuples again."""
        values = {name: value for name, value in fields.items() if name != "name"}
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no {unknown}; {ANOTHER_VERSION}")
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)


def token_limit(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Tokens of one sequence: `max_length`, or fewer where the model has fewer positions.

    `load_base` writes the number of positions into the tokenizer.
    """
    return min(max_length, tokenizer.model_max_length)


def pad(sequences: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """Pad integer sequences to a tensor of shape (sequences, longest one).

    Args:
        sequences: the sequences.
        value: the padding.
        side: of the padding, "right" or "left".
    """
    import torch

    width = max(len(sequence) for sequence in sequences)
    padded = []
    for sequence in sequences:
        padding = [value] * (width - len(sequence))
        if side == "right":
            padded.append([*sequence, *padding])
        else:
            padded.append([*padding, *sequence])
    return torch.tensor(padded, dtype=torch.long)


def pad_inputs(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The model's inputs: token ids, attention mask, and token types where the features have them.

    Returns:
        Tensors of shape (features, tokens).
    """
    side = tokenizer.padding_side
    ids = [feature["input_ids"] for feature in features]
    ones = [[1] * len(sequence) for sequence in ids]
    batch = {
        "input_ids": pad(ids, int(tokenizer.pad_token_id), side),
        "attention_mask": pad(ones, 0, side),
    }
    if "token_type_ids" in features[0]:
        types = [feature["token_type_ids"] for feature in features]
        batch["token_type_ids"] = pad(types, 0, side)
    return batch


def without_padding(logits: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Cut logits of shape (sequences, tokens, outputs) to the real tokens of each sequence."""
    return [row[real] for row, real in zip(logits, mask.bool(), strict=True)]

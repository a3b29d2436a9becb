"""The task: the one class that is subclassed, and the answer that every task gives."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row
from peftcls.engine.batch import Batch

Feature = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says about one row; a task fills in the fields that it gives."""

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


class Task(ABC):
    """What a row means. Instances are frozen dataclasses: their fields are all that has to be stored.

    A *feature* is one row in tokens: `input_ids`, whatever else the model reads, and with a target `weight`, its share
    in the loss. The loss of a step is the sum of `loss_sum` over its rows divided by the sum of their weights.
    """

    monitor: ClassVar[str]
    """The score that decides which step was best; higher is better."""
    new_head: ClassVar[bool]
    """Whether the model gets a head of its own, trained with the adapter."""
    auto_model: ClassVar[Any]
    """The transformers Auto class that builds the model."""
    peft_type: ClassVar[str]
    """The task type that PEFT writes into its own configuration."""
    place_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that, where they are there, say where a row stands in its file."""

    @abstractmethod
    def columns(self, *, with_target: bool) -> list[str]:
        """The columns that a row must have."""

    def learn(self, rows: datasets.Dataset | Iterable[Mapping[str, Any]]) -> Self:
        """A copy with what the rows determine filled in; itself where nothing is missing."""
        return self

    def extended(self, rows: datasets.Dataset) -> Self:
        """A copy that can also learn these rows when it has learnt others: new labels are added behind its own."""
        return self

    @abstractmethod
    def problem(self, row: Row, *, with_target: bool) -> str | None:
        """What is wrong with a row, in the words that follow `row 17 of train.csv`; None where nothing is."""

    def table_problem(self, rows: datasets.Dataset) -> str | None:
        """What is wrong with the training rows as a whole, in the words that follow the file's name."""
        return None

    def model_settings(self) -> dict[str, Any]:
        """Settings of the model's configuration that the task decides."""
        return {}

    @abstractmethod
    def rows_of(self, texts: Sequence[Any]) -> list[Row]:
        """Rows made from bare texts, for prediction without column names. Raises RowError where they are not texts."""

    @abstractmethod
    def text_of(self, row: Row) -> str:
        """All that a reader of the row sees, as one text: what a baseline without a model works from."""

    @abstractmethod
    def gold_of(self, row: Row) -> tuple[str, ...]:
        """What is right for a row: one label or text, or several."""

    def encode(self, row: Row, tokenizer: PreTrainedTokenizerBase, *, with_target: bool) -> Feature:
        """One row in tokens. Raises RowError, without the row's place, for what no shortening can fit."""
        return next(self.encode_many([row], tokenizer, with_target=with_target))

    @abstractmethod
    def encode_many(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, with_target: bool
    ) -> Iterator[Feature]:
        """Rows in tokens, in their order: a tokenizer reads many texts at once on all cores. RowError is raised in a row's turn."""

    @abstractmethod
    def collate(self, features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Features, padded on the tokenizer's side, as tensors of shape (rows, tokens)."""

    def shared_tokens(self, model: torch.nn.Module, features: Sequence[Feature]) -> int:
        """How many first tokens, the same in all these rows, the model can read once for all of them."""
        return 0

    @abstractmethod
    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The sum of the losses of a batch's targets, in float32 or wider; no mean is taken here."""

    @abstractmethod
    def decode(
        self,
        model: torch.nn.Module,
        batch: Batch,
        features: Sequence[Feature],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:
        """The answers to a batch encoded without targets, in its order."""

    @property
    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """The names of the scores that `score` gives and that a run can be judged by."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], rows: Iterable[Row]) -> dict[str, float]:
        """Scores by name, `monitor` among them."""

    def calibrated(
        self, answers: Sequence[Answer], rows: Iterable[Row], *, min_accuracy: float | None = None
    ) -> Self:
        """A copy that decides as suits these answers to rows that were not learnt from; ValueError where nothing is decided."""
        raise ValueError(
            f"{type(self).__name__} gives no probabilities of labels here, so there is nothing to calibrate."
        )

    def to_json(self) -> dict[str, Any]:
        """The task's name and fields, for the adapter folder."""
        return {"name": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The task that `to_json` described; lists become the tuples that they were."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := set(fields) - known - {"name"}:
            raise ValueError(
                f"{cls.__name__} has no {sorted(unknown)}; the folder was written by another version of peftcls."
            )
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "name"}
        )


def token_limit(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """The tokens that may be read at once: `max_length`, or fewer where the model has fewer positions (see `load_base`)."""
    return min(max_length, tokenizer.model_max_length)


def pad(sequences: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """Integer sequences as a tensor of shape (rows, longest), filled with `value` on the given side."""
    width = max(len(sequence) for sequence in sequences)
    padded = [
        [*s, *[value] * (width - len(s))] if side == "right" else [*[value] * (width - len(s)), *s]
        for s in sequences
    ]
    return torch.tensor(padded, dtype=torch.long)


def pad_inputs(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The model's inputs: token ids, the mask of real tokens, and token types where there are any."""
    side = tokenizer.padding_side
    batch = {
        "input_ids": pad([f["input_ids"] for f in features], int(tokenizer.pad_token_id), side),
        "attention_mask": pad([[1] * len(f["input_ids"]) for f in features], 0, side),
    }
    if "token_type_ids" in features[0]:
        batch["token_type_ids"] = pad([f["token_type_ids"] for f in features], 0, side)
    return batch

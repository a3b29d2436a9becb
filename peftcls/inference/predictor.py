"""Answers from a saved adapter, in another program than the one that trained it."""

import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.engine import frozen_cache
from peftcls.engine.allocator import trim_heap
from peftcls.engine.batching import micro_batches
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.encoding import encode_rows
from peftcls.tasks.row_checks import check_rows

CHUNK_ROWS = 4096  # rows in tokens at a time, so that a table of any length takes the same memory


class Predictor:
    """A model, its task and its tokenizer, ready to answer."""

    def __init__(
        self, model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model, self.task, self.tokenizer = model, task, tokenizer
        self.shortened_rows = 0
        """Of the rows answered last, how many had more tokens than are read."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of the head's outputs; empty where the task has none."""
        return tuple(getattr(self.task, "labels", None) or ())

    def predict(
        self,
        rows: datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]],
        *,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """One answer a row, in the rows' order.

        Args:
            rows: a table, mappings with the task's columns, or bare texts (pairs of texts for a pair task).
            batch_size: at most this many rows at once; rows of similar length are put together either way, and the
                answers do not depend on it.

        Raises:
            RowError: a column is missing or a text is empty; nothing has been predicted then.
        """
        return [answer for chunk in self.stream(rows, batch_size=batch_size) for answer in chunk]

    def stream(
        self,
        rows: datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]],
        *,
        first: int = 0,
        chunk_rows: int = CHUNK_ROWS,
        batch_size: int | None = None,
    ) -> Iterator[list[Answer]]:
        """The same answers, a chunk of rows at a time, so that they need not be in memory together.

        Args:
            rows: as in `predict`; all of them are checked before the first is answered.
            first: the index of the row to begin with.
            chunk_rows: answers that come together.
            batch_size: as in `predict`.

        Raises:
            RowError: as in `predict`.
        """
        table, self.shortened_rows = self._table(rows), 0
        if len(table) == 0:
            return
        check_rows(self.task, table, with_target=False)
        table = table.select_columns(self.task.columns(with_target=False))
        for start in range(first, len(table), chunk_rows):
            chunk: list[Row] = table.select(
                range(start, min(start + chunk_rows, len(table)))
            ).to_list()
            encoded = list(
                encode_rows(
                    self.task,
                    chunk,
                    self.tokenizer,
                    source=source_name(table),
                    numbers=itertools.count(start + 1),
                )
            )
            self.shortened_rows += sum(feature["shortened"] for feature in encoded)
            yield self.answer(encoded, batch_size)
            if start + chunk_rows >= len(table):
                break  # a request of a few rows does not pay for what keeps a long table's memory constant
            if start // CHUNK_ROWS < (start + chunk_rows) // CHUNK_ROWS:
                gc.collect()  # what is left of calls of a model holds itself, and is many small things among few large ones
            trim_heap()  # or what batches of all widths leave between them adds up, a GiB in a million rows

    def _table(self, rows: Any) -> datasets.Dataset:
        if isinstance(rows, str | Mapping):
            raise RowError(
                f"expected a list of texts or rows, found one {type(rows).__name__}; put it into a list."
            )
        if isinstance(rows, datasets.Dataset):
            return rows
        listed = list(rows)
        if not listed:
            return datasets.Dataset.from_dict({})
        return as_dataset(
            listed if all(isinstance(row, Mapping) for row in listed) else self.task.rows_of(listed)
        )

    @torch.inference_mode()
    def answer(self, features: Sequence[Feature], batch_size: int | None = None) -> list[Answer]:
        """One answer a feature; `predict` is for rows."""
        device = next(self.model.parameters()).device
        self.model.eval()
        answers: dict[int, Answer] = {}
        lengths = [len(feature["input_ids"]) for feature in features]
        shared = self.task.shared_tokens(self.model, features)
        for batch in micro_batches(
            range(len(features)),
            lengths,
            rows=batch_size,
            tokens=batch_tokens(device),
            shared=shared,
            call_tokens=call_tokens(device),
        ):
            chosen = [features[i] for i in batch]
            inputs = {
                name: tensor.to(device)
                for name, tensor in self.task.collate(chosen, self.tokenizer).items()
            }
            with frozen_cache.reading(self.model, inputs) as inputs:
                answers |= zip(
                    batch, self.task.decode(self.model, inputs, chosen, self.tokenizer), strict=True
                )
        return [answers[i] for i in range(len(features))]

"""Predict with one saved adapter: rows are checked, tokenized, batched and answered."""

import gc
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.engine.allocator import trim_heap
from peftcls.engine.batching import micro_batches
from peftcls.engine.frozen_layers import using_cached_states
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.engine.model_state import state_of
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.encoding import encode_rows
from peftcls.tasks.row_checks import check_rows

# Rows that are tokenized at a time, so that a table of any length takes the same memory.
CHUNK_ROWS = 4096
# Held while rows are tokenized: a fast tokenizer keeps its truncation setting between calls, so two
# threads that ask for different ones would disturb each other. It uses all cores by itself.
TOKENIZER_LOCK = threading.RLock()


class Predictor:
    """Answers rows with a model, its task and its tokenizer.

    Several threads can use one predictor: the model computes one micro-batch at a time, and the
    answers are those that one thread gets.
    """

    def __init__(
        self, model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model = model
        self.task = task
        self.tokenizer = tokenizer
        self.shortened_rows = 0
        """How many rows of the last call had more tokens than are read."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of the head's outputs; empty where the task has none."""
        return tuple(self.task.labels or ())

    def predict(
        self,
        rows: datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]],
        *,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer rows: one answer a row, in the rows' order.

        Args:
            rows: a table, mappings with the task's columns, or bare texts (pairs of texts for a
                pair task).
            batch_size: at most this many rows at once. Rows of similar length share a batch either
                way, and the answers do not depend on it.

        Raises:
            RowError: a column is missing or a text is empty; nothing has been predicted then.
        """
        answers: list[Answer] = []
        for chunk in self.stream(rows, batch_size=batch_size):
            answers += chunk
        return answers

    def stream(
        self,
        rows: datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]],
        *,
        first: int = 0,
        chunk_rows: int = CHUNK_ROWS,
        batch_size: int | None = None,
    ) -> Iterator[list[Answer]]:
        """Answer rows a chunk at a time, so that not all answers are in memory together.

        Args:
            rows: as in `predict`; all of them are checked before the first is answered.
            first: the index of the row to begin with.
            chunk_rows: how many answers are given at a time.
            batch_size: as in `predict`.

        Raises:
            RowError: as in `predict`.
        """
        table = self._table(rows)
        # Counted here and stored at the end of a chunk: another thread may be counting too.
        shortened = 0
        if len(table) == 0:
            self.shortened_rows = shortened
            return
        check_rows(self.task, table, with_target=False)
        table = table.select_columns(self.task.columns(with_target=False))
        for start in range(first, len(table), chunk_rows):
            end = min(start + chunk_rows, len(table))
            features = tokenize_rows(
                self.task,
                table.select(range(start, end)).to_list(),
                self.tokenizer,
                source=source_name(table),
                numbers=itertools.count(start + 1),
            )
            shortened += sum(feature["shortened"] for feature in features)
            answers = self.answer(features, batch_size)
            self.shortened_rows = shortened
            yield answers
            if end == len(table):
                # A request of a few rows does not pay for keeping a long table's memory constant.
                return
            _free_memory(start, end)

    def _table(self, rows: Any) -> datasets.Dataset:
        if isinstance(rows, datasets.Dataset):
            return rows
        listed = list_rows(rows)
        if not listed:
            return datasets.Dataset.from_dict({})
        if not all(isinstance(row, Mapping) for row in listed):
            listed = self.task.rows_of(listed)
        return as_dataset(listed)

    @torch.inference_mode()
    def answer(self, features: Sequence[Feature], batch_size: int | None = None) -> list[Answer]:
        """Answer rows that are tokenized already: one answer a feature, in their order."""
        device = next(self.model.parameters()).device
        lock = state_of(self.model).lock
        with lock:
            self.model.eval()
            shared = self.task.shared_tokens(self.model, features)
        batches = micro_batches(
            range(len(features)),
            [len(feature["input_ids"]) for feature in features],
            rows=batch_size,
            tokens=batch_tokens(device),
            shared=shared,
            call_tokens=call_tokens(device),
        )
        answers: dict[int, Answer] = {}
        for batch in batches:
            chosen = [features[i] for i in batch]
            collated = self.task.collate(chosen, self.tokenizer)
            inputs = {name: tensor.to(device) for name, tensor in collated.items()}
            # Threads take turns: a model can compute one batch at a time.
            with lock, using_cached_states(self.model, inputs) as model_inputs:
                decoded = self.task.decode(self.model, model_inputs, chosen, self.tokenizer)
            answers.update(zip(batch, decoded, strict=True))
        return [answers[i] for i in range(len(features))]


def list_rows(rows: Any) -> list[Any]:
    """Rows or texts as a list. Raises RowError where one text or one row is given instead."""
    if isinstance(rows, str | Mapping):
        raise RowError(
            f"expected a list of texts or rows, found one {type(rows).__name__}; "
            "put it into a list."
        )
    return list(rows)


def tokenize_rows(
    task: Task,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    numbers: Iterable[int],
) -> list[Feature]:
    """Tokenize rows without targets, one thread at a time; arguments as of `encode_rows`."""
    with TOKENIZER_LOCK:
        return list(encode_rows(task, rows, tokenizer, source=source, numbers=numbers))


def _free_memory(start: int, end: int) -> None:
    """Keep the memory of a long table constant, between two chunks of its rows."""
    if start // CHUNK_ROWS < end // CHUNK_ROWS:
        # What a call of a model leaves behind refers to itself: many small objects among few
        # large ones.
        gc.collect()
    # Otherwise the gaps that batches of different widths leave add up, to a GiB in a million rows.
    trim_heap()

"""Predict with one saved adapter: rows are checked, tokenized, batched and answered."""

import gc
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.data.row_numbers import row_numbers
from peftcls.data.tables import RowsOrTexts, table_of
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
# Held while rows are made into a table and tokenized. A fast tokenizer keeps its truncation setting
# between calls, so two threads that ask for different ones would disturb each other; it uses all
# cores by itself. And to hash a table, `datasets` redirects the standard output for a moment.
ROWS_LOCK = threading.RLock()


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
        rows: RowsOrTexts,
        *,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer rows: one answer a row, in the rows' order.

        Args:
            rows: a DataFrame of pandas or polars, a `datasets.Dataset`, a mapping of columns to
                lists, mappings with the task's columns, or bare texts (pairs of texts for a pair
                task). One row, text or pair is answered too.
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
        rows: RowsOrTexts,
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
        table = rows_to_answer(self.task, rows)
        # Counted here and stored at the end of a chunk: another thread may be counting too.
        shortened = 0
        if len(table) == 0:
            self.shortened_rows = shortened
            return
        check_rows(self.task, table, with_target=False)
        numbers = row_numbers(table)
        table = table.select_columns(self.task.columns(with_target=False))
        for start in range(first, len(table), chunk_rows):
            end = min(start + chunk_rows, len(table))
            features = tokenize_rows(
                self.task,
                table.select(range(start, end)).to_list(),
                self.tokenizer,
                source=source_name(table),
                numbers=numbers[start:end],
            )
            shortened += sum(feature["shortened"] for feature in features)
            answers = self.answer(features, batch_size)
            self.shortened_rows = shortened
            yield answers
            if end == len(table):
                # A request of a few rows does not pay for keeping a long table's memory constant.
                return
            _free_memory(start, end)

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


def rows_to_answer(task: Task, rows: Any) -> datasets.Dataset:
    """Rows as a table with the columns of a task; empty if there are none.

    Args:
        task: whose columns bare texts get.
        rows: as `Predictor.predict` takes them.

    Raises:
        RowError: they are no rows.
    """
    with ROWS_LOCK:
        table = table_of(rows, "rows")
        if table is not None:
            return table
        listed = list_rows(rows, task)
        if not listed:
            return datasets.Dataset.from_dict({})
        if not all(isinstance(row, Mapping) for row in listed):
            listed = task.rows_of(listed)
        return as_dataset(listed)


def list_rows(rows: Any, task: Task) -> list[Any]:
    """Rows or texts as a list; of one row, one text or one pair of texts too.

    Raises:
        RowError: they are none of these.
    """
    if isinstance(rows, str | Mapping):
        return [rows]
    if not isinstance(rows, Iterable) or isinstance(rows, bytes):
        raise RowError(
            "expected texts, rows or a table (a DataFrame, a datasets.Dataset, a dict of columns), "
            f"found {type(rows).__name__}."
        )
    listed = list(rows)
    is_one_text_each = all(isinstance(text, str) for text in listed)
    if is_one_text_each and len(listed) == len(task.columns(with_target=False)) > 1:
        return [listed]
    return listed


def tokenize_rows(
    task: Task,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    numbers: Iterable[int],
) -> list[Feature]:
    """Tokenize rows without targets, one thread at a time; arguments as of `encode_rows`."""
    with ROWS_LOCK:
        return list(encode_rows(task, rows, tokenizer, source=source, numbers=numbers))


def _free_memory(start: int, end: int) -> None:
    """Keep the memory of a long table constant, between two chunks of its rows."""
    if start // CHUNK_ROWS < end // CHUNK_ROWS:
        # What a call of a model leaves behind refers to itself: many small objects among few
        # large ones.
        gc.collect()
    # Otherwise the gaps that batches of different widths leave add up, to a GiB in a million rows.
    trim_heap()

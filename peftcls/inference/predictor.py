"""Predict with one saved adapter: rows are checked, tokenized, batched and answered."""

import functools
import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import SUFFIXES, Row, RowError, as_dataset, source_name
from peftcls.data.row_batches import each_row
from peftcls.data.row_numbers import row_numbers
from peftcls.data.tables import RowsOrTexts, split_of, table_of
from peftcls.engine.allocator import trim_heap
from peftcls.engine.batch import Batch
from peftcls.engine.batching import micro_batches
from peftcls.engine.embeddings import head_states, mean_states
from peftcls.engine.frozen_layers import using_cached_states
from peftcls.engine.head_inputs import head_layer
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.engine.model_state import state_of, unwrapped
from peftcls.engine.sharding import watching_others
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.encoding import encode_rows
from peftcls.tasks.row_checks import check_rows

# Rows that are tokenized at a time, so that a table of any length takes the same memory.
CHUNK_ROWS = 4096
MAX_PATH_CHARACTERS = 1000
AN_EVALUATION = "an evaluation"
"""What a process computes while it waits for others, in messages."""
# Held while rows are made into a table and tokenized. A fast tokenizer keeps its truncation setting
# between calls, so two threads that ask for different ones would disturb each other; it uses all
# cores by itself. And to hash a table, `datasets` redirects the standard output for a moment.
ROWS_LOCK = threading.RLock()
Result = TypeVar("Result")
Compute = Callable[[Batch, Sequence[Feature]], Sequence[Result]]
"""Gives one result for each feature of a batch."""


class Predictor:
    """Answers rows with a model, its task and its tokenizer.

    Several threads can use one predictor: the model computes one micro-batch at a time, and the
    answers are those that one thread gets.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        *,
        load: functools.partial[Any] | None = None,
    ) -> None:
        """`load` loads the same predictor again; None where it does not come from a folder."""
        self.model = model
        self.task = task
        self.tokenizer = tokenizer
        self.shortened_rows = 0
        """How many rows of the last call had more tokens than are read."""
        self._load = load

    def __call__(self, rows: RowsOrTexts, *, batch_size: int | None = None) -> list[Answer]:
        """Answer rows, as `predict` does."""
        return self.predict(rows, batch_size=batch_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return how_to_load(self._load)

    def __repr__(self) -> str:
        device = next(self.model.parameters()).device
        return f"Predictor({self.task}, {describe_base(self.model)}, device={str(device)!r})"

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
        table = self._checked(rows)
        self.shortened_rows = 0
        # Counted here and stored at the end of a chunk: another thread may be counting too.
        shortened = 0
        if len(table) == 0:
            return
        for features in self._tokenized(table, first, chunk_rows):
            shortened += _count_shortened(features)
            answers = self.answer(features, batch_size)
            self.shortened_rows = shortened
            yield answers

    @torch.inference_mode()
    def embed(self, rows: RowsOrTexts, *, batch_size: int | None = None) -> np.ndarray:
        """One vector for each row: float32 of shape (rows, width), in the rows' order.

        For labels and numbers it is what the last layer of the head reads, after pooling: rows that
        the head treats alike are close to each other. For answers in documents, for instructions,
        and for a head that is no linear layer it is the mean of the last layer's states over the
        tokens of the row. The vectors of a long text's windows are averaged.

        Args:
            rows: as in `predict`.
            batch_size: as in `predict`.

        Raises:
            RowError: as in `predict`.
        """
        table = self._checked(rows)
        with state_of(self.model).turns.lock:
            _stop_training(self.model)
        layer = None if self.task.answer_kind == "span" else head_layer(self.model)

        def read(batch: Batch, _: Sequence[Feature]) -> Sequence[np.ndarray]:
            if layer is None:
                states = mean_states(self.model, batch, causal=self.task.causal)
            else:
                states = head_states(layer, batch, lambda: self.task.raw_logits(self.model, batch))
            return list(states.cpu().numpy())

        vectors: list[np.ndarray] = []
        if len(table):
            for features in self._tokenized(table, 0, CHUNK_ROWS):
                vectors += self._in_batches(features, batch_size, read)
        if vectors:
            return np.stack(vectors)
        config: Any = unwrapped(self.model).config
        width = config.hidden_size if layer is None else layer.in_features
        return np.empty((0, width), np.float32)

    def _checked(self, rows: RowsOrTexts) -> datasets.Dataset:
        """Rows as a table. Raises RowError for wrong rows."""
        table = rows_to_answer(self.task, rows)
        if len(table) > 0:
            check_rows(self.task, table, with_target=False)
        return table

    def _tokenized(
        self, table: datasets.Dataset, first: int, chunk_rows: int
    ) -> Iterator[list[Feature]]:
        """Tokenize rows that were checked, a chunk at a time."""
        for start in range(first, len(table), chunk_rows):
            end = min(start + chunk_rows, len(table))
            yield self._tokenize_part(table, start, end)
            if end == len(table):
                # A request of a few rows does not pay for keeping a long table's memory constant.
                return
            _free_memory(start, end)

    def answer_part(
        self, table: datasets.Dataset, start: int, end: int, *, batch_size: int | None = None
    ) -> list[Answer]:
        """Answer some rows of a long table that was checked, and count those that are shortened.

        Args:
            table: with the task's columns.
            start: the index of the first row.
            end: the index behind the last one.
            batch_size: as in `predict`.
        """
        features = self._tokenize_part(table, start, end)
        answers = self.answer(features, batch_size)
        self.shortened_rows += _count_shortened(features)
        if end - start < len(table):
            _free_memory(start, end)
        return answers

    def _tokenize_part(self, table: datasets.Dataset, start: int, end: int) -> list[Feature]:
        part = table if end - start == len(table) else table.select(range(start, end))
        columns = self.task.columns_among(table.column_names, with_target=False)
        return tokenize_rows(
            self.task,
            list(each_row(part, columns)),
            self.tokenizer,
            source=source_name(table),
            numbers=row_numbers(table)[start:end],
        )

    @torch.inference_mode()
    def answer(self, features: Sequence[Feature], batch_size: int | None = None) -> list[Answer]:
        """Answer rows that are tokenized already: one answer a feature, in their order."""
        device = next(self.model.parameters()).device

        def shared_tokens() -> int:
            _stop_training(self.model)
            return self.task.shared_tokens(self.model, features)

        shared = state_of(self.model).turns.compute(shared_tokens, device)

        def decode(batch: Batch, chosen: Sequence[Feature]) -> list[Answer]:
            return self.task.decode(self.model, batch, chosen, self.tokenizer)

        return self._in_batches(features, batch_size, decode, shared=shared)

    def _in_batches(
        self,
        features: Sequence[Feature],
        batch_size: int | None,
        compute: Compute[Result],
        *,
        shared: int = 0,
    ) -> list[Result]:
        """Compute something for each feature, in batches of similar lengths, and in their order.

        The model is in evaluation mode.

        Args:
            features: of the rows.
            batch_size: at most this many rows at once.
            compute: gives one result for each feature of a batch; the model is locked meanwhile.
            shared: how many first tokens of all features are computed once.
        """
        device = next(self.model.parameters()).device
        turns = state_of(self.model).turns
        batches = micro_batches(
            range(len(features)),
            [len(feature["input_ids"]) for feature in features],
            rows=batch_size,
            tokens=batch_tokens(device),
            shared=shared,
            call_tokens=call_tokens(device),
        )
        shares = state_of(self.model).shares
        results: dict[int, Result] = {}
        with watching_others(shares, AN_EVALUATION):
            for batch in batches if shares is None else shares.padded(batches):
                # A process that waits for others, which have more batches, computes its first row.
                chosen = [features[i] for i in batch or (0,)]
                # Threads take turns: a model can compute one batch at a time.
                computed = turns.compute(
                    functools.partial(self._compute_batch, chosen, compute, device), device
                )
                if batch is not None:
                    results.update(zip(batch, computed, strict=True))
            if shares is not None:
                shares.check_calls(AN_EVALUATION)
                shares.reset()
        return [results[i] for i in range(len(features))]

    def _compute_batch(
        self, chosen: Sequence[Feature], compute: Compute[Result], device: torch.device
    ) -> Sequence[Result]:
        collated = self.task.collate(chosen, self.tokenizer)
        inputs = {name: tensor.to(device) for name, tensor in collated.items()}
        with using_cached_states(self.model, inputs) as model_inputs:
            return compute(model_inputs, chosen)


def how_to_load(load: functools.partial[Any] | None) -> tuple[Any, ...]:
    """What a pickle of a predictor holds: its folder's path and the settings to load it with.

    Raises:
        TypeError: it does not come from a folder.
    """
    if load is None:
        raise TypeError(
            "this predictor was not loaded from a folder, so it cannot be pickled: a pickle holds "
            "the path of the folder, not the model. Save it, and use load_predictor(folder)."
        )
    return load, ()


def describe_base(model: torch.nn.Module) -> str:
    """The name of a model's base, in the words of a description."""
    facts = state_of(model).base
    return f"base={facts.name!r}" if facts else f"model={type(model).__name__}"


def rows_to_answer(task: Task, rows: Any) -> datasets.Dataset:
    """Rows as a table with the columns of a task; empty if there are none.

    Args:
        task: whose columns bare texts get.
        rows: as `Predictor.predict` takes them.

    Raises:
        RowError: they are no rows.
    """
    if isinstance(rows, Iterator):
        # What makes the rows may take long, or ask another thread for answers.
        rows = list(rows)
    with ROWS_LOCK:
        table = table_of(split_of(rows, "test"), "rows")
        if table is not None:
            return table
        listed = list_rows(rows, task)
        if not listed:
            return datasets.Dataset.from_dict({})
        if not all(isinstance(row, Mapping) for row in listed):
            listed = task.rows_of(listed)
        return as_dataset(listed)


def _is_table_file(text: str) -> bool:
    """Whether a text is the path of a table that is there, rather than what is to be answered."""
    is_short = len(text) < MAX_PATH_CHARACTERS and "\n" not in text
    return is_short and Path(text).suffix in SUFFIXES and Path(text).is_file()


def list_rows(rows: Any, task: Task) -> list[Any]:
    """Rows or texts as a list; of one row, one text or one pair of texts too.

    Raises:
        RowError: they are none of these.
    """
    if isinstance(rows, str) and _is_table_file(rows):
        raise RowError(
            f"{rows} is a file, expected rows or texts; read it with read_rows({rows!r})."
        )
    if isinstance(rows, str | Mapping):
        return [rows]
    # The answers to a set, which has no order, would belong to no row.
    if not isinstance(rows, Iterable) or isinstance(rows, bytes | set | frozenset):
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


def _stop_training(model: torch.nn.Module) -> None:
    """Put a model into evaluation mode, which takes a while where it is in it already."""
    if any(module.training for module in model.modules()):
        model.eval()


def _count_shortened(features: Sequence[Feature]) -> int:
    return sum(feature["shortened"] for feature in features)


def _free_memory(start: int, end: int) -> None:
    """Keep the memory of a long table constant, between two chunks of its rows."""
    if start // CHUNK_ROWS < end // CHUNK_ROWS:
        # What a call of a model leaves behind refers to itself: many small objects among few
        # large ones.
        gc.collect()
    # Otherwise the gaps that batches of different widths leave add up, to a GiB in a million rows.
    trim_heap()

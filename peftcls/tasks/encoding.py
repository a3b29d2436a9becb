"""Tokenize whole tables of rows; every error message names the row."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from peftcls.data.reading import Row, RowError, source_name, without_progress_bars
from peftcls.data.row_numbers import row_numbers
from peftcls.tasks.base import Feature, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKSUM_ROWS = 1000
MAX_CHUNK_ROWS = 256
MAX_CHUNK_CHARACTERS = 2**20


def encode_rows(
    task: Task,
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    numbers: Iterable[int],
    with_target: bool = False,
) -> Iterator[Feature]:
    """Tokenize rows in chunks.

    Args:
        task: the task, with what training rows determine filled in.
        rows: the rows.
        tokenizer: of the base model.
        source: the name of the file or table, for messages.
        numbers: the number of each row in `source`, from 1.
        with_target: whether the features are to be trained on.

    Raises:
        RowError: a row cannot be encoded; the message gives its number.
    """
    remaining_numbers = iter(numbers)
    for chunk in _chunks(rows):
        features = task.encode_many(chunk, tokenizer, with_target=with_target)
        for number in itertools.islice(remaining_numbers, len(chunk)):
            try:
                feature = next(features)
            except RowError as error:
                raise RowError(f"row {number} of {source} {error}.") from None
            yield feature


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows to tokenize together: the tokenizer's output takes many times the memory of the text."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(chunk) == MAX_CHUNK_ROWS or characters >= MAX_CHUNK_CHARACTERS:
            yield chunk
            chunk = []
            characters = 0
    if chunk:
        yield chunk


@dataclasses.dataclass(frozen=True)
class EncodedTable:
    """A tokenized table; its features are memory-mapped if the rows were.

    Args:
        features: one feature a row.
        lengths: tokens of each row.
        weights: of each row in the loss; zeros where the table has no targets.
        strata: the index of each row's label, for balanced sampling; None without it.
        shortened_rows: how many rows lost tokens.
        fingerprint: of the rows, the task, the base model and the tokenizer.
        sequences: how many sequences the model reads: the rows, or all their windows.
        numbers: the number of each row in its file, from 1.
    """

    features: datasets.Dataset
    lengths: np.ndarray
    weights: np.ndarray
    strata: np.ndarray | None
    shortened_rows: int
    fingerprint: str
    sequences: int
    numbers: Sequence[int]

    def take(self, indices: Sequence[int]) -> list[Feature]:
        """The features of these rows."""
        # Reading one row takes as long as reading ten rows at once.
        return _rows_of_columns(self.features[list(indices)])


def _rows_of_columns(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as a list of rows."""
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in rows]


def content_sum(rows: datasets.Dataset) -> str:
    """A short SHA-256 checksum of a table's content, the same for every copy of the table."""
    names = sorted(rows.column_names)
    checksum = hashlib.sha256(repr(names).encode())
    for batch in rows.select_columns(names).with_format("arrow").iter(CHECKSUM_ROWS):
        table = batch.replace_schema_metadata(None).combine_chunks()
        with pa.BufferOutputStream() as buffer:
            with pa.ipc.new_stream(buffer, table.schema) as stream:
                stream.write_table(table)
            checksum.update(buffer.getvalue())
    return checksum.hexdigest()[:16]


def encode_table(
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    base_fingerprint: str,
    *,
    with_target: bool = True,
) -> EncodedTable:
    """Tokenize all rows of a table.

    Args:
        task: the task, with what training rows determine filled in.
        rows: the table.
        tokenizer: of the base model.
        base_fingerprint: of the base model.
        with_target: whether the features are to be trained on; otherwise they are to be answered.

    Raises:
        RowError: a row cannot be encoded; the message names it.
    """
    fingerprint = _fingerprint(task, rows, tokenizer, base_fingerprint)
    if not with_target:
        fingerprint = f"{fingerprint}-inputs"
    source = source_name(rows)
    numbers = row_numbers(rows)
    columns = task.columns(with_target=with_target)
    if with_target and task.weight in rows.column_names:
        columns = [*columns, str(task.weight)]

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        encoded = encode_rows(
            task,
            _rows_of_columns(batch),
            tokenizer,
            source=source,
            numbers=[numbers[index] for index in indices],
            with_target=with_target,
        )
        features = list(encoded)
        result = {name: [feature[name] for feature in features] for name in features[0]}
        result["length"] = [len(feature["input_ids"]) for feature in features]
        return result

    with without_progress_bars():
        features = rows.select_columns(columns).map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=columns,
            new_fingerprint=fingerprint,
        )
    return _summarise(features, fingerprint, numbers, with_target=with_target)


def _fingerprint(
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    base_fingerprint: str,
) -> str:
    """A checksum of all that decides how rows are tokenized."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two only remember how the tokenizer was called last.
    settings.pop("truncation", None)
    settings.pop("padding", None)
    parts = [
        rows._fingerprint,
        json.dumps(task.to_json(), sort_keys=True),
        base_fingerprint,
        json.dumps(settings),
        version("peftcls"),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _summarise(
    features: datasets.Dataset, fingerprint: str, numbers: Sequence[int], *, with_target: bool
) -> EncodedTable:
    """Put what training plans need to know about the features into memory."""
    strata = None
    if "stratum" in features.column_names:
        strata = np.array(features["stratum"])
    weights = np.zeros(len(features))
    if with_target:
        weights = np.array(features["weight"])
    sequences = len(features)
    if "windows" in features.column_names:
        sequences = sum(len(windows) for windows in features["windows"])
    return EncodedTable(
        features=features,
        lengths=np.array(features["length"]),
        weights=weights,
        strata=strata,
        shortened_rows=sum(features["shortened"]),
        fingerprint=fingerprint,
        sequences=sequences,
        numbers=numbers,
    )

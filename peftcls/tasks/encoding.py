"""Tokenize whole tables of rows; every error message names the row."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from peftcls.data.reading import Row, RowError, source_name, without_progress_bars
from peftcls.data.row_batches import each_cell
from peftcls.data.row_numbers import row_numbers
from peftcls.data.scratch import is_launched, scratch_folder
from peftcls.data.table_cache import cached_table
from peftcls.tasks.base import Feature, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKSUM_ROWS = 1000
SUMMARY_ROWS = 2**16
MAX_CHUNK_ROWS = 256
MAX_CHUNK_CHARACTERS = 2**20
TOKENS = "tokens-"


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
    cache_dir: str | Path | None = None,
) -> EncodedTable:
    """Tokenize all rows of a table, unless that was done before.

    The features of rows that are memory-mapped are, too. Processes of one launcher tokenize a table
    once on each machine.

    Args:
        task: the task, with what training rows determine filled in.
        rows: the table.
        tokenizer: of the base model.
        base_fingerprint: of the base model.
        with_target: whether the features are to be trained on; otherwise they are to be answered.
        cache_dir: a folder where the features stay for further runs; unless given, they are removed
            when the program ends.

    Raises:
        RowError: a row cannot be encoded; the message names it.
        ValueError: the features cannot be written into `cache_dir`.
    """
    source = source_name(rows)
    numbers = row_numbers(rows)
    columns = task.columns_among(rows.column_names, with_target=with_target)
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

    table = rows.select_columns(columns)
    fingerprint = _fingerprint(task, table, tokenizer, base_fingerprint)
    if not with_target:
        fingerprint = f"{fingerprint}-inputs"

    def write(file: Path | None) -> datasets.Dataset:
        with without_progress_bars():
            return table.map(
                encode,
                batched=True,
                with_indices=True,
                remove_columns=columns,
                new_fingerprint=fingerprint,
                keep_in_memory=file is None,
                cache_file_name=file and str(file),
            )

    if cache_dir is not None:
        folder = Path(cache_dir)
    elif rows.cache_files or is_launched():
        folder = scratch_folder()
    else:
        # Rows that are in memory are few enough for their features to be there, too.
        return _summarise(write(None), fingerprint, numbers, with_target=with_target)
    features = cached_table(folder / f"{TOKENS}{fingerprint}", len(table), write)
    return _summarise(features, fingerprint, numbers, with_target=with_target)


def _fingerprint(
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    base_fingerprint: str,
) -> str:
    """A checksum of the content of rows and of all that decides how they are tokenized."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two only remember how the tokenizer was called last.
    settings.pop("truncation", None)
    settings.pop("padding", None)
    parts = [
        content_sum(rows),
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
        strata = column_values(features, "stratum")
    weights = np.zeros(len(features))
    if with_target:
        weights = column_values(features, "weight")
    return EncodedTable(
        features=features,
        lengths=column_values(features, "length"),
        weights=weights,
        strata=strata,
        shortened_rows=int(column_values(features, "shortened").sum()),
        fingerprint=fingerprint,
        sequences=count_sequences(features),
        numbers=numbers,
    )


def column_values(features: datasets.Dataset, name: str) -> np.ndarray:
    """The numbers of a column, of shape (rows,)."""
    batches = features.select_columns([name]).with_format("arrow").iter(SUMMARY_ROWS)
    return np.concatenate([batch.column(0).to_numpy() for batch in batches])


def count_sequences(features: datasets.Dataset) -> int:
    """How many sequences the model reads: the rows, or all their windows."""
    if "windows" not in features.column_names:
        return len(features)
    lengths = (len(windows) for windows in each_cell(features, "windows"))
    return sum(lengths)

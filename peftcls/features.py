"""Rows in tokens, with the place of a row in every message about it."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from peftcls.rows import Row, RowError, source_name, without_progress_bars
from peftcls.tasks.base import Feature, Task

SUMMED_ROWS = 1000  # at a time


def encode_rows(task: Task, rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, *, source: str, first: int = 1,
                with_target: bool = False) -> Iterator[Feature]:
    """Encode rows one after another; a RowError says which row of `source` it is about."""
    for number, row in enumerate(rows, first):
        try:
            yield task.encode(row, tokenizer, with_target=with_target)
        except RowError as error:
            raise RowError(f"row {number} of {source} {error}.") from None


@dataclasses.dataclass(frozen=True)
class TrainingTable:
    """Training rows in tokens, memory-mapped where the rows were, with what a plan needs to know in memory."""

    features: datasets.Dataset
    lengths: np.ndarray
    weights: np.ndarray
    strata: np.ndarray | None
    shortened_rows: int
    fingerprint: str


def content_sum(rows: datasets.Dataset) -> str:
    """A short SHA-256 of what a table holds, wherever it comes from and however often it was copied."""
    found = hashlib.sha256(repr(sorted(rows.column_names)).encode())
    for batch in rows.select_columns(sorted(rows.column_names)).with_format("arrow").iter(SUMMED_ROWS):
        table = batch.replace_schema_metadata(None).combine_chunks()
        with pa.BufferOutputStream() as held:
            with pa.ipc.new_stream(held, table.schema) as stream:
                stream.write_table(table)
            found.update(held.getvalue())
    return found.hexdigest()[:16]


def encode_table(task: Task, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, base_fingerprint: str) -> TrainingTable:
    """Encode all rows of a table with their targets.

    Raises:
        RowError: a row cannot be encoded; the message names it.
    """
    kept = {k: v for k, v in json.loads(tokenizer.backend_tokenizer.to_str()).items() if k not in ("truncation", "padding")}  # its last use
    parts = [rows._fingerprint, json.dumps(task.to_json(), sort_keys=True), base_fingerprint, json.dumps(kept), version("peftcls")]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    source, columns = source_name(rows), task.columns(with_target=True)

    def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        own = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        found = list(encode_rows(task, own, tokenizer, source=source, first=numbers[0] + 1, with_target=True))
        return {name: [feature[name] for feature in found] for name in found[0]} | {"length": [len(f["input_ids"]) for f in found]}

    with without_progress_bars():
        table = rows.select_columns(columns).map(encode, batched=True, with_indices=True, remove_columns=columns, new_fingerprint=key)
    strata = np.array(table["stratum"]) if "stratum" in table.column_names else None
    return TrainingTable(table, np.array(table["length"]), np.array(table["weight"]), strata, sum(table["shortened"]), key)

"""Rows in tokens, with the place of a row in every message about it."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError, source_name, without_progress_bars
from peftcls.tasks.base import Feature, Task

SUMMED_ROWS = 1000  # at a time
TOGETHER, CHARACTERS = 256, 2**20  # of a portion, at most


def encode_rows(
    task: Task,
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    numbers: Iterable[int],
    with_target: bool = False,
) -> Iterator[Feature]:
    """Encode rows, some at a time; a RowError says by its number which row of `source` it is about."""
    numbered = iter(numbers)
    for own in _portions(rows):
        encoded = task.encode_many(own, tokenizer, with_target=with_target)
        for number in itertools.islice(numbered, len(own)):
            try:
                feature = next(encoded)
            except RowError as error:
                raise RowError(f"row {number} of {source} {error}.") from None
            yield feature


def _portions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that a tokenizer is given at once: what it says of them takes many times the memory of their texts."""
    portion, characters = list[Row](), 0
    for row in rows:
        portion.append(row)
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(portion) == TOGETHER or characters >= CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


@dataclasses.dataclass(frozen=True)
class TrainingTable:
    """Training rows in tokens, memory-mapped where the rows were, with what a plan needs to know in memory."""

    features: datasets.Dataset
    lengths: np.ndarray
    weights: np.ndarray
    strata: np.ndarray | None
    shortened_rows: int
    fingerprint: str
    lines: int
    """Of tokens that are read at once: as many as rows, or as their windows."""

    def of(self, indices: Sequence[int]) -> list[Feature]:
        """The features of some rows."""
        columns = self.features[list(indices)]  # together: alone a row takes as long as ten
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]


_opened: list[
    dict[str, TrainingTable]
] = []  # where tables are kept, while there are several trainings on the same ones


@contextlib.contextmanager
def encoded_once() -> Iterator[None]:
    """Within it a table that was encoded is not encoded again."""
    _opened.append({})
    try:
        yield
    finally:
        _opened.pop()


def content_sum(rows: datasets.Dataset) -> str:
    """A short SHA-256 of what a table holds, wherever it comes from and however often it was copied."""
    found = hashlib.sha256(repr(sorted(rows.column_names)).encode())
    for batch in (
        rows.select_columns(sorted(rows.column_names)).with_format("arrow").iter(SUMMED_ROWS)
    ):
        table = batch.replace_schema_metadata(None).combine_chunks()
        with pa.BufferOutputStream() as held:
            with pa.ipc.new_stream(held, table.schema) as stream:
                stream.write_table(table)
            found.update(held.getvalue())
    return found.hexdigest()[:16]


def encode_table(
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    base_fingerprint: str,
    *,
    with_target: bool = True,
) -> TrainingTable:
    """Encode all rows of a table, with their targets unless they are to be answered.

    Raises:
        RowError: a row cannot be encoded; the message names it.
    """
    kept = {
        k: v
        for k, v in json.loads(tokenizer.backend_tokenizer.to_str()).items()
        if k not in ("truncation", "padding")
    }  # its last use
    parts = [
        rows._fingerprint,
        json.dumps(task.to_json(), sort_keys=True),
        base_fingerprint,
        json.dumps(kept),
        version("peftcls"),
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    if not with_target:
        key = f"{key}-asked"
    if _opened and key in _opened[-1]:
        return _opened[-1][key]
    source, columns = source_name(rows), task.columns(with_target=with_target)

    def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        own = [
            dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
        ]
        found = list(
            encode_rows(
                task,
                own,
                tokenizer,
                source=source,
                numbers=(n + 1 for n in numbers),
                with_target=with_target,
            )
        )
        return {name: [feature[name] for feature in found] for name in found[0]} | {
            "length": [len(f["input_ids"]) for f in found]
        }

    with without_progress_bars():
        table = rows.select_columns(columns).map(
            encode, batched=True, with_indices=True, remove_columns=columns, new_fingerprint=key
        )
    strata = np.array(table["stratum"]) if "stratum" in table.column_names else None
    lines = sum(map(len, table["windows"])) if "windows" in table.column_names else len(table)
    weights = np.array(table["weight"]) if with_target else np.zeros(len(table))
    found = TrainingTable(
        table, np.array(table["length"]), weights, strata, sum(table["shortened"]), key, lines
    )
    if _opened:
        _opened[-1][key] = found
    return found

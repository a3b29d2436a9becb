"""Tokenize a text, or a pair of texts: whole, truncated, or in overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftcls.data.reading import Row, RowError
from peftcls.data.row_batches import each_cell
from peftcls.tasks.base import Feature, pad_inputs, token_limit

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftcls.engine.batch import Batch
    from peftcls.engine.model_choices import Pooling

TextColumns = str | tuple[str, str]
LongText = Literal["truncate", "windows"]
MAX_SHOWN_CHARACTERS = 80
POOLINGS = (None, "cls", "first", "last", "mean", "compare")
# A window repeats a quarter of the one before, so that a sentence is rarely cut in every window.
OVERLAP_DIVISOR = 4
MIN_TEXT_TOKENS = 8
# Texts whose lengths differ by more are not compared unless the task says so.
MAX_LENGTH_RATIO = 4
MEASURED_ROWS = 1000
Lengths = tuple[float, float]


def as_columns(text: str | Sequence[str]) -> tuple[str, ...]:
    """The columns of a text or a pair of texts, in order."""
    return (text,) if isinstance(text, str) else tuple(text)


def text_setting_problems(
    text: Any, target: str | Sequence[str], max_length: int, long_text: str
) -> list[str | None]:
    """What is wrong with the settings that all tasks on texts share."""
    problems: list[str | None] = [_columns_problem(text, target)]
    if not isinstance(max_length, int):
        problems.append(f"max_length={max_length!r}: expected a whole number of tokens")
    elif max_length < MIN_TEXT_TOKENS:
        problems.append(f"max_length={max_length}: expected at least {MIN_TEXT_TOKENS} tokens")
    if long_text not in ("truncate", "windows"):
        problems.append(f"long_text={long_text!r}: expected 'truncate' or 'windows'")
    return problems


def _columns_problem(text: Any, target: str | Sequence[str]) -> str | None:
    """What is wrong with the setting `text`, or None."""
    is_pair = isinstance(text, list | tuple) and len(text) == 2
    if not isinstance(text, str) and not is_pair:
        return f"text={text!r}: expected one column or two"
    columns = [*as_columns(text), *as_columns(target)]
    if len(set(columns)) < len(columns):
        return f"text={text!r} with the target {target!r}: expected different columns"
    return None


def pooling_problem(pooling: Any, text: Any, long_text: str) -> str | None:
    """What is wrong with the setting `pooling`, or None."""
    if pooling not in POOLINGS:
        return f"pooling={pooling!r}: expected 'cls', 'first', 'last', 'mean' or 'compare'"
    if pooling == "compare" and (isinstance(text, str) or long_text == "windows"):
        return (
            f"pooling='compare' with text={text!r}, long_text={long_text!r}: two texts are "
            "compared, each of which is one sequence; give two columns and long_text='truncate'"
        )
    return None


def text_problem(row: Row, columns: Sequence[str]) -> str | None:
    """The first column without a text, in the words that follow the row's number, or None."""
    for column in columns:
        value = row[column]
        if not isinstance(value, str) or not value.strip():
            if is_gap(value):
                return f"has no text in column {column!r}; fill it in or leave the row out"
            return (
                f"has no text in column {column!r}, it has {what_is_no_text(value)}; write it as a "
                "text, or name the column that holds the texts"
            )
    return None


def is_gap(value: Any) -> bool:
    """Whether a cell is missing, or a text without a character that is seen."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or isinstance(value, str)


def what_is_no_text(value: Any) -> str:
    """A value that is no text, for a message: 5 (int). A text stands without its type."""
    shown = repr(value)
    if len(shown) > MAX_SHOWN_CHARACTERS:
        shown = shown[: MAX_SHOWN_CHARACTERS - 3] + "..."
    return shown if isinstance(value, str) else f"{shown} ({type(value).__name__})"


def rows_from_texts(texts: Sequence[Any], columns: Sequence[str]) -> list[Row]:
    """Rows made from bare texts, or from pairs of texts.

    Raises:
        RowError: one of them is something else.
    """
    expected = "a text" if len(columns) == 1 else "a pair of texts"
    rows = []
    for number, text in enumerate(texts, 1):
        parts: list[Any] = []
        if len(columns) == 1:
            parts = [text]
        elif isinstance(text, list | tuple):
            parts = list(text)
        if len(parts) != len(columns) or not all(isinstance(part, str) for part in parts):
            found = what_is_no_text(text)
            raise RowError(f"text {number} of {len(texts)} is {found}, expected {expected}.")
        rows.append(dict(zip(columns, parts, strict=True)))
    return rows


def select_texts(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    """The one or two texts of each row."""
    texts = []
    for row in rows:
        texts.append([row[column] for column in columns])
    return texts


def is_comparable(text: TextColumns, long_text: LongText, lengths: Lengths | None) -> bool:
    """Whether rows are pairs of texts that may be alike, each of which is one sequence.

    Args:
        text: the columns.
        long_text: how long texts are read.
        lengths: of the texts, if they are known. A title and an abstract are no such pair: the
            first is part of the second, and is not compared with it.
    """
    if isinstance(text, str) or long_text != "truncate":
        return False
    return lengths is None or max(lengths) <= MAX_LENGTH_RATIO * min(lengths)


def mean_lengths(rows: datasets.Dataset, text: TextColumns) -> Lengths | None:
    """The mean numbers of characters of both texts of a pair, by the first rows.

    Returns:
        None where there is one text.
    """
    if isinstance(text, str):
        return None
    first_rows = rows.select(range(min(len(rows), MEASURED_ROWS)))
    first, second = (
        sum(len(str(value)) for value in each_cell(first_rows, column)) / max(len(first_rows), 1)
        for column in text
    )
    return first, second


def encode_texts(
    rows: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_text: LongText,
    pooling: Pooling | None = None,
) -> Iterator[Feature]:
    """Tokenize rows of one or two texts, with the model's special tokens and token types.

    With "truncate" a longer text loses its end, and of a pair the longer text does. With "windows"
    it is read in windows of `max_length` tokens, of a pair the longer text beside the other whole
    one; `input_ids` then holds the windows one after another, and `windows` their lengths. With the
    pooling "compare" a pair is three sequences, held in the same way: both texts together, the
    first, and the second.

    Raises:
        RowError: a window of a pair has no room beside the shorter text.
    """
    max_length = token_limit(tokenizer, max_length)
    if len(rows[0]) == 2 and not has_separator(tokenizer):
        # A tokenizer without a separator would join the two texts.
        rows = [[first, "\n" + second] for first, second in rows]
    if pooling == "compare":
        yield from _encode_compared(rows, tokenizer, max_length)
        return
    if long_text == "windows":
        for texts in rows:
            yield _encode_windows(texts, tokenizer, max_length)
        return
    columns = [list(texts) for texts in zip(*rows, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    for index, encoding in enumerate(encoded.encodings):
        feature: Feature = {
            "input_ids": encoded["input_ids"][index],
            "shortened": bool(encoding.overflowing),
        }
        if "token_type_ids" in encoded:
            feature["token_type_ids"] = encoded["token_type_ids"][index]
        yield feature


def _encode_compared(
    rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Feature]:
    """Tokenize pairs: both texts together, the first, and the second."""
    tables = (rows, [[first] for first, _ in rows], [[second] for _, second in rows])
    sequences = [
        encode_texts(texts, tokenizer, max_length=max_length, long_text="truncate")
        for texts in tables
    ]
    for parts in zip(*sequences, strict=True):
        feature: Feature = {
            "input_ids": _concatenate([part["input_ids"] for part in parts]),
            "windows": [len(part["input_ids"]) for part in parts],
            "shortened": any(part["shortened"] for part in parts),
        }
        if "token_type_ids" in parts[0]:
            feature["token_type_ids"] = _concatenate([part["token_type_ids"] for part in parts])
        yield feature


def _encode_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Feature:
    """Tokenize one row in overlapping windows."""
    truncation: bool | str = True
    room = max_length - tokenizer.num_special_tokens_to_add(pair=len(texts) == 2)
    if len(texts) == 2:
        truncation, room = _window_of_pair(texts, tokenizer, room, max_length)
    encoded = tokenizer(
        *texts,
        truncation=truncation,
        max_length=max_length,
        stride=max(room // OVERLAP_DIVISOR, 0),
        return_overflowing_tokens=True,
    )
    windows = encoded["input_ids"]
    feature: Feature = {
        "input_ids": _concatenate(windows),
        "windows": [len(ids) for ids in windows],
        "shortened": False,
    }
    if "token_type_ids" in encoded:
        feature["token_type_ids"] = _concatenate(encoded["token_type_ids"])
    return feature


def _window_of_pair(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, room: int, max_length: int
) -> tuple[str, int]:
    """Which text of a pair is read in windows, and the room for it beside the other one."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    first, second = (len(ids) for ids in encoded["input_ids"])
    shorter = min(first, second)
    fits = first + second <= room
    room -= shorter
    if room < MIN_TEXT_TOKENS and not fits:
        raise RowError(
            f"has two long texts: beside the {shorter} tokens of the shorter one a window of "
            f"{max_length} has no room for the other; raise max_length or use long_text='truncate'"
        )
    if first > second:
        return "only_first", room
    return "only_second", room


def _concatenate(windows: Sequence[Sequence[int]]) -> list[int]:
    return [value for window in windows for value in window]


def has_separator(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts special tokens between a pair of texts."""
    for_pair = tokenizer.num_special_tokens_to_add(pair=True)
    return bool(for_pair > tokenizer.num_special_tokens_to_add())


def collate_texts(
    features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase, *, compared: bool = False
) -> Batch:
    """The model's inputs, padded to shape (sequences, tokens).

    Each window is a sequence; `windows`, of shape (rows,), says how many each row has. Pairs that
    are compared have three sequences each.
    """
    if "windows" not in features[0]:
        return pad_inputs(features, tokenizer)
    import torch

    batch = pad_inputs(split_windows(features, ("input_ids", "token_type_ids")), tokenizer)
    if compared:
        return batch
    batch["windows"] = torch.tensor([len(feature["windows"]) for feature in features])
    return batch


def split_windows(features: Sequence[Feature], names: Sequence[str]) -> list[Feature]:
    """Split features into their windows.

    Args:
        features: of rows in windows.
        names: which of their lists are split; those that a feature lacks are left out.
    """
    windows: list[Feature] = []
    for feature in features:
        present = [name for name in names if name in feature]
        start = 0
        for tokens in feature["windows"]:
            end = start + tokens
            windows.append({name: feature[name][start:end] for name in present})
            start = end
    return windows


def merge_text_remarks(
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_text: LongText,
) -> list[str]:
    """What a plain transformers model does otherwise with a text or a pair of texts."""
    remarks = []
    if long_text == "windows":
        remarks.append(
            f"A text of more than {max_length} tokens is cut (with truncation=True), "
            "not read in windows."
        )
    if len(columns) == 2 and not has_separator(tokenizer):
        remarks.append(
            "This tokenizer sets nothing between two texts; "
            "begin the second one with a new line, as in training."
        )
    return remarks

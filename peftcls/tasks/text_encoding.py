"""One text, or a pair of texts, in tokens: whole, shortened, or in overlapping windows."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError
from peftcls.engine.batch import Batch
from peftcls.tasks.base import Feature, pad_inputs, token_limit

TextColumns = str | tuple[str, str]
LongText = Literal["truncate", "windows"]
OVERLAP = 4  # a window repeats a quarter of the tokens of the one before, so that no sentence is only seen cut
LEAST_TOKENS = 8


def text_columns(text: TextColumns) -> list[str]:
    """The columns that are read, in order."""
    return [text] if isinstance(text, str) else list(text)


def text_setting_problems(text: Any, target: str, max_length: int, long_text: str) -> list[str]:
    """What is wrong with the settings that all tasks on texts share."""
    problems = []
    if not isinstance(text, str) and (not isinstance(text, list | tuple) or len(text) != 2):
        problems.append(f"text={text!r}: expected one column or two")
    elif len(
        {target, *(columns := text_columns(text if isinstance(text, str) else tuple(text)))}
    ) <= len(columns):
        problems.append(f"text={text!r} with the target {target!r}: expected different columns")
    if not isinstance(max_length, int):
        problems.append(f"max_length={max_length!r}: expected a whole number of tokens")
    elif max_length < LEAST_TOKENS:
        problems.append(f"max_length={max_length}: expected at least {LEAST_TOKENS} tokens")
    if long_text not in ("truncate", "windows"):
        problems.append(f"long_text={long_text!r}: expected 'truncate' or 'windows'")
    return problems


def text_problem(row: Row, columns: Sequence[str]) -> str | None:
    """The first column without a text, in the words that follow the row's number."""
    for column in columns:
        if not isinstance(row[column], str) or not row[column].strip():
            return f"has no text in column {column!r}; fill it in or leave the row out"
    return None


def rows_from_texts(texts: Sequence[Any], columns: Sequence[str]) -> list[Row]:
    """Rows made from bare texts, or from pairs of them. Raises RowError where they are something else."""
    wanted = "a text" if len(columns) == 1 else "a pair of texts"
    rows = []
    for number, text in enumerate(texts, 1):
        parts = (
            [text] if len(columns) == 1 else list(text) if isinstance(text, list | tuple) else []
        )
        if len(parts) != len(columns) or not all(isinstance(part, str) for part in parts):
            raise RowError(
                f"text {number} of {len(texts)} is {str(text)[:80]!r}, expected {wanted}."
            )
        rows.append(dict(zip(columns, parts, strict=True)))
    return rows


def encode_texts(
    rows: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_text: LongText,
) -> Iterator[Feature]:
    """Rows of one or two texts in tokens, with the model's special tokens and token types.

    With "truncate" a longer text loses its end, and of a pair the longer one. With "windows" it is read in windows of
    `max_length` tokens, of a pair the longer text beside the other whole one; `input_ids` then holds the windows one
    after another and `windows` their lengths.

    Raises:
        RowError: a window of a pair has no room beside the shorter text.
    """
    max_length = token_limit(tokenizer, max_length)
    if len(rows[0]) == 2 and not has_separator(tokenizer):
        rows = [
            [first, "\n" + second] for first, second in rows
        ]  # a tokenizer without a separator would run the two into one another
    if long_text == "windows":
        yield from (_in_windows(texts, tokenizer, max_length) for texts in rows)
        return
    encoded = tokenizer(*map(list, zip(*rows, strict=True)), truncation=True, max_length=max_length)
    for place, found in enumerate(encoded.encodings):
        feature: Feature = {
            "input_ids": encoded["input_ids"][place],
            "shortened": bool(found.overflowing),
        }
        if "token_type_ids" in encoded:
            feature["token_type_ids"] = encoded["token_type_ids"][place]
        yield feature


def _in_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Feature:
    cut: bool | str = True
    room = max_length - tokenizer.num_special_tokens_to_add(pair=len(texts) == 2)
    if len(texts) == 2:
        first, second = (
            len(ids)
            for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        )
        cut, room = ("only_first" if first > second else "only_second"), room - min(first, second)
        if room < LEAST_TOKENS and first + second > room + min(first, second):
            raise RowError(
                f"has two long texts: beside the {min(first, second)} tokens of the shorter one a window of {max_length} has no "
                "room for the other; raise max_length or use long_text='truncate'"
            )
    encoded = tokenizer(
        *texts,
        truncation=cut,
        max_length=max_length,
        stride=max(room // OVERLAP, 0),
        return_overflowing_tokens=True,
    )
    windows = encoded["input_ids"]
    feature: Feature = {
        "input_ids": [i for ids in windows for i in ids],
        "windows": [len(ids) for ids in windows],
        "shortened": False,
    }
    if "token_type_ids" in encoded:
        feature["token_type_ids"] = [i for ids in encoded["token_type_ids"] for i in ids]
    return feature


def has_separator(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a pair of texts gets special tokens between them."""
    return bool(
        tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add()
    )


def collate_texts(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The model's inputs, padded; with windows each is a line of its own, and `windows` says how many each row had."""
    if "windows" not in features[0]:
        return pad_inputs(features, tokenizer)
    lines = split_windows(features, ("input_ids", "token_type_ids"))
    return {
        **pad_inputs(lines, tokenizer),
        "windows": torch.tensor([len(feature["windows"]) for feature in features]),
    }


def split_windows(features: Sequence[Feature], names: Sequence[str]) -> list[Feature]:
    """The windows of all features, one after another, each with its part of the named lists that there are."""
    lines: list[Feature] = []
    for feature in features:
        start = 0
        for tokens in feature["windows"]:
            lines.append(
                {name: feature[name][start : start + tokens] for name in names if name in feature}
            )
            start += tokens
    return lines

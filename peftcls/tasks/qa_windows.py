"""Tokenize questions with their contexts in overlapping windows, and mark the answers in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from peftcls.data.reading import RowError
from peftcls.tasks.base import Feature, token_limit
from peftcls.tasks.text_encoding import has_separator

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

MIN_CONTEXT_TOKENS = 16
FLAGS = ("allowed", "null", "starts", "ends")

Characters = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of a context beside its question.

    Args:
        ids: the token ids.
        types: the token types; empty if the model has none.
        offsets: the characters (start, end) of each token in the context; (0, 0) for others.
        allowed: 1 for tokens that can be in an answer, else 0.
        null: the index of the token whose logit stands for "no answer".
    """

    ids: list[int]
    types: list[int]
    offsets: list[Characters]
    allowed: list[int]
    null: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """All windows of one row, in the order of the context.

    Args:
        windows: the windows.
        limit: tokens of a window.
    """

    windows: Sequence[Window]
    limit: int

    def input_feature(self) -> Feature:
        """A feature to be answered, without its context."""
        feature = self._shared_feature()
        feature["offsets"] = []
        for window in self.windows:
            for characters in window.offsets:
                feature["offsets"] += characters
        return feature

    def training_feature(
        self, spans: Sequence[Characters], answers_column: str, stride: int
    ) -> Feature:
        """A feature to be trained on.

        Args:
            spans: the right answers, as characters (start, end) of the context.
            answers_column: the name of their column, for the message.
            stride: tokens that two windows share, for the message.

        Raises:
            RowError: no answer is whole in any window.
        """
        feature = self._shared_feature()
        feature["starts"] = []
        feature["ends"] = []
        for number, window in enumerate(self.windows):
            bounds = _answer_tokens(
                spans,
                window,
                is_first=number == 0,
                is_last=number + 1 == len(self.windows),
            )
            firsts = {first for first, _ in bounds}
            lasts = {last for _, last in bounds}
            feature["starts"] += [int(i in firsts) for i in range(len(window.ids))]
            feature["ends"] += [int(i in lasts) for i in range(len(window.ids))]
        if spans and not any(feature["starts"]):
            start, end = spans[0]
            raise RowError(
                f"has an answer of {end - start} characters in column {answers_column!r} that is "
                f"whole in no window of {self.limit} tokens; raise max_length, "
                f"or stride (now {stride})"
            )
        feature["weight"] = 1.0
        return feature

    def _shared_feature(self) -> Feature:
        """The part of the feature that does not depend on the answers."""
        feature: Feature = {
            "input_ids": [],
            "windows": [],
            "shortened": False,
            "allowed": [],
            "null": [],
        }
        for window in self.windows:
            feature["input_ids"] += window.ids
            feature["windows"].append(len(window.ids))
            feature["allowed"] += window.allowed
            feature["null"] += [int(i == window.null) for i in range(len(window.ids))]
        if self.windows[0].types:
            feature["token_type_ids"] = []
            for window in self.windows:
                feature["token_type_ids"] += window.types
        return feature


def encode_questions(
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int,
    context_column: str,
) -> Iterator[Windows]:
    """Tokenize questions with their contexts.

    Args:
        questions: one a row.
        contexts: one a row.
        tokenizer: of the base model.
        max_length: tokens of a window.
        stride: tokens that two windows share, at most half of their room for the context.
        context_column: the name of the column, for the message.

    Raises:
        RowError: when it is the turn of a row whose question leaves no room for the context.
    """
    # Without a separator the question and the context would be joined.
    glue = "" if has_separator(tokenizer) else "\n"
    special_tokens = tokenizer.num_special_tokens_to_add(pair=True)
    limit = token_limit(tokenizer, max_length)
    if special_tokens == 0:
        # An end mark is added to each window, which stands for "no answer".
        limit -= 1
    encoded_questions = tokenizer(questions, add_special_tokens=False, verbose=False)
    rooms = [limit - special_tokens - len(ids) for ids in encoded_questions["input_ids"]]
    rows_by_stride: dict[int, list[int]] = {}
    for row, room in enumerate(rooms):
        if room >= MIN_CONTEXT_TOKENS:
            rows_by_stride.setdefault(min(stride, room // 2), []).append(row)
    windows: dict[int, list[Window]] = {}
    for row_stride, rows in rows_by_stride.items():
        encoded = tokenizer(
            [questions[row] for row in rows],
            [glue + contexts[row] for row in rows],
            truncation="only_second",
            max_length=limit,
            return_offsets_mapping=True,
            stride=row_stride,
            return_overflowing_tokens=True,
        )
        for index, position in enumerate(encoded["overflow_to_sample_mapping"]):
            window = _window(encoded, index, len(glue), tokenizer)
            windows.setdefault(rows[position], []).append(window)
    for row, room in enumerate(rooms):
        if row not in windows:
            raise RowError(
                f"has a question that leaves {max(room, 0)} of {limit} tokens for the context in "
                f"column {context_column!r}, expected at least {MIN_CONTEXT_TOKENS}; "
                "shorten it or raise max_length"
            )
        yield Windows(windows[row], limit)


def _window(
    encoded: BatchEncoding, index: int, glue: int, tokenizer: PreTrainedTokenizerBase
) -> Window:
    """One window out of the tokenizer's output.

    Args:
        encoded: the output for several rows.
        index: of the window in the output.
        glue: characters that were put before the context.
        tokenizer: of the base model.
    """
    ids = list(encoded["input_ids"][index])
    texts = list(encoded.sequence_ids(index))
    offsets = list(encoded["offset_mapping"][index])
    types = list(encoded["token_type_ids"][index]) if "token_type_ids" in encoded else []
    if tokenizer.num_special_tokens_to_add(pair=True) == 0:
        ids.append(int(tokenizer.eos_token_id or 0))
        texts.append(None)
        offsets.append((0, 0))
    for i, text in enumerate(texts):
        if text == 1:
            start, end = offsets[i]
            offsets[i] = (max(start - glue, 0), end - glue)
        else:
            offsets[i] = (0, 0)
    allowed = [
        int(text == 1 and end > start) for text, (start, end) in zip(texts, offsets, strict=True)
    ]
    null = len(ids) - 1
    if tokenizer.cls_token_id in ids:
        null = ids.index(tokenizer.cls_token_id)
    return Window(ids, types, offsets, allowed, null)


def _answer_tokens(
    spans: Sequence[Characters], window: Window, *, is_first: bool, is_last: bool
) -> list[tuple[int, int]]:
    """The first and last token of each span that is whole in a window.

    Args:
        spans: characters (start, end) of the context.
        window: the window.
        is_first: whether it begins where the context begins.
        is_last: whether it ends where the context ends.
    """
    offsets = window.offsets
    context_tokens = [i for i, allowed in enumerate(window.allowed) if allowed]
    bounds = []
    for start, end in spans:
        inside = [i for i in context_tokens if offsets[i][1] > start and offsets[i][0] < end]
        if not inside:
            continue
        begins_inside = is_first or offsets[context_tokens[0]][0] <= start
        ends_inside = is_last or offsets[context_tokens[-1]][1] >= end
        if begins_inside and ends_inside:
            bounds.append((inside[0], inside[-1]))
    return bounds


def padded_offsets(feature: Feature, width: int, side: str) -> list[list[Characters]]:
    """The offsets of a feature by window, each padded to `width` tokens on the given side."""
    flat = feature["offsets"]
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    windows = []
    start = 0
    for tokens in feature["windows"]:
        offsets = pairs[start : start + tokens]
        padding = [(0, 0)] * (width - tokens)
        windows.append([*offsets, *padding] if side == "right" else [*padding, *offsets])
        start += tokens
    return windows

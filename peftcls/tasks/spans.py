"""Answers as spans of characters: what a table says, where it stands, and which spans a model finds."""

import contextlib
import dataclasses
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import regex
import torch

from peftcls.engine.head_logits import owners

NEVER = (
    -1e9
)  # as a logit; finite, so that a line without a candidate has a gradient of zero and not of nan
SHOWN_CHARACTERS = 40
NEARER = (
    3  # words of the question that another place must share more before the given one is doubted
)
SHORTEST_WORD, STEM = 4, 5


@dataclasses.dataclass(frozen=True)
class Gold:
    """A right answer as the table has it; without a start it has to be looked for."""

    text: str
    start: int | None


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the context, and how likely they are the answer."""

    start: int
    end: int
    probability: float


def says_nothing(value: Any) -> bool:
    """Whether a cell says neither what the answer is nor that there is none: it is empty, or not there."""
    return value is None or (isinstance(value, str) and not value.strip())


def gold_answers(value: Any) -> list[Gold]:
    """The answers of a cell: SQuAD's {"text": [...], "answer_start": [...]}, a list of such objects, or a text; none of an empty list.

    Raises:
        ValueError: the cell holds something else; the text continues the row's number.
    """
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):  # as a csv file has to write it
            value = json.loads(value)
    if value is None or isinstance(value, str):
        return [] if says_nothing(value) else [Gold(str(value), None)]
    if isinstance(value, Mapping) and not isinstance(value.get("text"), list):
        value = [value]
    elif isinstance(value, Mapping):
        starts = value.get("answer_start")
        starts = [None] * len(value["text"]) if starts is None or starts == [] else starts
        if not isinstance(starts, list):
            raise ValueError(
                f"has the answer_start {starts!r} beside a list of texts, expected a list of whole numbers"
            )
        if len(starts) != len(value["text"]):
            raise ValueError(
                f"has {len(value['text'])} answer texts and {len(starts)} answer_start values, expected as many"
            )
        value = [
            {"text": text, "answer_start": start}
            for text, start in zip(value["text"], starts, strict=True)
        ]
    if not isinstance(value, list) or not all(
        isinstance(item, Mapping) and isinstance(item.get("text"), str) for item in value
    ):
        raise ValueError(
            f"has the answers {str(value)[:SHOWN_CHARACTERS]!r}, expected a text or objects with text and answer_start"
        )
    for start in (item.get("answer_start") for item in value):
        if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
            raise ValueError(
                f"has the answer_start {start!r}, expected a whole number of characters"
            )
    if any(not item["text"].strip() for item in value):
        raise ValueError(
            "has an answer without a text, expected words of the context, or an empty list where there is no answer"
        )
    return [Gold(item["text"], item.get("answer_start")) for item in value]


def find_answers(context: str, golds: Sequence[Gold]) -> list[tuple[int, int]]:
    """Where the answers stand, as characters (start, end) of the context.

    A start that does not point at its answer is put right where the answer occurs exactly once.

    Raises:
        ValueError: an answer is not in the context, or in several places of which none is the given one; the text
            continues the row's number.
    """
    found = []
    for gold in golds:
        start, end = gold.start, None if gold.start is None else gold.start + len(gold.text)
        if start is None or start < 0 or context[start:end] != gold.text:
            text = gold.text.strip()
            places = occurrences(context, text)
            if len(places) != 1:
                there = (
                    ""
                    if start is None
                    else f" at character {start}, where {context[max(start, 0) :][:SHOWN_CHARACTERS]!r} stands"
                )
                often = f"{len(places)} times" if places else "nowhere"
                mend = (
                    "correct its answer_start"
                    if start is not None
                    else "correct it"
                    if not places
                    else f'say where: {{"text": [...], "answer_start": [{places[0]}]}}'
                )
                raise ValueError(
                    f"has the answer {gold.text[:SHOWN_CHARACTERS]!r}{there}; it occurs {often} in the context; {mend}"
                )
            start, end = places[0], places[0] + len(text)
        inner = context[start:end]
        found.append(
            (
                start + len(inner) - len(inner.lstrip()),
                int(end or 0) - (len(inner) - len(inner.rstrip())),
            )
        )
    return found


def occurrences(context: str, text: str) -> list[int]:
    """The characters at which a text begins, overlapping ones too."""
    return (
        [found.start() for found in re.finditer(f"(?={re.escape(text)})", context)] if text else []
    )


def was_moved(context: str, gold: Gold) -> bool:
    """Whether the table's start does not point at its answer."""
    return (
        gold.start is not None
        and context[max(gold.start, 0) : gold.start + len(gold.text)] != gold.text
    )


def cuts_a_word(context: str, start: int, end: int) -> bool:
    """Whether an answer begins or ends inside a word, in a script that puts spaces between words and nothing at their ends."""
    return any(
        all(c.isalnum() and unicodedata.category(c) != "Lo" for c in context[i - 1 : i + 1])
        for i in (start, end)
        if 0 < i < len(context)
    )


def stands_elsewhere(context: str, question: str, start: int, end: int) -> bool:
    """Whether the same answer stands in another sentence that shares clearly more words with the question."""
    text = context[start:end]
    places = occurrences(context, text)
    if len(places) < 2:
        return False
    wanted = _stems(question)
    sentences = sentence_spans(context)

    def shared(place: int) -> int:
        sentence = next(context[a:b] for a, b in sentences if a <= place < b)
        return len(wanted & _stems(sentence.replace(text, " ")))

    return max(map(shared, places)) - shared(start) >= NEARER


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The characters (start, end) of each sentence, by its closing mark and the space behind it."""
    return list(
        pairwise([0, *(found.end() for found in re.finditer(r"[.!?]\s+", text)), len(text)])
    )


def _stems(text: str) -> set[str]:
    return {
        word[:STEM].casefold()
        for word in re.findall(r"\w+", text)
        if len(word) >= SHORTEST_WORD or word.isdigit()
    }


def row_logsumexp(logits: torch.Tensor, keep: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """The log of the sum of exponentials over the kept tokens of all windows of a row.

    Args:
        logits: (windows of all rows, tokens).
        keep: of the same shape; which tokens count.
        windows: how many windows each row has.

    Returns:
        (rows,)
    """
    by_window = logits.masked_fill(~keep, NEVER).logsumexp(1)
    owner = owners(windows, len(by_window))
    highest = logits.new_full((len(windows),), NEVER).scatter_reduce(
        0, owner, by_window.detach(), "amax"
    )
    return (
        highest
        + torch.zeros_like(highest).index_add(0, owner, (by_window - highest[owner]).exp()).log()
    )


def best_spans(
    start: torch.Tensor,
    end: torch.Tensor,
    allowed: torch.Tensor,
    offsets: Sequence[Sequence[tuple[int, int]]],
    context: str,
    null: float | None,
    longest: int,
    count: int,
) -> tuple[list[Span], float]:
    """The likeliest spans of one row, and the probability that there is none.

    A span begins and ends on allowed tokens of one window and has at most `longest` tokens; its probability is relative
    to all such spans of all windows, and to there being no answer. Spans of the same characters are one span.

    Args:
        start: logits of shape (windows, tokens).
        end: likewise.
        allowed: which tokens can be in an answer, of that shape.
        offsets: the characters (start, end) of each window's tokens.
        context: what the offsets count in; white space around a span is left out of it.
        null: the logit of no answer; None where there always is one.
        longest: tokens of a span.
        count: of the spans that are returned.
    """
    width = start.shape[1]
    begin, stop = start.masked_fill(~allowed, NEVER), end.masked_fill(~allowed, NEVER)
    table = torch.full((len(start), width, min(longest, width)), 2 * NEVER, dtype=start.dtype)
    for more in range(table.shape[2]):  # (window, first token, tokens after it)
        table[:, : width - more, more] = begin[:, : width - more] + stop[:, more:]
    total = table.flatten().logsumexp(0)
    if null is not None:
        total = torch.logaddexp(total, torch.tensor(null, dtype=total.dtype))
    begin_at, end_at = _inner_ends(offsets, context)
    keep = allowed.unsqueeze(2).expand_as(table) & (
        table > NEVER / 2
    )  # an end beyond the window, or not allowed, is far below
    window, token, extra = (places.numpy() for places in keep.nonzero(as_tuple=True))
    begins, ends = begin_at[window, token], end_at[window, token + extra]
    shares = (table[keep] - total).exp().numpy()
    real = begins < ends
    keys, owner = np.unique(begins[real] * (len(context) + 1) + ends[real], return_inverse=True)
    merged = np.bincount(owner, weights=shares[real], minlength=len(keys))
    best = np.lexsort((keys, -merged))[:count]
    spans = [
        Span(
            int(keys[i] // (len(context) + 1)), int(keys[i] % (len(context) + 1)), float(merged[i])
        )
        for i in best
    ]
    return spans, 0.0 if null is None else float((null - total).exp())


def _inner_ends(
    offsets: Sequence[Sequence[tuple[int, int]]], context: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where a span from, and to, each token begins and ends, each of shape (windows, tokens): without white space, in whole characters.

    A tokenizer may cut what a reader sees as one character: an emoji from its skin colour, a letter from its accent.
    """
    first, last = (
        np.arange(len(context) + 1),
        np.arange(len(context) + 1),
    )  # of the character that a place is in
    if not context.isascii():
        for found in regex.finditer(r"\X", context):
            if not found[0][0].isspace():  # which no span begins with, accent or not
                first[found.start() : found.end()], last[found.start() + 1 : found.end()] = (
                    found.start(),
                    found.end(),
                )
    begins = [
        [first[len(context) - len(context[a:].lstrip())] for a, _ in places] for places in offsets
    ]
    ends = [[last[len(context[:b].rstrip())] for _, b in places] for places in offsets]
    return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)

"""Answers as spans of characters: what a table says, where it stands, and which spans a model finds."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

NEVER = -1e9  # as a logit; finite, so that a line without a candidate has a gradient of zero and not of nan
SHOWN_CHARACTERS = 40
NEARER = 3  # words of the question that another place must share more before the given one is doubted
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


def gold_answers(value: Any) -> list[Gold]:
    """The answers of a cell: SQuAD's {"text": [...], "answer_start": [...]}, a list of such objects, or a text.

    Raises:
        ValueError: the cell holds something else; the text continues the row's number.
    """
    if value is None or isinstance(value, str):
        return [Gold(value, None)] if value and value.strip() else []
    if isinstance(value, Mapping) and not isinstance(value.get("text"), list):
        value = [value] if value.get("text") else []
    elif isinstance(value, Mapping):
        starts = value.get("answer_start") or [None] * len(value["text"])
        if len(starts) != len(value["text"]):
            raise ValueError(f"has {len(value['text'])} answer texts and {len(starts)} answer_start values, expected as many")
        value = [{"text": text, "answer_start": start} for text, start in zip(value["text"], starts, strict=True)]
    if not isinstance(value, list) or not all(isinstance(item, Mapping) and isinstance(item.get("text"), str) for item in value):
        raise ValueError(f"has the answers {str(value)[:SHOWN_CHARACTERS]!r}, expected a text or objects with text and answer_start")
    return [Gold(item["text"], None if item.get("answer_start") is None else int(item["answer_start"])) for item in value
            if item["text"].strip()]


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
                there = "" if start is None else f" at character {start}, where {context[max(start, 0):][:SHOWN_CHARACTERS]!r} stands"
                often = f"{len(places)} times" if places else "nowhere"
                raise ValueError(f"has the answer {gold.text[:SHOWN_CHARACTERS]!r}{there}; it occurs {often} in the context; "
                                 "correct its answer_start")
            start, end = places[0], places[0] + len(text)
        found.append((start, int(end or 0)))
    return found


def occurrences(context: str, text: str) -> list[int]:
    """The characters at which a text begins, overlapping ones too."""
    return [found.start() for found in re.finditer(f"(?={re.escape(text)})", context)] if text else []


def was_moved(context: str, gold: Gold) -> bool:
    """Whether the table's start does not point at its answer."""
    return gold.start is not None and context[max(gold.start, 0) : gold.start + len(gold.text)] != gold.text


def cuts_a_word(context: str, start: int, end: int) -> bool:
    """Whether an answer begins or ends inside a word."""
    return any(context[i - 1].isalnum() and context[i].isalnum() for i in (start, end) if 0 < i < len(context))


def stands_elsewhere(context: str, question: str, start: int, end: int) -> bool:
    """Whether the same answer stands in another sentence that shares clearly more words with the question."""
    text = context[start:end]
    places = occurrences(context, text)
    if len(places) < 2:
        return False
    wanted = _stems(question)
    ends = [0, *(found.end() for found in re.finditer(r"[.!?]\s+", context)), len(context)]

    def shared(place: int) -> int:
        sentence = next(context[a:b] for a, b in pairwise(ends) if a <= place < b)
        return len(wanted & _stems(sentence.replace(text, " ")))

    return max(map(shared, places)) - shared(start) >= NEARER


def _stems(text: str) -> set[str]:
    return {word[:STEM].casefold() for word in re.findall(r"\w+", text) if len(word) >= SHORTEST_WORD or word.isdigit()}


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
    rows = torch.full((len(windows), int(windows.max())), NEVER, dtype=logits.dtype, device=logits.device)
    owner = torch.repeat_interleave(windows)
    place = torch.cat([torch.arange(int(count)) for count in windows]).to(owner.device)
    return rows.index_put((owner, place), by_window).logsumexp(1)


def best_spans(start: torch.Tensor, end: torch.Tensor, allowed: torch.Tensor, offsets: Sequence[Sequence[tuple[int, int]]], context: str,
               null: float | None, longest: int, count: int) -> tuple[list[Span], float]:
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
    for extra in range(table.shape[2]):  # (window, first token, tokens after it)
        table[:, : width - extra, extra] = begin[:, : width - extra] + stop[:, extra:]
    total = table.flatten().logsumexp(0)
    if null is not None:
        total = torch.logaddexp(total, torch.tensor(null, dtype=total.dtype))
    values, places = table.flatten().topk(min(table.numel(), count * (len(start) + 1) * 2))
    merged: dict[tuple[int, int], float] = {}
    for value, place in zip((values - total).exp().tolist(), places.tolist(), strict=True):
        line, rest = divmod(place, width * table.shape[2])
        first, extra = divmod(rest, table.shape[2])
        if first + extra >= width or not (allowed[line, first] and allowed[line, first + extra]):
            continue
        a, b = offsets[line][first][0], offsets[line][first + extra][1]
        text = context[a:b]
        a, b = a + len(text) - len(text.lstrip()), b - (len(text) - len(text.rstrip()))
        if a < b:
            merged[a, b] = merged.get((a, b), 0.0) + value
    found = sorted((Span(a, b, p) for (a, b), p in merged.items()), key=lambda s: (-s.probability, s.start, s.end))
    return found[:count], 0.0 if null is None else float((null - total).exp())

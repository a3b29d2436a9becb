"""Find the likeliest spans of a context from the logits of their first and last tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import regex
import torch

from peftcls.engine.head_logits import row_of_windows

# A logit for what must not be chosen. It is finite, so that a window without a candidate has a
# gradient of zero and not of nan.
MASKED_LOGIT = -1e9


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the context, and how likely they are the answer."""

    start: int
    end: int
    probability: float


def row_logsumexp(logits: torch.Tensor, keep: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """The logarithm of the sum of exponentials over the kept tokens of all windows of a row.

    Args:
        logits: of shape (windows of all rows, tokens).
        keep: of the same shape; which tokens count.
        windows: how many windows each row has.

    Returns:
        (rows,)
    """
    by_window = logits.masked_fill(~keep, MASKED_LOGIT).logsumexp(1)
    row = row_of_windows(windows, len(by_window))
    highest = logits.new_full((len(windows),), MASKED_LOGIT)
    highest = highest.scatter_reduce(0, row, by_window.detach(), "amax")
    scaled = (by_window - highest[row]).exp()
    sums = torch.zeros_like(highest).index_add(0, row, scaled)
    return highest + sums.log()


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
    """The likeliest spans of one row, and the probability that there is no answer.

    A span begins and ends on allowed tokens of one window and has at most `longest` tokens. Its
    probability is relative to all such spans of all windows, and to there being no answer. Spans of
    the same characters are one span.

    Args:
        start: logits of shape (windows, tokens).
        end: logits of shape (windows, tokens).
        allowed: which tokens can be in an answer, of shape (windows, tokens).
        offsets: the characters (start, end) of each window's tokens.
        context: the text that the offsets refer to; spans have no white space around them.
        null: the logit of there being no answer; None if every question has one.
        longest: tokens of a span.
        count: of the spans that are returned.
    """
    table = _span_logits(start, end, allowed, longest)
    total = table.flatten().logsumexp(0)
    if null is not None:
        total = torch.logaddexp(total, torch.tensor(null, dtype=total.dtype))
    # The logit of a span that ends outside the window or on a token that is not allowed is so low.
    possible = allowed.unsqueeze(2).expand_as(table) & (table > MASKED_LOGIT / 2)
    window, token, extra = (indices.numpy() for indices in possible.nonzero(as_tuple=True))
    probabilities = (table[possible] - total).exp().numpy()
    token_begins, token_ends = _trimmed_offsets(offsets, context)
    spans = _merge_spans(
        token_begins[window, token],
        token_ends[window, token + extra],
        probabilities,
        len(context),
        count,
    )
    if null is None:
        return spans, 0.0
    return spans, float((null - total).exp())


def _span_logits(
    start: torch.Tensor, end: torch.Tensor, allowed: torch.Tensor, longest: int
) -> torch.Tensor:
    """Logits of all spans, of shape (windows, first token, tokens after the first one)."""
    width = start.shape[1]
    first = start.masked_fill(~allowed, MASKED_LOGIT)
    last = end.masked_fill(~allowed, MASKED_LOGIT)
    shape = (len(start), width, min(longest, width))
    table = torch.full(shape, 2 * MASKED_LOGIT, dtype=start.dtype)
    for extra in range(shape[2]):
        table[:, : width - extra, extra] = first[:, : width - extra] + last[:, extra:]
    return table


def _merge_spans(
    begins: np.ndarray,
    ends: np.ndarray,
    probabilities: np.ndarray,
    context_length: int,
    count: int,
) -> list[Span]:
    """Add up the probabilities of equal spans; return the likeliest ones in descending order."""
    # A span as one number that grows with its begin, then with its end.
    base = context_length + 1
    is_not_empty = begins < ends
    keys = begins[is_not_empty] * base + ends[is_not_empty]
    unique_keys, positions = np.unique(keys, return_inverse=True)
    merged = np.bincount(positions, weights=probabilities[is_not_empty], minlength=len(unique_keys))
    best = np.lexsort((unique_keys, -merged))[:count]
    spans = []
    for i in best:
        begin, end = divmod(int(unique_keys[i]), base)
        spans.append(Span(begin, end, float(merged[i])))
    return spans


def _trimmed_offsets(
    offsets: Sequence[Sequence[tuple[int, int]]], context: str
) -> tuple[np.ndarray, np.ndarray]:
    """The characters at which a span from a token begins and a span to it ends.

    Without white space around them, and without cutting what a reader sees as one character: a
    tokenizer may separate an emoji from its skin colour, or a letter from its accent.

    Returns:
        Two arrays of shape (windows, tokens).
    """
    begin_of, end_of = _character_bounds(context)
    begins = []
    ends = []
    for window in offsets:
        starts = [len(context) - len(context[start:].lstrip()) for start, _ in window]
        begins.append([begin_of[start] for start in starts])
        stops = [len(context[:end].rstrip()) for _, end in window]
        ends.append([end_of[stop] for stop in stops])
    return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)


def _character_bounds(context: str) -> tuple[np.ndarray, np.ndarray]:
    """For each index, where the visible character around it begins and ends."""
    begin_of = np.arange(len(context) + 1)
    end_of = np.arange(len(context) + 1)
    if context.isascii():
        return begin_of, end_of
    for match in regex.finditer(r"\X", context):
        first = match.start()
        if match[0][0].isspace():
            # No span begins with white space, even where an accent follows it.
            first += 1
        begin_of[first : match.end()] = first
        end_of[first + 1 : match.end()] = match.end()
    return begin_of, end_of

"""Texts with marked spans, shortened where they are far from a mark."""

from collections.abc import Sequence
from itertools import groupby, pairwise

# Characters of a text without marks, and of a text on both sides of a mark.
MAX_CHARACTERS = 420
CONTEXT_CHARACTERS = 160
Span = tuple[int, int]
Pieces = tuple[tuple[str, str], ...]
"""A text in pieces, each with its mark: "" for none, "gold", "given" or "both"."""


def clip_text(text: str) -> Pieces:
    """The beginning of a text, as one piece without a mark."""
    return ((_head(text, MAX_CHARACTERS), ""),)


def mark_spans(text: str, gold: Sequence[Span], given: Sequence[Span]) -> Pieces:
    """Cut a text into pieces that are in gold spans, in given ones, in both or in neither.

    Unmarked pieces are shortened where they are far from a mark.
    """
    borders = {0, len(text)}
    for span in (*gold, *given):
        borders.update(span)
    marked = []
    for start, end in pairwise(sorted(borders)):
        marked.append((start, end, _mark(_covers(gold, start, end), _covers(given, start, end))))
    pieces = []
    for mark, neighbours in groupby(marked, key=lambda piece: piece[2]):
        run = list(neighbours)
        start = run[0][0]
        end = run[-1][1]
        piece = text[start:end]
        if not mark:
            piece = _shorten(piece, is_first=start == 0, is_last=end == len(text))
        pieces.append((piece, mark))
    return tuple(pieces)


def _covers(spans: Sequence[Span], start: int, end: int) -> bool:
    """Whether one of the spans covers a piece of the text."""
    return any(span_start <= start and end <= span_end for span_start, span_end in spans)


def _mark(is_gold: bool, is_given: bool) -> str:
    if is_gold and is_given:
        return "both"
    if is_gold:
        return "gold"
    return "given" if is_given else ""


def _shorten(piece: str, *, is_first: bool, is_last: bool) -> str:
    """Shorten an unmarked piece, where it is far from the marked pieces beside it."""
    if is_first and is_last:
        return _head(piece, MAX_CHARACTERS)
    if is_first:
        return _tail(piece, CONTEXT_CHARACTERS)
    if is_last:
        return _head(piece, CONTEXT_CHARACTERS)
    if len(piece) <= 2 * CONTEXT_CHARACTERS:
        return piece
    return _head(piece, CONTEXT_CHARACTERS) + _tail(piece, CONTEXT_CHARACTERS).removeprefix("…")


def _head(text: str, longest: int) -> str:
    """The beginning of a text, up to the end of a word if possible."""
    if len(text) <= longest:
        return text
    whole_words = text[: longest + 1].rsplit(" ", 1)[0]
    return whole_words[:longest] + " …"


def _tail(text: str, longest: int) -> str:
    """The end of a text, from the beginning of a word if possible."""
    if len(text) <= longest:
        return text
    whole_words = text[-longest - 1 :].split(" ", 1)[-1]
    return "… " + whole_words[-longest:]

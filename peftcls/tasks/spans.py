"""Answers as spans of characters: read them from a table, and find them in their context."""

import contextlib
import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

SHOWN_CHARACTERS = 40
BETTER_BY_WORDS = 3  # words of the question that another sentence must share more
MIN_WORD_CHARACTERS = 4
STEM_CHARACTERS = 5


@dataclasses.dataclass(frozen=True)
class Gold:
    """A right answer as it is written in the table; `start` is None where the table has none."""

    text: str
    start: int | None


def is_empty_cell(value: Any) -> bool:
    """Whether a cell says neither what the answer is nor that the question has none."""
    return value is None or (isinstance(value, str) and not value.strip())


def gold_answers(value: Any) -> list[Gold]:
    """The answers of a cell.

    Args:
        value: SQuAD's {"text": [...], "answer_start": [...]}, a list of such objects, or a text;
            an empty list stands for a question without an answer.

    Raises:
        ValueError: the cell holds something else; the text continues "row 17".
    """
    value = _parse_json(value)
    if is_empty_cell(value):
        return []
    if isinstance(value, str):
        return [Gold(value, None)]
    items = _answer_objects(value)
    for item in items:
        start = item.get("answer_start")
        if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
            raise ValueError(
                f"has the answer_start {start!r}, expected a whole number of characters"
            )
    if any(not item["text"].strip() for item in items):
        raise ValueError(
            "has an answer without a text, expected words of the context, "
            "or an empty list where there is no answer"
        )
    return [Gold(item["text"], item.get("answer_start")) for item in items]


def _parse_json(value: Any) -> Any:
    """A JSON object or list that is written as a text, as in a csv file; otherwise unchanged."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _answer_objects(value: Any) -> list[Mapping[str, Any]]:
    """The answers of a cell as a list of objects, each with a text."""
    items = value
    if isinstance(value, Mapping):
        items = _from_squad(value) if isinstance(value.get("text"), list) else [value]
    if not isinstance(items, list) or not all(_has_text(item) for item in items):
        raise ValueError(
            f"has the answers {str(items)[:SHOWN_CHARACTERS]!r}, "
            "expected a text or objects with text and answer_start"
        )
    return items


def _has_text(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("text"), str)


def _from_squad(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"text": [...], "answer_start": [...]} as a list of objects with one text each."""
    texts = value["text"]
    starts = value.get("answer_start")
    if starts is None or starts == []:
        starts = [None] * len(texts)
    if not isinstance(starts, list):
        raise ValueError(
            f"has the answer_start {starts!r} beside a list of texts, "
            "expected a list of whole numbers"
        )
    if len(starts) != len(texts):
        raise ValueError(
            f"has {len(texts)} answer texts and {len(starts)} answer_start values, expected as many"
        )
    return [
        {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
    ]


def find_answers(context: str, golds: Sequence[Gold]) -> list[tuple[int, int]]:
    """Find answers in their context, as characters (start, end), without white space around them.

    If a start does not point at its answer, it may count something else than characters: bytes,
    the units of UTF-16, or line ends as two. Else an answer that occurs exactly once is taken where
    it occurs.

    Raises:
        ValueError: an answer is not in the context, or occurs several times and its start points at
            none of them; the text continues "row 17".
    """
    spans = []
    for gold in golds:
        start, end = _find_answer(context, gold)
        inside = context[start:end]
        leading = len(inside) - len(inside.lstrip())
        trailing = len(inside) - len(inside.rstrip())
        spans.append((start + leading, end - trailing))
    return spans


def _find_answer(context: str, gold: Gold) -> tuple[int, int]:
    """The characters (start, end) of one answer."""
    if gold.start is not None and gold.start >= 0:
        end = gold.start + len(gold.text)
        if context[gold.start : end] == gold.text:
            return gold.start, end
        for start in _counted_otherwise(context, gold.start):
            if context[start : start + len(gold.text)] == gold.text:
                return start, start + len(gold.text)
    text = gold.text.strip()
    starts = occurrences(context, text)
    if len(starts) != 1:
        raise ValueError(_not_found(context, gold, starts))
    return starts[0], starts[0] + len(text)


def _counted_otherwise(context: str, start: int) -> Iterator[int]:
    """The characters that a start may mean where it was counted in another way."""
    widths: tuple[Callable[[str], int], ...] = (
        lambda character: 1 + (character == "\n"),
        lambda character: len(character.encode("utf-16-le", "surrogatepass")) // 2,
        lambda character: len(character.encode("utf-8", "surrogatepass")),
    )
    for width in widths:
        counted = 0
        for i, character in enumerate(context):
            if counted >= start:
                if counted == start:
                    yield i
                break
            counted += width(character)


def _not_found(context: str, gold: Gold, starts: Sequence[int]) -> str:
    """Why an answer cannot be found: it occurs nowhere, or at several starts."""
    location = ""
    if gold.start is not None:
        there = context[max(gold.start, 0) :][:SHOWN_CHARACTERS]
        location = f" at character {gold.start}, where {there!r} stands"
    if gold.start is not None:
        advice = "correct its answer_start"
    elif not starts:
        advice = "correct it"
    else:
        advice = f'say where: {{"text": [...], "answer_start": [{starts[0]}]}}'
    count = f"{len(starts)} times" if starts else "nowhere"
    return (
        f"has the answer {gold.text[:SHOWN_CHARACTERS]!r}{location}; "
        f"it occurs {count} in the context; {advice}"
    )


def occurrences(context: str, text: str) -> list[int]:
    """The characters at which a text begins, overlapping occurrences too."""
    if not text:
        return []
    return [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]


def has_wrong_start(context: str, gold: Gold) -> bool:
    """Whether the table's start does not point at its answer."""
    if gold.start is None:
        return False
    return context[max(gold.start, 0) : gold.start + len(gold.text)] != gold.text


def cuts_a_word(context: str, start: int, end: int) -> bool:
    """Whether an answer begins or ends inside a word.

    False in scripts that do not put spaces between words.
    """
    return any(_is_inside_word(context, i) for i in (start, end))


def _is_inside_word(context: str, i: int) -> bool:
    """Whether letters or digits of a script with spaces are on both sides of a character index."""
    if not 0 < i < len(context):
        return False
    neighbours = context[i - 1 : i + 1]
    return all(c.isalnum() and unicodedata.category(c) != "Lo" for c in neighbours)


def occurs_in_better_sentence(context: str, question: str, start: int, end: int) -> bool:
    """Whether the same answer is in another sentence that shares more words with the question."""
    text = context[start:end]
    starts = occurrences(context, text)
    if len(starts) < 2:
        return False
    question_stems = _stems(question)
    sentences = sentence_spans(context)

    def shared_words(character: int) -> int:
        sentence = next(context[a:b] for a, b in sentences if a <= character < b)
        return len(question_stems & _stems(sentence.replace(text, " ")))

    best = max(shared_words(other) for other in starts)
    return best - shared_words(start) >= BETTER_BY_WORDS


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The characters (start, end) of each sentence, by its closing mark and the space after it."""
    ends = [match.end() for match in re.finditer(r"[.!?]\s+", text)]
    return list(pairwise([0, *ends, len(text)]))


def _stems(text: str) -> set[str]:
    """The first letters of all numbers and of all words that are not short."""
    words = re.findall(r"\w+", text)
    return {
        word[:STEM_CHARACTERS].casefold()
        for word in words
        if len(word) >= MIN_WORD_CHARACTERS or word.isdigit()
    }

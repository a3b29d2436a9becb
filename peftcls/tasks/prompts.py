"""Prompts: fill in the template, find where the answer begins, and shorten only the document."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftcls.data.reading import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_NEW_TOKENS = 2  # a token of the answer and its end mark
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(template: str) -> list[str]:
    """The names between braces, in order, each once."""
    return list(dict.fromkeys(PLACEHOLDER.findall(template)))


def lengths_problem(max_length: int, max_new_tokens: int, *, generates: bool) -> str | None:
    """What is wrong with the lengths of a prompt and its answer, or None.

    Args:
        max_length: tokens of both together.
        max_new_tokens: tokens of the answer, its end mark included.
        generates: whether so many tokens are kept free for an answer.
    """
    if max_new_tokens < MIN_NEW_TOKENS:
        return (
            f"max_new_tokens={max_new_tokens}: expected at least {MIN_NEW_TOKENS}, a token of the "
            "answer and its end mark"
        )
    if max_length <= MIN_NEW_TOKENS:
        return f"max_length={max_length}: expected more than {MIN_NEW_TOKENS} tokens"
    if generates and max_length <= max_new_tokens:
        return (
            f"max_length={max_length} with max_new_tokens={max_new_tokens}: expected room for a "
            "prompt beside the answer; raise the one or lower the other"
        )
    return None


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in the placeholders of a template; braces inside a value are never filled in."""

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if value is None:
            return ""
        return str(value)

    return PLACEHOLDER.sub(value_of, template)


def prompt_remark(template: str) -> str:
    """How another program has to write prompts, in one sentence."""
    cue, _ = split_cue(template)
    return f"The prompt must be written as it was trained, without white space at its end: {cue!r}."


def split_cue(template: str) -> tuple[str, str]:
    """Split a template into the text and the white space at its end, which begins the answer.

    Most tokenizers merge a space with the word after it. An answer that brings its own space is
    tokenized the same in training, where it follows, and in prediction, where it does not yet.
    """
    cue = template.rstrip()
    space = template[len(cue) :]
    return cue, space or " "


def tokenize_with_answers(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Tokenize prompts with their answers, each pair as one text, and split the tokens again.

    Args:
        tokenizer: of the base model.
        pairs: (prompt, answer).

    Returns:
        For each pair the tokens before the first token of the answer, and the tokens from there on,
        without an end mark.
    """
    encoded = tokenizer(
        [prompt + answer for prompt, answer in pairs],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    tokens = []
    for index, (prompt, _) in enumerate(pairs):
        ids = encoded["input_ids"][index]
        length = _length_without_end_mark(encoded["special_tokens_mask"][index])
        first = _first_token_after(len(prompt), encoded["offset_mapping"][index][:length])
        tokens.append((ids[:first], ids[first:length]))
    return tokens


def _length_without_end_mark(special: Sequence[int]) -> int:
    """The length without special tokens at the end: the task adds its own end mark."""
    length = len(special)
    while length > 0 and special[length - 1]:
        length -= 1
    return length


def _first_token_after(characters: int, offsets: Sequence[tuple[int, int]]) -> int:
    """The first token that reaches beyond so many characters."""
    for index, (_, end) in enumerate(offsets):
        if end > characters:
            return index
    return len(offsets)


def supervised_positions(feature: Mapping[str, Any]) -> list[int]:
    """1 at each position whose logits predict a token of the answer: the position before it."""
    before = feature["prompt_tokens"] - 1
    return [0] * before + [1] * int(feature["weight"]) + [0]


@functools.lru_cache(maxsize=4)
def tokenize_labels(
    template: str, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> list[tuple[int, ...]]:
    """The tokens of each label after a template, cached because every row needs them.

    `vocabulary` is a part of the cache key: tokens may be added to a tokenizer.
    """
    if not labels:
        return []
    cue, space = split_cue(template)
    prompt = render(cue, {})
    pairs = [(prompt, space + label) for label in labels]
    return [tuple(answer) for _, answer in tokenize_with_answers(tokenizer, pairs)]


def fit_document(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    values: dict[str, Any],
    document: str,
    limit_tokens: int,
) -> tuple[str, bool]:
    """Render a prompt, and cut the end of the document where the prompt would be too long.

    Args:
        tokenizer: of the base model.
        template: the prompt's template.
        values: by placeholder.
        document: the placeholder whose value can be cut.
        limit_tokens: of the whole prompt.

    Returns:
        The prompt, and whether the document was cut.

    Raises:
        RowError: the rest of the prompt leaves no room for a document.
    """
    prompt = render(template, values)
    shortened = False
    document_position = max(template.find("{" + document + "}"), 0)
    start = len(render(template[:document_position], values))
    while True:
        encoded = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        prompt_tokens = len(encoded["input_ids"])
        excess = prompt_tokens - limit_tokens
        if excess <= 0:
            return prompt, shortened
        text = str(values.get(document) or "")
        # The first character of each token of the document.
        token_starts = [
            first
            for first, end in encoded["offset_mapping"]
            if start <= first < end <= start + len(text)
        ]
        remaining = len(token_starts) - excess
        if remaining <= 0:
            other_tokens = prompt_tokens - len(token_starts)
            raise RowError(
                f"has a prompt of {other_tokens} tokens without {document!r}, expected fewer than "
                f"{limit_tokens}; shorten its other columns or raise max_length"
            )
        cut = text[: token_starts[remaining] - start].rstrip()
        values = {**values, document: cut}
        prompt = render(template, values)
        shortened = True

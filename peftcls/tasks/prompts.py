"""Prompts in tokens: rendering, shortening the document alone, and where the answer begins."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import RowError

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(template: str) -> list[str]:
    """The names between braces, in order, each once."""
    return list(dict.fromkeys(PLACEHOLDER.findall(template)))


def render(template: str, values: Mapping[str, Any]) -> str:
    """The template with its placeholders filled in; nothing in a value is ever read as a placeholder or run."""
    return PLACEHOLDER.sub(
        lambda found: "" if (value := values.get(found[1])) is None else str(value), template
    )


def split_cue(template: str) -> tuple[str, str]:
    """The template without the white space at its end, and that white space, which begins the answer.

    Most tokenizers merge a space with the word after it; an answer that brings its own space is tokenized alike
    whether it stands there (training) or not yet (prediction).
    """
    cue = template.rstrip()
    return cue, template[len(cue) :] or " "


def tokenize_answered(
    tokenizer: PreTrainedTokenizerBase, answered: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Prompts and their answers, each pair tokenized in one go and parted where the first token of the answer begins."""
    read = tokenizer(
        [prompt + answer for prompt, answer in answered],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    found = []
    for (prompt, _), ids, special, places in zip(
        answered,
        read["input_ids"],
        read["special_tokens_mask"],
        read["offset_mapping"],
        strict=True,
    ):
        length = len(ids)
        while (
            length and special[length - 1]
        ):  # an end mark of the tokenizer's own; the task adds its own after the answer
            length -= 1
        first = next((i for i, (_, end) in enumerate(places[:length]) if end > len(prompt)), length)
        found.append((ids[:first], ids[first:length]))
    return found


def fit_document(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    values: dict[str, Any],
    document: str,
    limit_tokens: int,
) -> tuple[str, bool]:
    """The prompt, with the end of the document cut where it would pass the limit, and whether it was cut.

    Raises:
        RowError: the rest of the prompt leaves no room for a document.
    """
    prompt, shortened = render(template, values), False
    head = render(template[: max(template.find("{" + document + "}"), 0)], values)
    while True:
        found = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        excess = len(found["input_ids"]) - limit_tokens
        if excess <= 0:
            return prompt, shortened
        text = str(values.get(document) or "")
        inside = [
            start
            for start, end in found["offset_mapping"]
            if len(head) <= start < end <= len(head) + len(text)
        ]
        if excess >= len(inside):
            rest = len(found["input_ids"]) - len(inside)
            raise RowError(
                f"has a prompt of {rest} tokens without {document!r}, expected fewer than {limit_tokens}; shorten "
                "its other columns or raise max_length"
            )
        values = {**values, document: text[: inside[len(inside) - excess] - len(head)].rstrip()}
        prompt, shortened = render(template, values), True

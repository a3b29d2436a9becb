"""Conversations of several turns: the earlier turns are written before the prompt of the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftcls.data.annotation_formats import EARLIER_TURNS
from peftcls.data.reading import Row, RowError
from peftcls.tasks.prompts import fit_document, placeholders, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_FIELDS = {"role", "content"}
TURNS_OF_A_QUESTION = 2


def turns_of(row: Row) -> list[Mapping[str, str]]:
    """The earlier turns of a row; none where it has no column of them."""
    return list(row.get(EARLIER_TURNS) or ())


def text_of_conversation(row: Row, columns: Sequence[str]) -> str:
    """The earlier turns and the texts of some columns as one text."""
    earlier = [turn["content"] for turn in turns_of(row)]
    return "\n".join([*earlier, *(str(row[column] or "") for column in columns)])


def turns_problem(row: Row) -> str | None:
    """What is wrong with the earlier turns of a row, or None."""
    turns = row.get(EARLIER_TURNS)
    if turns is None:
        return None
    if isinstance(turns, list) and all(_is_turn(turn) for turn in turns):
        return None
    return (
        f"has {str(turns)[:80]} in column {EARLIER_TURNS!r}, expected a list of turns, each with "
        "a role and a content, both texts"
    )


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or not set(turn) >= TURN_FIELDS:
        return False
    return all(isinstance(turn[field], str) for field in TURN_FIELDS)


def with_place_for_turns(template: str) -> str:
    """A template that begins with the earlier turns, unless it says where they are."""
    if EARLIER_TURNS in placeholders(template):
        return template
    return f"{{{EARLIER_TURNS}}}{template}"


def write_turns(turns: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Turns as a text: by the tokenizer's chat template, or a line each where it has none.

    Raises:
        RowError: the chat template refuses them.
    """
    if not turns:
        return ""
    if not tokenizer.chat_template:
        lines = [f"{turn['role']}: {turn['content']}\n" for turn in turns]
        return "".join(lines) + "\n"
    import jinja2

    messages = [{field: turn[field] for field in ("role", "content")} for turn in turns]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except jinja2.TemplateError as error:
        raise RowError(
            f"has earlier turns that the chat template of the base refuses: {error}; correct them"
        ) from None
    # The tokenizer puts its own first token before every prompt.
    first = str(tokenizer.bos_token or "")
    if first and text.startswith(first) and _adds_first_token(tokenizer):
        return text.removeprefix(first)
    return text


def _adds_first_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer("", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]


def fit_conversation(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    values: Row,
    turns: Sequence[Mapping[str, str]],
    limits: Sequence[int],
) -> tuple[str, bool]:
    """Render a prompt; where it is too long, leave out the oldest turns, then cut the document.

    Args:
        tokenizer: of the base model.
        template: the prompt's template.
        values: by placeholder, the earlier turns as a text among them.
        turns: the earlier turns.
        limits: tokens of the whole prompt. It must be possible to keep to each of them; the last
            one counts. Turns are left out by the first.

    Returns:
        The prompt, and whether anything of it was left out.

    Raises:
        RowError: the rest of the prompt leaves no room for a document.
    """
    left = list(turns)
    while left and _count_tokens(tokenizer, render(template, values)) > limits[0]:
        left = left[TURNS_OF_A_QUESTION:]
        values = {**values, EARLIER_TURNS: write_turns(left, tokenizer)}
    prompt, is_cut = "", False
    for limit_tokens in limits:
        prompt, is_cut = fit_document(tokenizer, template, values, "input", limit_tokens)
    return prompt, is_cut or len(left) < len(turns)


def _count_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    return len(tokenizer(prompt, verbose=False)["input_ids"])

"""Check the answers of extractive question answering: where they are, and whether they can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcls.data.reading import Row
from peftcls.tasks.base import Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.spans import (
    Gold,
    cuts_a_word,
    find_answers,
    gold_answers,
    has_wrong_start,
    occurs_in_better_sentence,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_faults(task: Task, row: Row, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return the codes of what is odd about the answers of a question that the task can read.

    Args:
        task: only answers of an `ExtractiveQA` are checked.
        row: the question with its context and answers.
        tokenizer: to find answers that are too long; None not to look for them.
    """
    if not isinstance(task, ExtractiveQA):
        return []
    context = row[task.context]
    question = row[task.question]
    answers = gold_answers(row[task.answers])
    codes = []
    if row.get("is_impossible") is True and answers:
        codes.append("impossible-answered")
    if row.get("is_impossible") is False and not answers:
        codes.append("possible-unanswered")
    if any(has_wrong_start(context, answer) for answer in answers):
        codes.append("moved-answer")
    for start, end in dict.fromkeys(find_answers(context, answers)):
        if cuts_a_word(context, start, end):
            codes.append("cut-word")
        if occurs_in_better_sentence(context, question, start, end):
            codes.append("doubtful-answer")
    if tokenizer is not None and _has_long_answer(answers, task.max_answer_tokens, tokenizer):
        codes.append("long-answer")
    # Several answers of a row may have the same fault.
    return list(dict.fromkeys(codes))


def _has_long_answer(
    answers: list[Gold], max_answer_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether an answer has more tokens than the model may predict."""
    # A token has at least one byte, so most answers need no tokenizer.
    candidates = [
        answer.text for answer in answers if len(answer.text.encode()) > max_answer_tokens
    ]
    if not candidates:
        return False
    token_ids = tokenizer(candidates, add_special_tokens=False, verbose=False)["input_ids"]
    return max(map(len, token_ids)) > max_answer_tokens

"""Lists of keywords by a language model: several are drawn, and at least two have to agree.

The likeliest list of a small model leaves much out, and often repeats itself. What several drawn
answers have in common is more often right: Wang et al. 2022, "Self-Consistency Improves Chain of
Thought Reasoning in Language Models", section 2.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from peftcls.engine.model_state import state_of
from peftcls.metrics import keyword_words
from peftcls.tasks.answers import Answer
from peftcls.tasks.generation import draw_tokens, generate_tokens, text_of_tokens
from peftcls.tasks.list_cells import joined, keywords_of

MIN_VOTES = 2
MAX_TOKENS = 1 << 15
"""Of the prompts of all lists that are drawn at once, each counted with each of its lists."""


def generate_lists(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    separator: str,
    samples: int,
) -> list[Answer]:
    """A list for each prompt, the keywords with most votes first.

    Args:
        model: a causal language model.
        prompts: tokens of each.
        tokenizer: with a padding token and an end mark.
        max_new_tokens: of a list, its end mark included.
        separator: between keywords.
        samples: lists that are drawn for each prompt; with one, the likeliest is the answer.
    """
    if samples == 1:
        likeliest = generate_tokens(model, prompts, tokenizer, max_new_tokens)
        return [_answer([ids], tokenizer, separator) for ids in likeliest]
    answers = []
    for together in _parts(model, prompts, samples):
        stop = _Repeats(tokenizer, max(map(len, together)), separator)
        drawn = draw_tokens(model, together, tokenizer, max_new_tokens, samples, stop=stop)
        answers += [_answer(lists, tokenizer, separator) for lists in drawn]
    return answers


def _parts(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], samples: int
) -> Iterator[Sequence[Sequence[int]]]:
    """Prompts whose lists are drawn together, so that their keys and values fit into memory."""
    rows = max(MAX_TOKENS // (samples * max(map(len, prompts))), 1)
    # Processes that hold a base in shares make equally many calls, of batches that may differ.
    if state_of(model).shares is not None:
        rows = len(prompts)
    for start in range(0, len(prompts), rows):
        yield prompts[start : start + rows]


def _answer(
    lists: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, separator: str
) -> Answer:
    """The answer that the tokens of lists give; unusable if none has an end, or no keywords."""
    texts = [text_of_tokens(ids, tokenizer) for ids in lists]
    keywords = voted([keywords_of(text, separator) for text in texts])
    has_ended = any(tokenizer.eos_token_id in ids for ids in lists)
    text = texts[0] if len(texts) == 1 else joined(keywords, separator)
    return Answer(text=text, labels=keywords, usable=has_ended and bool(keywords))


def voted(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The keywords of at least two lists, most votes first; where there are none, the first list's.

    Keywords are compared as `metrics.keyword_scores` does, and written as where they come first.
    """
    if len(lists) == 1:
        return tuple(lists[0])
    votes: Counter[str] = Counter()
    spellings: dict[str, str] = {}
    for keywords in lists:
        votes.update(dict.fromkeys(map(keyword_words, keywords), 1))
        for keyword in keywords:
            spellings.setdefault(keyword_words(keyword), keyword)
    agreed = [spellings[words] for words, count in votes.most_common() if count >= MIN_VOTES]
    return tuple(agreed or next(filter(None, lists), ()))


class _Repeats(StoppingCriteria):
    """Ends a list that gives a keyword again: a model that does so would go on without end."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int, separator: str
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens
        self._separator = separator

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        ended = [self._has_repeated(row) for row in input_ids[:, self._prompt_tokens :].tolist()]
        return torch.tensor(ended, device=input_ids.device)

    def _has_repeated(self, ids: list[int]) -> bool:
        # What comes behind the last separator is not finished yet.
        *finished, _ = text_of_tokens(ids, self._tokenizer).split(self._separator)
        keywords = [keyword.strip() for keyword in finished if keyword.strip()]
        return len(set(keywords)) < len(keywords)

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
MAX_SEQUENCES = 128
"""Lists that are drawn at once."""


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
    lists: list[list[list[int]]] = []
    for together in _parts(model, prompts, samples):
        stop = _Repeats(tokenizer, max(map(len, together)), separator)
        if samples == 1:
            likeliest = generate_tokens(model, together, tokenizer, max_new_tokens, stop=stop)
            lists += [[ids] for ids in likeliest]
        else:
            lists += draw_tokens(model, together, tokenizer, max_new_tokens, samples, stop=stop)
    return [_answer(drawn, tokenizer, separator, max_new_tokens) for drawn in lists]


def _parts(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], samples: int
) -> Iterator[Sequence[Sequence[int]]]:
    """Prompts whose lists are generated together, so that their keys and values fit into memory."""
    rows = max(MAX_SEQUENCES // samples, 1)
    # Processes that hold a base in shares make equally many calls, of batches that may differ.
    if samples == 1 or state_of(model).shares is not None:
        rows = len(prompts)
    for start in range(0, len(prompts), rows):
        yield prompts[start : start + rows]


def _answer(
    drawn: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    separator: str,
    max_new_tokens: int,
) -> Answer:
    """The answer that lists of a prompt give; unusable if all are cut off, or have no keywords."""
    texts = [text_of_tokens(ids, tokenizer) for ids in drawn]
    keywords = voted([keywords_of(text, separator) for text in texts])
    has_ended = any(is_whole(ids, tokenizer, max_new_tokens) for ids in drawn)
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


def is_whole(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> bool:
    """Whether generated tokens have come to an end, and were not cut off.

    Beside the answers of other rows, one that was stopped is padded.
    """
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return len(ids) < max_new_tokens or not ends.isdisjoint(ids)


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
        words = [keyword_words(keyword) for keyword in finished]
        return len(set(words)) < len(words)

"""Generate answers to prompts with a causal language model."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from peftcls.engine.model_state import state_of, unwrapped
from peftcls.engine.probes import can_continue
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import pad

TEMPERATURE = 0.8
"""Of drawn answers: a little below 1, so that fewer of them lose the thread."""


def generate_texts(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> list[Answer]:
    """The likeliest text after each prompt; unusable without an end or a word."""
    answers = []
    for new_ids in generate_tokens(model, prompts, tokenizer, max_new_tokens):
        text = text_of_tokens(new_ids, tokenizer)
        usable = tokenizer.eos_token_id in new_ids and bool(text)
        answers.append(Answer(text=text, usable=usable))
    return answers


def generate_tokens(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> list[list[int]]:
    """The tokens that follow each prompt, the likeliest at each place, with padding on the left.

    Args:
        model: a causal language model.
        prompts: tokens of each.
        tokenizer: with a padding token and an end mark.
        max_new_tokens: of an answer, its end mark included.
    """
    ids, mask = _padded(model, prompts, tokenizer)
    return _generate(model, ids, mask, tokenizer, max_new_tokens)


def draw_tokens(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    samples: int,
    *,
    stop: StoppingCriteria | None = None,
) -> list[list[list[int]]]:
    """The tokens of several answers to each prompt, drawn by their probability.

    What is drawn depends on the prompt alone, not on the prompts beside it. A prompt is computed
    once for all its answers, where the model can continue from its keys and values.

    Args:
        model: as of `generate_tokens`, like all other arguments but this one.
        prompts: tokens of each.
        tokenizer: with a padding token and an end mark.
        max_new_tokens: of an answer.
        samples: answers to each prompt.
        stop: ends some of the answers earlier.
    """
    ids, mask = _padded(model, prompts, tokenizer)
    cache = _prompt_cache(model, ids, mask, samples)
    draws = _Draws(prompts, samples, max_new_tokens, ids)
    answers = _generate(
        model,
        ids.repeat_interleave(samples, dim=0),
        mask.repeat_interleave(samples, dim=0),
        tokenizer,
        max_new_tokens,
        stop=stop,
        logits_processor=LogitsProcessorList([draws]),
        past_key_values=cache,
    )
    return [answers[start : start + samples] for start in range(0, len(answers), samples)]


def text_of_tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of generated tokens up to their end mark."""
    ids = list(ids)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _padded(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    ids = pad(prompts, int(tokenizer.pad_token_id), "left")
    mask = pad([[1] * len(prompt) for prompt in prompts], 0, "left")
    return ids.to(device), mask.to(device)


def _generate(
    model: torch.nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    *,
    stop: StoppingCriteria | None = None,
    **settings: Any,
) -> list[list[int]]:
    likeliest = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    found = unwrapped(model).generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=likeliest,
        stopping_criteria=StoppingCriteriaList([stop] if stop is not None else []),
        # Another process's answers may be longer, and to gather the base takes all of them.
        synced_gpus=state_of(model).shares is not None,
        **settings,
    )
    new_ids: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return new_ids


def _prompt_cache(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, samples: int
) -> DynamicCache | None:
    """The keys and values of prompts but for their last token, for each of their answers.

    None where the model cannot continue from them, or has to make as many calls as it makes in
    other processes.
    """
    if ids.shape[1] == 1 or state_of(model).shares is not None or not can_continue(model):
        return None
    cache = DynamicCache()
    unwrapped(model)(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=(mask[:, :-1].cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(samples)
    return cache


class _Draws(LogitsProcessor):
    """Leaves one token a row: that at which a number between 0 and 1 stands in the distribution."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        max_new_tokens: int,
        padded: torch.Tensor,
    ) -> None:
        numbers = []
        for prompt in prompts:
            digest = hashlib.sha256(repr(list(prompt)).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6]))
            numbers.append(torch.rand(samples, max_new_tokens, generator=generator))
        self._numbers = torch.cat(numbers).to(padded.device)
        self._prompt_tokens = padded.shape[1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self._prompt_tokens
        sums = (scores.float() / TEMPERATURE).softmax(dim=1).cumsum(dim=1)
        wanted = self._numbers[:, place : place + 1] * sums[:, -1:]
        chosen = torch.searchsorted(sums, wanted, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

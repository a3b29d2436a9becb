"""Generate answers to prompts with a causal language model."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from peftcls.engine.model_state import state_of, unwrapped
from peftcls.tasks.base import pad


def generate_tokens(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> list[list[int]]:
    """The tokens that follow each prompt, generated greedily, with padding on the left."""
    device = next(model.parameters()).device
    input_ids = pad(prompts, int(tokenizer.pad_token_id), "left")
    mask = pad([[1] * len(prompt) for prompt in prompts], 0, "left")
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    ids = unwrapped(model).generate(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        generation_config=greedy,
        # Another process's answers may be longer, and to gather the base takes all of them.
        synced_gpus=state_of(model).shares is not None,
    )
    new_ids: list[list[int]] = ids[:, input_ids.shape[1] :].tolist()
    return new_ids

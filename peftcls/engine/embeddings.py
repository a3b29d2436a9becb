"""Embeddings: one vector for each row, which a head reads, or the mean of the last layer."""

from collections.abc import Callable
from typing import Any

import torch

from peftcls.engine.batch import INPUTS, Batch
from peftcls.engine.head_inputs import recording
from peftcls.engine.head_logits import decoder_states, mean_of_windows, pool
from peftcls.engine.model_state import base_facts, unwrapped
from peftcls.engine.padding_free import padding_free


def head_states(layer: torch.nn.Module, batch: Batch, forward: Callable[[], Any]) -> torch.Tensor:
    """What a head's last layer reads of each row, of shape (rows, width), in float32.

    Args:
        layer: that gives the logits, and reads one state a sequence.
        batch: that is read.
        forward: computes the logits of the batch.
    """
    with recording(layer) as recorded:
        forward()
    assert recorded.inputs is not None, "the head has computed"
    return _of_rows(recorded.inputs.float(), batch)


def mean_states(model: torch.nn.Module, batch: Batch, *, causal: bool = True) -> torch.Tensor:
    """The mean of the last layer's states over the real tokens of each row, in float32.

    Args:
        model: with an adapter or without.
        batch: that is read.
        causal: False lets every token of a decoder see the whole text.

    Returns:
        Means of shape (rows, width).
    """
    inner = unwrapped(model)
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    # Positions are counted from the first token, so padding goes to the right.
    order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
    moved = {name: values.gather(1, order) for name, values in inputs.items()}
    mask = moved["attention_mask"]
    with padding_free(inner, mask):
        if base_facts(inner).causal:
            states = decoder_states(inner.base_model, moved["input_ids"], mask, causal=causal)
        else:
            states = inner.base_model(**moved).last_hidden_state
    return _of_rows(pool(states.float(), mask, "mean"), batch)


def _of_rows(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """One state for each row: the mean over its windows, if it has several."""
    if "windows" not in batch:
        return states
    return mean_of_windows(states, batch["windows"])

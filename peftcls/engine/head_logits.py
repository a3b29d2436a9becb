"""The logits of heads, read at the tokens that the attention mask says are right."""

import inspect
from typing import Any

import torch

from peftcls.engine.batch import INPUTS, Batch
from peftcls.engine.kernels import batch_tokens
from peftcls.engine.model_choices import Pooling
from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.engine.padding_free import padding_free
from peftcls.engine.pair_features import compare_texts
from peftcls.engine.precision import in_float32
from peftcls.engine.probes import head_reads_first_token

PROBE_TOKENS = 6


def class_logits(
    model: torch.nn.Module, batch: Batch, pooling: Pooling | None, *, causal: bool = True
) -> torch.Tensor:
    """Logits of shape (rows, labels), the same for a row alone, in a batch, left- or right-padded.

    An encoder's own head knows which token it reads where the padding is on the side it expects, so
    it is put there; a linear head reads the mean of its tokens. A decoder's stock head guesses the
    last token from the padding id, which fails where padding and end of text share one; here the
    mask decides, and the head gets that state only. Of a row in several windows the logits are
    averaged. A pair that is compared is three sequences, of which the head reads the features.
    """
    if "windows" not in batch:
        return _sequence_logits(model, _model_inputs(batch), pooling, causal=causal)
    logits = [
        _sequence_logits(model, part, pooling, causal=causal)
        for part in parts_of_windows(model, batch)
    ]
    return mean_of_windows(torch.cat(logits), batch["windows"])


def parts_of_windows(model: torch.nn.Module, batch: Batch) -> list[Batch]:
    """What a model reads of one row that has many windows, in parts that fit.

    A long document may have more windows than memory has room for at once; several rows of a batch
    were chosen so that they fit. They stay together where a gradient is needed, where the states of
    frozen layers come from a cache, and where other processes count the calls.
    """
    inputs = _model_inputs(batch)
    sequences, tokens = inputs["input_ids"].shape
    state = state_of(model)
    stay_together = state.uses_frozen_cache or state.shares is not None
    if len(batch["windows"]) > 1 or torch.is_grad_enabled() or stay_together:
        return [inputs]
    at_once = max(1, batch_tokens(inputs["input_ids"].device) // tokens)
    return [
        {name: values[start : start + at_once] for name, values in inputs.items()}
        for start in range(0, sequences, at_once)
    ]


def mean_of_windows(values: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Mean over the windows of each row.

    Args:
        values: of shape (windows of all rows, any).
        windows: how many each row has, of shape (rows,).

    Returns:
        Means of shape (rows, any).
    """
    sums = values.new_zeros(len(windows), values.shape[1])
    sums = sums.index_add(0, row_of_windows(windows, len(values)), values)
    return sums / windows.unsqueeze(1)


def row_of_windows(windows: torch.Tensor, sequences: int) -> torch.Tensor:
    """The row that each window belongs to, of shape (sequences,).

    Args:
        windows: how many each row has.
        sequences: their sum, which is known, so that no device has to be waited for.
    """
    return torch.repeat_interleave(windows, output_size=sequences)


def _model_inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in INPUTS if name in batch}


def head_of(inner: Any) -> torch.nn.Module:
    """The linear head of a model that has one."""
    head: torch.nn.Module = inner.get_submodule(base_facts(inner).heads[0])
    return head


def _sequence_logits(
    model: torch.nn.Module, inputs: Batch, pooling: Pooling | None, *, causal: bool
) -> torch.Tensor:
    if base_facts(model).causal:
        return _decoder_logits(model, inputs, pooling, causal=causal)
    return _encoder_logits(model, inputs)


def _encoder_logits(model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
    inner = unwrapped(model)
    pooling = base_facts(inner).pooling
    # XLNet's head reads the last token there is, so its padding goes to the left.
    text_first = getattr(inner.config, "summary_type", "first") != "last"
    order = inputs["attention_mask"].argsort(dim=1, descending=text_first, stable=True)
    moved = {name: values.gather(1, order) for name, values in inputs.items()}
    mask = moved["attention_mask"]
    if pooling in ("mean", "compare"):
        with padding_free(inner, mask):
            states = inner.base_model(**moved).last_hidden_state
        pooled = pool(states, mask, "mean")
        pooled_logits: torch.Tensor = head_of(inner)(
            compare_texts(pooled) if pooling == "compare" else pooled
        )
        return pooled_logits
    needed = None
    if head_reads_first_token(inner):
        needed = marked_token(mask, "first")
    with padding_free(inner, mask, needed=needed):
        logits: torch.Tensor = model(**moved).logits
    return logits


def _decoder_logits(
    model: torch.nn.Module, inputs: Batch, pooling: Pooling | None, *, causal: bool
) -> torch.Tensor:
    inner = unwrapped(model)
    mask = inputs["attention_mask"]
    chosen: Pooling = pooling or "last"
    needed = None if chosen == "mean" else marked_token(mask, chosen)
    with padding_free(inner, mask, needed=needed):
        states = decoder_states(inner.base_model, inputs["input_ids"], mask, causal=causal)
    logits: torch.Tensor = head_of(inner)(pool(states, mask, chosen))
    return logits


def end_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of an answer's first and last token, each of shape (sequences, tokens).

    They do not depend on the side that the padding is on.
    """
    parts = [_end_logits(model, part) for part in parts_of_windows(model, batch)]
    start, end = (torch.cat(logits) for logits in zip(*parts, strict=True))
    return start, end


def _end_logits(model: torch.nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inner = unwrapped(model)
    # Positions are counted from the first token, so padding goes to the right.
    order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
    moved = {name: values.gather(1, order) for name, values in inputs.items()}
    mask = moved["attention_mask"]
    if base_facts(inner).causal:
        with padding_free(inner, mask):
            states = decoder_states(inner.base_model, moved["input_ids"], mask, causal=True)
        start, end = head_of(inner)(states).split(1, dim=2)
        start, end = start.squeeze(2), end.squeeze(2)
    else:
        with padding_free(inner, mask):
            # PEFT's model for question answering would drop the token types.
            output = inner(**moved)
        start, end = output.start_logits, output.end_logits
    back = order.argsort(dim=1)
    return in_float32(start).gather(1, back), in_float32(end).gather(1, back)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One state a row: states of shape (rows, tokens, width) give (rows, width)."""
    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)
    position = _position(mask, pooling)[:, None, None]
    return states.take_along_dim(position, dim=1).squeeze(1)


def _position(mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """The position of each row's last or first real token, of shape (rows,)."""
    if pooling == "last":
        return (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
    return mask.argmax(1)


def marked_token(mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """True at the token that is read, of shape (rows, tokens)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return columns == _position(mask, pooling).unsqueeze(1)


def decoder_states(
    backbone: torch.nn.Module, input_ids: torch.Tensor, mask: torch.Tensor, *, causal: bool
) -> torch.Tensor:
    """Last hidden states of shape (rows, tokens, width).

    Positions are counted from the first real token.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
    accepted = inspect.signature(backbone.forward).parameters
    if "position_ids" in accepted:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    if not causal:
        # A mask of four dimensions is taken as it is: (rows, 1, tokens that see, tokens seen).
        dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
        hidden = (1 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        inputs["attention_mask"] = hidden.expand(-1, 1, mask.shape[1], -1)
    states: torch.Tensor = backbone(**inputs).last_hidden_state
    return states


@torch.no_grad()
def sees_later_tokens(backbone: torch.nn.Module, vocabulary: int, *, causal: bool) -> bool:
    """Whether the first token's state depends on the last token.

    The model itself is asked, since its name says little.
    """
    device = next(backbone.parameters()).device
    tokens = torch.arange(7, 7 + PROBE_TOKENS, device=device).remainder(vocabulary)
    ids = tokens.repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 5) % vocabulary
    first = decoder_states(backbone, ids, torch.ones_like(ids), causal=causal)[:, 0]
    return not torch.allclose(first[0], first[1], rtol=1e-4, atol=1e-6)

"""The logits of a classification head, read from the token that the attention mask says is right."""

import inspect
from typing import Any, Literal

import torch

from peftcls.engine.packing import at_rest, can_narrow, packed

Pooling = Literal["cls", "first", "last", "mean"]
PROBE_TOKENS = 6
FIRST_ALONE = "reads_first_alone"


def class_logits(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    pooling: Pooling | None,
    *,
    causal: bool = True,
) -> torch.Tensor:
    """Logits of shape (rows, labels), the same for a row alone, in a batch, left- or right-padded.

    An encoder's own head knows which token it reads where the padding is on the side it expects, so it is put there. A
    decoder's stock head guesses the last token from the padding id, which fails where padding and end of text share
    one; here the mask decides, and the head sees that state alone. Of a row in several windows the logits are averaged.
    """
    logits = _line_logits(model, batch, pooling, causal=causal)
    if "windows" not in batch:
        return logits
    return mean_of_windows(logits, batch["windows"])


def mean_of_windows(values: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Means over the windows of each row: (windows of all rows, values) and how many each row has give (rows, values)."""
    return values.new_zeros(len(windows), values.shape[1]).index_add(
        0, owners(windows, len(values)), values
    ) / windows.unsqueeze(1)


def owners(windows: torch.Tensor, lines: int) -> torch.Tensor:
    """The row that each window is of, where so many windows each row has; they are counted already, so no device is waited for."""
    return torch.repeat_interleave(windows, output_size=lines)


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or wider: in bf16 a loss has steps of about 0.004."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _line_logits(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], pooling: Pooling | None, *, causal: bool
) -> torch.Tensor:
    inner = unwrapped(model)
    inputs = {
        name: batch[name]
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in batch
    }
    if not inner.base_facts.causal:
        text_first = (
            getattr(inner.config, "summary_type", "first") != "last"
        )  # XLNet's head reads the last token there is
        order = inputs["attention_mask"].argsort(dim=1, descending=text_first, stable=True)
        moved = {name: values.gather(1, order) for name, values in inputs.items()}
        first = _marks(moved["attention_mask"], "first") if _reads_first_alone(inner) else None
        with packed(inner, moved["attention_mask"], reads=first):
            return model(**moved).logits
    reads = None if pooling == "mean" else _marks(inputs["attention_mask"], pooling or "last")
    with packed(inner, inputs["attention_mask"], reads=reads):
        states = decoder_states(
            inner.base_model, inputs["input_ids"], inputs["attention_mask"], causal=causal
        )
    return inner.get_submodule(inner.base_facts.heads[0])(
        pool(states, inputs["attention_mask"], pooling or "last")
    )


def end_logits(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of an answer's first and last token, each of shape (lines, tokens), whatever side the padding is on."""
    inner = unwrapped(model)
    inputs = {
        name: batch[name]
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in batch
    }
    order = inputs["attention_mask"].argsort(
        dim=1, descending=True, stable=True
    )  # positions are counted from the first token
    moved = {name: values.gather(1, order) for name, values in inputs.items()}
    if inner.base_facts.causal:
        with packed(inner, moved["attention_mask"]):
            states = decoder_states(
                inner.base_model, moved["input_ids"], moved["attention_mask"], causal=True
            )
        start, end = inner.get_submodule(inner.base_facts.heads[0])(states).split(1, dim=2)
        found = (start.squeeze(2), end.squeeze(2))
    else:
        with packed(inner, moved["attention_mask"]):
            output = inner(
                **moved
            )  # around it PEFT drops the token types of a question answering model
        found = (output.start_logits, output.end_logits)
    back = order.argsort(dim=1)
    start, end = (widened(logits).gather(1, back) for logits in found)
    return start, end


def unwrapped(model: torch.nn.Module) -> Any:
    """The transformers model inside a PEFT model; itself where there is none around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One state a row: states of shape (rows, tokens, width) and a mask of shape (rows, tokens) give (rows, width)."""
    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)
    return states.take_along_dim(_place(mask, pooling)[:, None, None], dim=1).squeeze(1)


def _place(mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Where each row's last or first real token stands, of shape (rows,)."""
    return (
        (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
        if pooling == "last"
        else mask.argmax(1)
    )


def _marks(mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """True there, of shape (rows, tokens)."""
    return torch.arange(mask.shape[1], device=mask.device) == _place(mask, pooling).unsqueeze(1)


def _reads_first_alone(inner: Any) -> bool:
    """Whether the head of an encoder reads its first token and no other: asked once, of the model itself."""
    if not can_narrow(inner):
        return False
    if FIRST_ALONE not in vars(inner):
        vars(inner)[FIRST_ALONE] = _same_without_others(inner)
    return bool(vars(inner)[FIRST_ALONE])


@torch.no_grad()
def _same_without_others(inner: Any) -> bool:
    device, vocabulary = next(inner.parameters()).device, inner.config.get_text_config().vocab_size
    ids = torch.arange(7, 7 + 2 * PROBE_TOKENS, device=device).remainder(vocabulary).view(2, -1)
    mask = torch.ones_like(ids)
    with at_rest(inner):
        found = []
        for reads in (torch.ones_like(ids).bool(), _marks(mask, "first")):
            with packed(inner, mask, reads=reads, asked=True):
                found.append(inner(input_ids=ids, attention_mask=mask).logits)
    near = 3e-2 if found[0].dtype in (torch.bfloat16, torch.float16) else 1e-4
    return float((found[0] - found[1]).abs().max()) <= near * float(found[0].abs().max())


def decoder_states(
    backbone: torch.nn.Module, input_ids: torch.Tensor, mask: torch.Tensor, *, causal: bool
) -> torch.Tensor:
    """Last hidden states of shape (rows, tokens, width); positions are counted from the first real token."""
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
    accepted = inspect.signature(backbone.forward).parameters
    if "position_ids" in accepted:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    if (
        not causal
    ):  # a mask of four dimensions is taken as it stands: (rows, 1, reading tokens, tokens read)
        dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
        hidden = (1 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        inputs["attention_mask"] = hidden.expand(-1, 1, mask.shape[1], -1)
    return backbone(**inputs).last_hidden_state


@torch.no_grad()
def sees_later_tokens(backbone: torch.nn.Module, vocabulary: int, *, causal: bool) -> bool:
    """Whether the first token's state depends on the last token: asked of the model itself, not of its name."""
    ids = (
        torch.arange(7, 7 + PROBE_TOKENS, device=next(backbone.parameters()).device)
        .remainder(vocabulary)
        .repeat(2, 1)
    )
    ids[1, -1] = (ids[1, -1] + 5) % vocabulary
    first = decoder_states(backbone, ids, torch.ones_like(ids), causal=causal)[:, 0]
    return not torch.allclose(first[0], first[1], rtol=1e-4, atol=1e-6)

"""Probes: whether a model gives the same results on a fast path, asked once of the model itself.

Each probe computes a small batch with and without the fast path. A model that cannot do it, or
gives other numbers, goes without. The reason is kept in `Capabilities.reasons` and logged at DEBUG.
"""

import inspect
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from peftcls.engine.layers import evaluation_mode
from peftcls.engine.model_state import (
    ModelState,
    base_facts,
    state_of,
    transformer_layers,
    unwrapped,
)
from peftcls.engine.packing import Packing, run_packed
from peftcls.engine.precision import tolerance
from peftcls.engine.prefix_cache import PrefixLengthCache, fill_cache, tensors_of

logger = logging.getLogger("peftcls")

PACKING_LENGTHS = (7, 4, 2)  # tokens of the rows that packing is tried on
PREFIX_PROBE_TOKENS = 8  # of a row, half of them prefix
FIRST_TOKEN_PROBE_TOKENS = 6
ENGINE_FOLDER = Path(__file__).parent
MODEL_ERRORS = (
    TypeError,
    ValueError,
    RuntimeError,
    IndexError,
    AttributeError,
    KeyError,
    AssertionError,
)


def can_pack(model: torch.nn.Module) -> bool:
    """Whether a model gives the same states without padding."""
    inner = unwrapped(model)
    state = state_of(inner)
    # Gradient checkpointing computes layers again, outside of all hooks.
    if not state.fast_paths.packing or uses_gradient_checkpointing(inner):
        return False
    if state.capabilities.packing is None:
        state.capabilities.packing = run_probe(state, "packing", lambda: _packs(inner))
    return state.capabilities.packing


def can_subset_last_layer(model: torch.nn.Module) -> bool:
    """Whether the last layer gives the same states when it is computed for some tokens only."""
    inner = unwrapped(model)
    state = state_of(inner)
    if not state.fast_paths.last_layer or not can_pack(inner):
        return False
    if state.capabilities.last_layer is None:
        state.capabilities.last_layer = run_probe(
            state, "last_layer", lambda: _packs(inner, subset=True)
        )
    return state.capabilities.last_layer


def can_share_prefix(model: torch.nn.Module) -> bool:
    """Whether the rows of a table can share the keys and values of their common prefix."""
    # Cached frozen layers compute no keys and values.
    return not state_of(model).uses_frozen_cache and can_continue(model)


def can_continue(model: torch.nn.Module) -> bool:
    """Whether a model gives the same logits when it continues from the KV cache of a prefix."""
    inner = unwrapped(model)
    state = state_of(inner)
    # Checkpointed layers keep no keys and values.
    if not state.fast_paths.prefix or uses_gradient_checkpointing(inner):
        return False
    if state.capabilities.prefix is None:
        state.capabilities.prefix = run_probe(state, "prefix", lambda: _continues(inner))
    return state.capabilities.prefix


def can_pack_behind_prefix(model: torch.nn.Module) -> bool:
    """Whether a model that shares a prefix can leave out the padding behind it."""
    inner = unwrapped(model)
    state = state_of(inner)
    if not (can_pack(inner) and can_share_prefix(inner)):
        return False
    if state.capabilities.packing_behind_prefix is None:
        state.capabilities.packing_behind_prefix = run_probe(
            state, "packing_behind_prefix", lambda: _continues(inner, packed=True)
        )
    return state.capabilities.packing_behind_prefix


def head_reads_first_token(model: torch.nn.Module) -> bool:
    """Whether the head of an encoder reads the first token and no other."""
    inner = unwrapped(model)
    state = state_of(inner)
    if not can_subset_last_layer(inner):
        return False
    if state.capabilities.head_reads_first_token is None:
        state.capabilities.head_reads_first_token = run_probe(
            state, "head_reads_first_token", lambda: _same_without_others(inner)
        )
    return state.capabilities.head_reads_first_token


def ask_all(model: torch.nn.Module) -> None:
    """Ask a model for everything that it may be able to do.

    Processes that hold a base in shares must ask together: afterwards each has rows of its own.
    """
    inner = unwrapped(model)
    can_subset_last_layer(inner)
    if base_facts(inner).causal:
        can_pack_behind_prefix(inner)
    elif state_of(inner).task_type == "SEQ_CLS":
        head_reads_first_token(inner)


def describe_capabilities(model: torch.nn.Module) -> str:
    """One line: the fast paths that a model uses on its device, and why it does not use others."""
    inner = unwrapped(model)
    state = state_of(inner)
    able = {
        "packing": can_pack(inner),
        "last_layer": can_subset_last_layer(inner),
        "frozen_cache": state.fast_paths.frozen_cache,
        "kernels": state.fast_paths.kernels,
    }
    if state.base is not None and state.base.causal:
        able["prefix"] = can_share_prefix(inner)
    if next(inner.parameters()).device.type == "cuda":
        able["cuda_graphs"] = state.fast_paths.cuda_graphs
    used = [name for name, is_used in able.items() if is_used]
    unused = [f"{name} ({_why_not(inner, name)})" for name, is_used in able.items() if not is_used]
    line = f"fast paths: {', '.join(used) or 'none'}"
    return f"{line}; without {', '.join(unused)}" if unused else line


def _why_not(inner: torch.nn.Module, name: str) -> str:
    state = state_of(inner)
    if not getattr(state.fast_paths, name):
        return "switched off"
    if name in state.capabilities.reasons:
        return state.capabilities.reasons[name]
    if uses_gradient_checkpointing(inner):
        return "gradient checkpointing computes layers again"
    return "it needs packing" if name == "last_layer" else "frozen layers are cached"


def uses_gradient_checkpointing(model: torch.nn.Module) -> bool:
    """Whether any of a model's layers is computed again in the backward pass."""
    state = state_of(model)
    if state.checkpointable is None:
        modules = unwrapped(model).modules()
        state.checkpointable = [m for m in modules if hasattr(m, "gradient_checkpointing")]
    return any(module.gradient_checkpointing for module in state.checkpointable)


def run_probe(state: ModelState, name: str, probe: Callable[[], str | None]) -> bool:
    """Run a probe, and keep and log why a model cannot use a fast path.

    A model may fail in many ways on a path that its authors never thought of, and goes without it
    then. An error that is raised by a line of the engine itself is also reported as a warning, with
    its traceback: it is more likely a fault of peftcls than of the model.

    Args:
        state: of the model.
        name: of the fast path.
        probe: returns why the model cannot use it; None where it can.

    Returns:
        Whether the model can use it.

    Raises:
        NameError: the engine is broken; no model can cause that.
    """
    try:
        reason = probe()
    except MODEL_ERRORS as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if _raised_in_engine(error):
            logger.warning("the fast path %r failed in peftcls itself: %s", name, reason)
            logger.warning("".join(traceback.format_exception(error)))
        if state.shares is not None:
            state.shares.reset()
    if reason is not None:
        state.capabilities.reasons[name] = reason
        logger.debug("the fast path %r is not used: %s", name, reason)
    return reason is None


def _raised_in_engine(error: BaseException) -> bool:
    """Whether the innermost Python line of an error belongs to the engine, and is no refusal of it.

    A `RuntimeError` or `IndexError` there comes from torch, which got tensors of an unforeseen
    shape.
    """
    if isinstance(error, RuntimeError | IndexError | ValueError):
        return False
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return Path(innermost.filename).parent == ENGINE_FOLDER


def _first_parameter(inner: torch.nn.Module) -> torch.nn.Parameter:
    return next(p for p in inner.parameters() if p.is_floating_point())


def _vocabulary(inner: Any) -> int:
    size: int = inner.config.get_text_config().vocab_size
    return size


def _compare(
    plain: torch.Tensor, fast: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype
) -> str | None:
    """Why two results are not the same up to rounding; None where they are."""
    difference = float((plain - fast).abs().max())
    if difference <= tolerance(dtype, narrow=0.1, wide=1e-3) * float(largest.abs().max()):
        return None
    return f"results differ by {difference:.2g} on a small batch"


@torch.no_grad()
def _packs(inner: Any, *, subset: bool = False) -> str | None:
    backbone = inner.base_model
    layers = transformer_layers(inner)
    if not layers:
        return "the model has no list of layers"
    if inner.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    parameter = _first_parameter(inner)
    rows, width = len(PACKING_LENGTHS), PACKING_LENGTHS[0]
    ids = torch.arange(11, 11 + width * rows, device=parameter.device).view(rows, -1)
    ids = ids.remainder(_vocabulary(inner))
    lengths = torch.tensor(PACKING_LENGTHS, device=ids.device).unsqueeze(1)
    mask = (torch.arange(width, device=ids.device) < lengths).long()
    needed = mask.bool() & (ids % 3 > 0) if subset else mask.bool()
    with evaluation_mode(inner):
        plain = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        packing = Packing(mask, needed if subset else None)
        with run_packed(layers, packing, subset=subset):
            fast = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    if not packing.masks:
        return "its attention is not one that transformers lets others replace"
    if packing.holds_needed != subset:
        return "its last layer could not be computed in two passes"
    return _compare(plain[needed], fast[needed], plain, parameter.dtype)


@torch.no_grad()
def _continues(inner: Any, *, packed: bool = False) -> str | None:
    backbone = inner.base_model
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return "the model takes no position_ids"
    parameter = _first_parameter(inner)
    half = PREFIX_PROBE_TOKENS // 2
    row = torch.arange(11, 11 + PREFIX_PROBE_TOKENS, device=parameter.device)
    ids = row.remainder(_vocabulary(inner)).repeat(2, 1)
    ids[1, half:] = ids[1, half:].flip(0)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    cache = DynamicCache()
    with evaluation_mode(inner):
        plain = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        backbone(input_ids=ids[:1, :half], past_key_values=cache, use_cache=True)
        # Sliding windows and recurrent states cannot be handed to other rows.
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return "its KV cache is not a plain one"
        rest = {
            "input_ids": ids[:, half:],
            "attention_mask": mask,
            "position_ids": torch.arange(half, PREFIX_PROBE_TOKENS, device=ids.device).expand(
                2, -1
            ),
            "use_cache": True,
        }
        prefix = tensors_of(cache)
        if packed:
            rest["past_key_values"] = fill_cache(PrefixLengthCache(), prefix)
            packing = Packing(mask[:, half:], None, prefix)
            with run_packed(transformer_layers(inner), packing):
                fast = backbone(**rest).last_hidden_state
        else:
            expanded = [tensor.expand(2, -1, -1, -1) for tensor in prefix]
            rest["past_key_values"] = fill_cache(DynamicCache(), expanded)
            fast = backbone(**rest).last_hidden_state
    real = mask[:, half:].bool()
    return _compare(plain[:, half:][real], fast[real], plain, parameter.dtype)


@torch.no_grad()
def _same_without_others(inner: Any) -> str | None:
    device = next(inner.parameters()).device
    tokens = torch.arange(7, 7 + 2 * FIRST_TOKEN_PROBE_TOKENS, device=device)
    ids = tokens.remainder(_vocabulary(inner)).view(2, -1)
    mask = torch.ones_like(ids)
    only_first = torch.zeros_like(ids, dtype=torch.bool)
    only_first[:, 0] = True
    logits = []
    with evaluation_mode(inner):
        for needed in (torch.ones_like(ids).bool(), only_first):
            packing = Packing(mask, needed)
            with run_packed(transformer_layers(inner), packing, subset=True):
                logits.append(inner(input_ids=ids, attention_mask=mask).logits)
    allowed = tolerance(logits[0].dtype, narrow=3e-2, wide=1e-4) * float(logits[0].abs().max())
    if float((logits[0] - logits[1]).abs().max()) <= allowed:
        return None
    return "the head reads other tokens than the first"

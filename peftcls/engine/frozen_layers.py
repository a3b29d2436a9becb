"""Filling and using the frozen-layer cache, for models that can skip their frozen layers."""

import contextlib
import dataclasses
import functools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from peftcls.engine.batch import Batch
from peftcls.engine.frozen_cache import (
    FrozenLayerCache,
    Part,
    StateStore,
    replaying_states,
    states_after,
)
from peftcls.engine.layers import named_layers
from peftcls.engine.model_state import state_of, unwrapped
from peftcls.engine.packing import current_packing
from peftcls.engine.precision import tolerance
from peftcls.engine.probes import run_probe

MAX_CACHE_BYTES = 1 << 36
DISK_SHARE = 0.5  # of the free space, at most, is used for a cache
Forward = Callable[[torch.nn.Module, Batch], torch.Tensor]


def find_frozen_layers(model: torch.nn.Module) -> tuple[torch.nn.ModuleList, int] | None:
    """The model's layers and how many of them are below all that is trained; None for none."""
    inner = unwrapped(model)
    backbone = inner.base_model
    name, layers = named_layers(backbone)
    if not len(layers) or inner.config.is_encoder_decoder:
        return None
    trained = [n for n, parameter in backbone.named_parameters() if parameter.requires_grad]
    outside = [n for n in trained if not n.startswith(f"{name}.")]
    if any("mbed" in n for n in outside):
        return None
    matches = [re.match(re.escape(name) + r"\.(\d+)\.", n) for n in trained]
    height = min((int(match[1]) for match in matches if match), default=len(layers))
    return (layers, height) if height else None


@contextlib.contextmanager
def caching_frozen_layers(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    forward: Forward,
    *,
    tokens: int,
    sequences: int,
    folder: Path,
) -> Iterator[str]:
    """Compute the frozen layers of all batches once; `using_cached_states` replays them afterwards.

    Where all layers are frozen and one token of a sequence is used above them, as by most heads,
    only that token's state is cached: the training is then one of a head on a vector a sequence.
    The gradient shows which token it is.

    Args:
        model: with its adapter, or with a part of it trained.
        batches: of all sequences that will be asked for.
        forward: a use of a model on a batch that gives a number to compare.
        tokens: of all sequences together.
        sequences: how many there are.
        folder: for the states, where they are too many for memory.

    Yields:
        A sentence about what was cached, or why nothing was; empty where every layer is trained.
    """
    state = state_of(model)
    frozen = find_frozen_layers(model) if state.fast_paths.frozen_cache else None
    remaining = iter(batches)
    first = next(remaining, None) if frozen is not None else None
    if frozen is None or first is None:
        yield ""
        return
    state.fills_frozen_cache = True
    cache: FrozenLayerCache | None = None
    try:
        layers, height = frozen
        with torch.no_grad():
            forward(model, first)  # asks the model's capabilities, while all layers compute
        states, in_tuple = _states_after(model, layers, height, first, forward)
        part: Part = "all"
        if height == len(layers):
            part = _used_part(model, first, forward, states, in_tuple)
        room = tokens if part == "all" else sequences
        size = room * states.shape[2] * states.dtype.itemsize
        if not _has_room(model, size, folder):
            remark = (
                f"the states of the {height} frozen layers would take {size / 2**30:.0f} GiB, so "
                "they are computed in every epoch."
            )
        else:
            store = StateStore(room, states.shape[2], states.dtype, folder)
            cache = FrozenLayerCache(layers, height, store, part, in_tuple)
            if _replays_exactly(model, cache, first, forward, states):
                _fill(model, cache, remaining, forward)
                state.frozen_cache = cache
                remark = _describe(cache, size)
            else:
                remark = (
                    f"{type(unwrapped(model)).__name__} cannot continue from cached states: its "
                    f"{height} frozen layers are computed in every epoch."
                )
        state.fills_frozen_cache = False
        yield remark
    finally:
        state.fills_frozen_cache = False
        state.frozen_cache = None
        if cache is not None:
            cache.store.close()


def _fill(
    model: torch.nn.Module, cache: FrozenLayerCache, batches: Iterable[Batch], forward: Forward
) -> None:
    for batch in batches:
        states, _ = _states_after(model, cache.layers, cache.height, batch, forward)
        cache.add(batch, states)


def _states_after(
    model: torch.nn.Module,
    layers: torch.nn.ModuleList,
    height: int,
    batch: Batch,
    forward: Forward,
) -> tuple[torch.Tensor, bool]:
    found = states_after(layers, height, functools.partial(forward, model, batch))
    shares = state_of(model).shares
    if shares is not None:
        shares.reset()
    return found


def _describe(cache: FrozenLayerCache, size: int) -> str:
    what = "their states"
    if cache.part != "all":
        what = f"the states of each sequence's {cache.part} token, the only one used above them"
    return (
        f"{cache.height} of {len(cache.layers)} layers are frozen and below all that is trained; "
        f"{what}, {size / 2**20:.1f} MiB, are cached."
    )


def _has_room(model: torch.nn.Module, size: int, folder: Path) -> bool:
    has_room = size <= min(MAX_CACHE_BYTES, DISK_SHARE * _free_bytes(folder))
    shares = state_of(model).shares
    if shares is None:
        return has_room
    # Another process may have found less.
    return bool(shares.least_and_most(has_room)[0])


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def sharing_cache(
    owner: torch.nn.Module, model: torch.nn.Module, batch: Batch, forward: Forward
) -> Iterator[bool]:
    """Let another model with the same frozen layers use the states cached for `owner`, if it can.

    Args:
        owner: for which `caching_frozen_layers` is open.
        model: made of the same weights, with as many frozen layers.
        batch: of sequences that are cached.
        forward: as for `caching_frozen_layers`.

    Yields:
        Whether it uses them.
    """
    shared = state_of(owner).frozen_cache
    state = state_of(model)
    frozen = find_frozen_layers(model)
    if shared is None or state.uses_frozen_cache or frozen is None or frozen[1] != shared.height:
        yield state.uses_frozen_cache
        return
    cache = dataclasses.replace(shared, layers=frozen[0])
    state.fills_frozen_cache = True
    try:
        usable = _replays_exactly(model, cache, batch, forward)
        state.fills_frozen_cache = False
        if usable:
            state.frozen_cache = cache
        yield usable
    finally:
        state.fills_frozen_cache = False
        state.frozen_cache = None


def _used_part(
    model: torch.nn.Module, batch: Batch, forward: Forward, states: torch.Tensor, in_tuple: bool
) -> Part:
    """The token of every sequence that the result depends on, by its gradient; "all" if not one."""
    frozen = find_frozen_layers(model)
    if frozen is None:
        return "all"
    layers, height = frozen
    leaf = states.detach().clone().requires_grad_()
    used: list[torch.Tensor] = []

    def leaf_states() -> torch.Tensor:
        packing = current_packing()
        if packing is None:
            return leaf
        return packing.pack(leaf)

    def probe() -> str | None:
        with torch.enable_grad(), replaying_states(layers, height, leaf_states, in_tuple):
            (gradient,) = torch.autograd.grad(forward(model, batch), leaf)
        used.append(gradient.abs().sum(2) != 0)
        return None

    if not run_probe(state_of(model), "frozen_cache", probe):
        return "all"
    lengths = batch["attention_mask"].sum(1)
    if int(lengths.min()) <= 1:
        return "all"
    columns = torch.arange(used[0].shape[1], device=used[0].device)
    if bool((used[0] == (columns == 0)).all()):
        return "first"
    if bool((used[0] == (columns == (lengths - 1).unsqueeze(1))).all()):
        return "last"
    return "all"


@torch.no_grad()
def _replays_exactly(
    model: torch.nn.Module,
    cache: FrozenLayerCache,
    batch: Batch,
    forward: Forward,
    states: torch.Tensor | None = None,
) -> bool:
    """Whether a model gives the same number from cached states as from all its layers.

    Args:
        model: of the cache.
        cache: what to try.
        batch: to try it with.
        forward: gives a number.
        states: of the batch, to be cached first; None where they are.
    """

    def probe() -> str | None:
        if states is not None:
            cache.add(batch, states)
        spans = cache.spans_of(batch)
        if spans is None:
            return "its sequences are not in the cache"
        plain = float(forward(model, batch))
        with cache.replaying(batch, spans) as short:
            replayed = float(forward(model, short))
        allowed = tolerance(cache.store.states.dtype, narrow=2e-2, wide=1e-4)
        if abs(plain - replayed) <= allowed * max(abs(plain), 1e-3):
            return None
        return f"the loss is {replayed:.6g} from cached states, {plain:.6g} otherwise"

    return run_probe(state_of(model), "frozen_cache", probe)


@contextlib.contextmanager
def using_cached_states(model: torch.nn.Module, batch: Batch) -> Iterator[Batch]:
    """Skip the frozen layers for this batch, if all of its sequences are cached.

    Yields:
        The batch to give to the model.
    """
    cache = state_of(model).frozen_cache
    spans = None if cache is None else cache.spans_of(batch)
    if cache is None or spans is None:
        yield batch
        return
    with cache.replaying(batch, spans) as short:
        yield short


@contextlib.contextmanager
def without_frozen_cache(model: torch.nn.Module) -> Iterator[None]:
    """Compute all layers of a model for a while, whatever is cached."""
    state = state_of(model)
    cache = state.frozen_cache
    state.frozen_cache = None
    try:
        yield
    finally:
        state.frozen_cache = cache

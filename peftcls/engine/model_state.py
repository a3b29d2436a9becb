"""What peftcls knows of a model: one typed object, reached by `state_of(model)`."""

import dataclasses
from typing import Any

import torch

from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.frozen_cache import FrozenLayerCache
from peftcls.engine.kernels import choose_kernels, use_plain_kernels
from peftcls.engine.layers import layers_of
from peftcls.engine.model_choices import Pooling, Quantize
from peftcls.engine.prefix_cache import SharedPrefix
from peftcls.engine.sharding import Shares
from peftcls.engine.turns import Turns

SLOT = "peftcls_state"  # the one attribute that is put on a transformers model


@dataclasses.dataclass(frozen=True)
class BaseFacts:
    """What has to be known about a base model to load the same one again.

    `pooling` is "mean" where a linear head reads the mean of an encoder's tokens, "compare" where
    it compares such means of two texts, and None where an encoder's head is its own, or where the
    task says what a decoder's head reads.
    """

    name: str
    revision: str | None
    fingerprint: str
    quantize: Quantize | None
    dtype: str
    heads: tuple[str, ...]
    causal: bool
    random_seed: int | None = None
    pooling: Pooling | None = None


@dataclasses.dataclass
class Capabilities:
    """What a model was found able to do, each asked once of the model itself; None before that.

    `reasons` says why a "no" is a no.
    """

    packing: bool | None = None
    last_layer: bool | None = None
    prefix: bool | None = None
    packing_behind_prefix: bool | None = None
    head_reads_first_token: bool | None = None
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class ModelState:
    """What peftcls knows of one transformers model, with or without an adapter around it.

    Args:
        base: which base model it is; None where it does not come from `load_base`.
        task_type: the kind of task that it was loaded for, as PEFT calls it; None where it does not
            come from `load_base`.
        method: how its adapter learns ("lora", "dora", ...); None without an adapter.
        started_from: the folder of another program that its adapter began as, and its sum.
        lineage: the folders that it was continued from, oldest first.
        head_is_new: its head's weights are random so far, and no file has them.
        shares_base: another model has the same base weights in memory.
        fast_paths: what may be used.
        has_fast_kernels: its attention and norms are those of `choose_kernels`.
        capabilities: what the model can do.
        frozen_cache: the states that left its frozen layers; None where none are cached.
        fills_frozen_cache: a frozen-layer cache is being filled, so nothing else may be shared
            between sequences.
        devices: of its layers in order, where they are spread over GPUs; None where they are not.
        shares: the processes that hold the base together; None where each holds the whole.
        prefix: what all rows of the present step begin with; None where nothing is shared.
        layers: of its backbone, in order; None before they were looked for.
        checkpointable: modules that have a switch for gradient checkpointing; None before they were
            looked for.
        turns: of the threads that let the model compute.
    """

    base: BaseFacts | None = None
    task_type: str | None = None
    method: str | None = None
    started_from: dict[str, Any] | None = None
    lineage: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    head_is_new: bool = False
    shares_base: bool = False
    fast_paths: FastPaths = dataclasses.field(default_factory=FastPaths.from_environment)
    has_fast_kernels: bool = False
    capabilities: Capabilities = dataclasses.field(default_factory=Capabilities)
    frozen_cache: FrozenLayerCache | None = None
    fills_frozen_cache: bool = False
    devices: tuple[torch.device, ...] | None = None
    shares: Shares | None = None
    prefix: SharedPrefix | None = None
    layers: torch.nn.ModuleList | None = dataclasses.field(default=None, repr=False)
    checkpointable: list[Any] | None = dataclasses.field(default=None, repr=False)
    turns: Turns = dataclasses.field(default_factory=Turns, repr=False, compare=False)

    @property
    def uses_frozen_cache(self) -> bool:
        """Whether frozen layers are, or are about to be, replaced by cached states."""
        return self.frozen_cache is not None or self.fills_frozen_cache

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model has too: facts and settings, no caches and no lock."""
        kept = (
            "base",
            "task_type",
            "method",
            "started_from",
            "lineage",
            "head_is_new",
            "shares_base",
            "fast_paths",
            "has_fast_kernels",
        )
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__(**kept)  # type: ignore[misc]


def unwrapped(model: torch.nn.Module) -> Any:
    """The transformers model inside a PEFT model; itself where there is none around it."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    if get_base_model is None:
        return model
    return get_base_model()


def state_of(model: torch.nn.Module) -> ModelState:
    """What peftcls knows of a model, a PEFT model or the transformers model inside it."""
    inner = unwrapped(model)
    slots = vars(inner)
    if SLOT not in slots:
        slots[SLOT] = ModelState()
    state: ModelState = slots[SLOT]
    return state


def transformer_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of a model's backbone in order; empty where it has no list of layers."""
    state = state_of(model)
    if state.layers is None:  # to go through all modules takes as long as a small layer
        state.layers = layers_of(unwrapped(model).base_model)
    return state.layers


def base_facts(model: torch.nn.Module) -> BaseFacts:
    """The facts that `load_base` left with the model.

    Raises:
        ValueError: the model does not come from `load_base`.
    """
    facts = state_of(model).base
    if facts is None:
        raise ValueError(
            "this model does not come from load_base; use model, tokenizer = load_base(name, "
            "task), so that the adapter can name the base it belongs to."
        )
    return facts


def use_fast_paths(model: torch.nn.Module, fast_paths: FastPaths) -> None:
    """Use these fast paths for a model from now on, as far as the environment allows them.

    Raises:
        ValueError: they are no `FastPaths`.
    """
    if not isinstance(fast_paths, FastPaths):
        raise ValueError(
            f"fast_paths={fast_paths!r}: expected a FastPaths, such as FastPaths(packing=False)."
        )
    state = state_of(model)
    state.fast_paths = fast_paths & FastPaths.from_environment()
    if state.fast_paths.kernels == state.has_fast_kernels:
        return
    inner = unwrapped(model)
    if state.fast_paths.kernels:
        choose_kernels(inner)
    else:
        use_plain_kernels(inner)
    state.has_fast_kernels = state.fast_paths.kernels
    state.capabilities = Capabilities()  # other attention, other answers

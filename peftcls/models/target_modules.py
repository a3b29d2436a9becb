"""Which linear layers of a base get an adapter."""

import difflib
import re
from collections.abc import Sequence

from transformers import PreTrainedModel

from peftcls.engine.model_state import base_facts
from peftcls.models.peft_library import PeftModel
from peftcls.models.structure import attention_projections, linear_layers


def target_modules(
    model: PreTrainedModel, targets: str | Sequence[str] | None, layers: Sequence[int] | None
) -> list[str]:
    """Full names of the layers that get an adapter; arguments as of `attach_lora`.

    Raises:
        ValueError: no layer fits, a target or a layer number is not known, or the model has an
            adapter already.
    """
    if isinstance(model, PeftModel):
        raise ValueError(
            "this model has an adapter already; load its base anew with load_base, or continue a "
            "saved adapter with learn_on."
        )
    names = _by_kind_or_name(model, targets)
    if layers is not None:
        names = _in_layers(names, layers)
    if not names:
        raise ValueError(
            f"no module of {type(model).__name__} fits targets={targets!r}, layers={layers!r}; "
            "try targets='all-linear'."
        )
    return names


def _by_kind_or_name(model: PreTrainedModel, targets: str | Sequence[str] | None) -> list[str]:
    heads = base_facts(model).heads
    linears = [name for name in linear_layers(model) if not _is_in_a_head(name, heads)]
    if targets is None or targets == "attention":
        return [name for name in attention_projections(model) if name in set(linears)]
    if targets == "all-linear":
        return linears
    if isinstance(targets, str):
        raise ValueError(
            f"targets={targets!r}: expected 'attention', 'all-linear' or a list of names such as "
            "['q_proj', 'v_proj']."
        )
    for target in targets:
        if not any(_ends_in(name, target) for name in linears):
            raise ValueError(_unknown_target(model, target, linears))
    return [name for name in linears if any(_ends_in(name, target) for target in targets)]


def _is_in_a_head(name: str, heads: Sequence[str]) -> bool:
    return any(name == head or name.startswith(head + ".") for head in heads)


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _unknown_target(model: PreTrainedModel, target: str, linears: Sequence[str]) -> str:
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in linears))
    sentence = f"{type(model).__name__} has no linear layer {target!r}"
    similar = difflib.get_close_matches(target, endings, 1)
    if similar:
        return f"{sentence}; did you mean {similar[0]!r}?"
    return f"{sentence}; its layers are called {', '.join(endings)}."


def _in_layers(names: Sequence[str], layers: Sequence[int]) -> list[str]:
    """The names that are in some layers, by the first number in a name."""
    layer_of = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        if number is not None:
            layer_of[name] = int(number[1])
    count = max(layer_of.values(), default=-1) + 1
    unknown = [layer for layer in layers if not -count <= layer < count]
    if unknown:
        raise ValueError(
            f"layers={list(layers)}: there is no layer {unknown[0]}; the model has layers 0 to "
            f"{count - 1}."
        )
    chosen = {layer % count for layer in layers}
    return [name for name, layer in layer_of.items() if layer in chosen]

"""An adapter that another program wrote with PEFT, as the start of a training."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from peftcls.argument_checks import check_argument_types
from peftcls.engine.model_state import base_facts, state_of
from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.adapter_methods import Method
from peftcls.models.adapter_weights import WRAPPED, read_tensors
from peftcls.models.folder_safety import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_finite,
    check_links,
    read_object,
    widest_side,
)
from peftcls.models.lora_injection import attach_to, check_method_in_shares
from peftcls.models.peft_library import (
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peftcls.models.peft_settings import (
    PATTERN_SETTINGS,
    PEFT_HEADS,
    check_peft_settings,
    check_unused_settings,
)
from peftcls.models.structure import linear_layers
from peftcls.models.trainable import Tensors
from peftcls.tasks.base import Task

logger = logging.getLogger("peftcls")

TENSOR = re.compile(
    re.escape(WRAPPED) + r"(?P<module>.+)\.(?P<part>(lora_[AB]|lora_magnitude_vector)\.weight|ia3_l"
    r"|lora_magnitude_vector)"
)
NOT_READ = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
    "modules_to_save",
    "task_type",
    "auto_mapping",
)
"""Settings that say where the matrices are and how they began, which the tensors say themselves,
and what a library would import."""
STARTS = (True, False, None, "gaussian")
"""Values of `init_lora_weights` that leave the base's own weights as they are."""


def attach_adapter(
    model: PreTrainedModel,
    task: Task,
    directory: str | Path,
    *,
    dropout: float | None = None,
    seed: int = 0,
) -> PeftModel:
    """Put an adapter that PEFT wrote on a base, to train it further; a head begins anew.

    Nothing in such a folder says which label a row of its head stands for, so that its head is left
    out. An adapter of one kind of model (such as a language model) can be the start of another kind
    on the same base. For a folder of peftcls there is `learn_on`.

    Args:
        model: from `load_base`, without an adapter.
        task: the one given to `load_base`.
        directory: with adapter_config.json and adapter_model.safetensors: LoRA, rsLoRA, DoRA or
            IA3 on linear layers.
        dropout: as of `attach_lora`; the folder's unless given.
        seed: for the new weights beside the adapter.

    Raises:
        ValueError: the folder is incomplete, damaged, of another base, or of a kind that is not
            trained here.
    """
    check_argument_types({"directory": directory, "dropout": dropout, "seed": seed}, attach_adapter)
    directory = Path(directory)
    if isinstance(model, PeftModel):
        raise ValueError("this model has an adapter already; load its base anew with load_base.")
    settings, method = read_start(directory)
    if state_of(model).shares is not None:
        check_method_in_shares(method)
    tensors = _adapter_tensors(model, directory)
    names = list(dict.fromkeys(_module_of(name) for name in tensors))
    _warn_of_another_base(directory, settings, base_facts(model).name)
    wrapped = attach_to(
        model,
        task,
        names,
        method,
        rank=settings.get("r", 1),
        alpha=settings.get("lora_alpha", 1),
        dropout=settings.get("lora_dropout", 0.0) if dropout is None else dropout,
        seed=seed,
        patterns={name: settings.get(name) or {} for name in PATTERN_SETTINGS},
    )
    _fill(wrapped, directory / ADAPTER_WEIGHTS, names, tensors)
    return wrapped


def read_start(directory: Path) -> tuple[dict[str, Any], Method]:
    """The settings of a folder that can be a start, and how its adapter learns.

    Raises:
        ValueError: the folder is incomplete, or of a kind that is not trained here.
    """
    if (directory / MANIFEST).is_file():
        raise ValueError(
            f"{directory} was written by peftcls; continue it with learn_on (peftcls learn-on)."
        )
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(
                f"{directory} has no {name}, expected the folder that PEFT's save_pretrained "
                "writes. Weights in pickled files (.bin) are not read: they can run code."
            )
    check_links(directory)
    file = directory / ADAPTER_CONFIG
    settings = read_object(file)
    began = settings.get("init_lora_weights", True)
    if began not in STARTS:
        raise ValueError(
            f"{file} has init_lora_weights={began!r}, which changes the weights of the base; save "
            "it as plain LoRA first (path_initial_model_for_weight_conversion of PEFT)."
        )
    kept = {name: value for name, value in settings.items() if name not in NOT_READ}
    check_peft_settings(file, kept, (), widest_side(directory / ADAPTER_WEIGHTS))
    check_unused_settings(file, kept)
    return kept, _method_of(directory, kept)


def _method_of(directory: Path, settings: Mapping[str, Any]) -> Method:
    """How the adapter of a folder learns."""
    dora, rslora = settings.get("use_dora"), settings.get("use_rslora")
    if settings["peft_type"] == "ADALORA" or (dora and rslora):
        kind = "DoRA and rsLoRA at once" if dora and rslora else "AdaLoRA, with pruned ranks"
        raise ValueError(
            f"{directory} holds an adapter of {kind}, expected LoRA, rsLoRA, DoRA or IA3."
        )
    if settings["peft_type"] == "IA3":
        return "ia3"
    return "dora" if dora else "rslora" if rslora else "lora"


def _adapter_tensors(model: PreTrainedModel, directory: Path) -> Tensors:
    """The tensors of a folder under the names that they have on this model, without a head's."""
    file = directory / ADAPTER_WEIGHTS
    heads = PEFT_HEADS.union(base_facts(model).heads)
    layers = set(linear_layers(model))
    found = {}
    for name, tensor in read_tensors(file).items():
        match = TENSOR.fullmatch(name)
        if match is None:
            if heads.isdisjoint(name.split(".")):
                raise ValueError(
                    f"{file} has {name}, expected matrices of LoRA or IA3 on linear layers and "
                    "those of a head. Embeddings and layers that were trained whole are not read."
                )
            continue
        module = match["module"]
        own_names = (module, f"{model.base_model_prefix}.{module}")
        own_name = next((known for known in own_names if known in layers), None)
        if own_name is None:
            raise ValueError(
                f"{file} has a matrix for {module}, and {type(model).__name__} has no such linear "
                f"layer in its backbone, but {sorted(layers)[0]} and others. Load the base that "
                "the adapter was trained on."
            )
        found[f"{WRAPPED}{own_name}.{match['part']}"] = tensor
    if not found:
        raise ValueError(f"{file} holds no matrix of an adapter.")
    check_finite(file, found.items())
    return found


def _module_of(name: str) -> str:
    match = TENSOR.fullmatch(name)
    assert match is not None
    return match["module"]


def _fill(wrapped: PeftModel, file: Path, names: list[str], tensors: Tensors) -> None:
    """Give an adapter its tensors.

    Raises:
        ValueError: one is missing or of another shape.
    """
    new = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {
        name: tensor
        for name, tensor in new.items()
        if (match := TENSOR.fullmatch(name)) and match["module"] in names
    }
    for name in sorted({*tensors, *expected}):
        shapes = [
            list(held[name].shape) if name in held else "no tensor" for held in (expected, tensors)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{file} does not fit the base: for {name.removeprefix(WRAPPED)} expected "
                f"{shapes[0]}, found {shapes[1]}."
            )
    set_peft_model_state_dict(wrapped, new | tensors)


def _warn_of_another_base(directory: Path, settings: Mapping[str, Any], base: str) -> None:
    """Say it where a folder names a base with another last name."""
    trained_on = settings.get("base_model_name_or_path")
    if trained_on and Path(trained_on).name != Path(base).name:
        logger.warning(
            "%s was trained on %s, and this base is %s; on another base its matrices mean nothing.",
            directory,
            trained_on,
            base,
        )

"""An adapter that another program wrote with PEFT, as the start of a training."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from peftcls.argument_checks import check_argument_types
from peftcls.engine.model_state import base_facts, state_of
from peftcls.models.adapter_manifest import MANIFEST, file_sum
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
from peftcls.models.lora_injection import (
    attach_to,
    check_method_in_shares,
    check_model_and_task,
)
from peftcls.models.peft_library import (
    LoraConfig,
    PeftModel,
    get_pattern_key,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peftcls.models.peft_settings import (
    PATTERN_SETTINGS,
    PEFT_HEADS,
    SHOWN_CHARACTERS,
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
MERGE_IT = (
    "An adapter of another kind can be merged into its base by PEFT (merge_and_unload), and the "
    "merged folder be the base here."
)
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
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
    check_model_and_task("attach_adapter", model, task)
    check_argument_types({"directory": directory, "dropout": dropout, "seed": seed}, attach_adapter)
    directory = Path(directory)
    if isinstance(model, PeftModel):
        raise ValueError("this model has an adapter already; load its base anew with load_base.")
    settings, method = read_start(directory)
    if state_of(model).shares is not None:
        check_method_in_shares(method)
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}: expected a share of at least 0 and below 1.")
    file = directory / ADAPTER_WEIGHTS
    found = _adapter_tensors(model, file)
    _check_shapes(model, file, settings, found)
    _warn_of_another_base(directory, settings, [base_facts(model).name, model.name_or_path or ""])
    wrapped = attach_to(
        model,
        task,
        list(found),
        method,
        rank=settings.get("r", LoraConfig.r),
        alpha=settings.get("lora_alpha", LoraConfig.lora_alpha),
        dropout=settings.get("lora_dropout", 0.0) if dropout is None else dropout,
        seed=seed,
        patterns={name: settings.get(name) or {} for name in PATTERN_SETTINGS},
    )
    weights = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    for module, parts in found.items():
        weights |= {f"{WRAPPED}{module}.{part}": tensor for part, tensor in parts.items()}
    set_peft_model_state_dict(wrapped, weights)
    state_of(wrapped).started_from = {"folder": directory.name, "sum": file_sum(file)}
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
    if not directory.is_dir():
        raise ValueError(f"there is no folder {directory}, expected one that PEFT has written.")
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
            f"{file} has init_lora_weights={str(began)[:SHOWN_CHARACTERS]!r}, which changes the "
            "weights of the base; save it as plain LoRA first "
            "(path_initial_model_for_weight_conversion of PEFT)."
        )
    kept = {name: value for name, value in settings.items() if name not in NOT_READ}
    try:
        check_peft_settings(file, kept, (), widest_side(directory / ADAPTER_WEIGHTS))
        check_unused_settings(file, kept)
        method = _method_of(directory, kept)
    except ValueError as error:
        raise ValueError(f"{error} {MERGE_IT}") from None
    return kept, method


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


def _adapter_tensors(model: PreTrainedModel, file: Path) -> dict[str, Tensors]:
    """The tensors of each module of this model, by what follows its name; none of a head."""
    heads = PEFT_HEADS.union(base_facts(model).heads)
    layers = set(linear_layers(model))
    found: dict[str, Tensors] = {}
    for name, tensor in read_tensors(file).items():
        match = TENSOR.fullmatch(name)
        if match is None:
            if heads.isdisjoint(name.split(".")):
                raise ValueError(
                    f"{file} has {name[:SHOWN_CHARACTERS]!r}, expected matrices of LoRA or IA3 on "
                    "linear layers and those of a head. Embeddings and layers that were trained "
                    f"whole are not read. {MERGE_IT}"
                )
            continue
        module = match["module"]
        own_names = (module, f"{model.base_model_prefix}.{module}")
        own_name = next((known for known in own_names if known in layers), None)
        if own_name is None and _is_removed(model, module):
            logger.info("%s: %s is left out, which this task's head does not read.", file, module)
            continue
        if own_name is None:
            raise ValueError(
                f"{file} has a matrix for {module[:SHOWN_CHARACTERS]!r}, and "
                f"{type(model).__name__} has no such linear layer in its backbone, but "
                f"{sorted(layers)[0]} and others. Load the base that the adapter was trained on."
            )
        check_finite(file, [(name, tensor)])
        found.setdefault(own_name, {})[match["part"]] = tensor
    if not found:
        raise ValueError(f"{file} holds no matrix of an adapter.")
    return found


def _is_removed(model: PreTrainedModel, module: str) -> bool:
    """Whether a module is of a part that a backbone with this head lacks, such as a pooler."""
    part = module.removeprefix(f"{model.base_model_prefix}.").split(".")[0]
    return getattr(model.base_model, part, model) is None


def _check_shapes(
    model: PreTrainedModel, file: Path, settings: Mapping[str, Any], found: Mapping[str, Tensors]
) -> None:
    """Check tensors before room is made for them.

    Raises:
        ValueError: one is missing or of another shape than its layer and the settings ask for.
    """
    for module, parts in found.items():
        shapes = {part: list(tensor.shape) for part, tensor in parts.items()}
        expected = _expected_shapes(model.get_submodule(module), module, settings)
        for part in sorted(shapes.keys() | expected.keys()):
            if shapes.get(part) != expected.get(part):
                raise ValueError(
                    f"{file} does not fit the base or its settings: for {module}.{part} expected "
                    f"{expected.get(part, 'nothing')}, found {shapes.get(part, 'nothing')}."
                )


def _expected_shapes(layer: Any, module: str, settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shapes of a layer's tensors, by what follows the layer's name."""
    if isinstance(layer, torch.nn.Linear):
        inputs, outputs = layer.in_features, layer.out_features
    else:
        inputs, outputs = layer.weight.shape
    if settings["peft_type"] == "IA3":
        return {"ia3_l": [outputs, 1]}
    ranks: Mapping[str, int] = settings.get("rank_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), settings.get("r", LoraConfig.r))
    shapes: dict[str, list[int]] = {
        "lora_A.weight": [rank, inputs],
        "lora_B.weight": [outputs, rank],
    }
    if settings.get("use_dora"):
        shapes["lora_magnitude_vector"] = [outputs]
    return shapes


def _warn_of_another_base(
    directory: Path, settings: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Say it where a folder names a base with another last name."""
    trained_on = settings.get("base_model_name_or_path")
    if trained_on and Path(trained_on).name not in {Path(name).name for name in names}:
        logger.warning(
            "%s was trained on %r, and this base is %s; on another base its matrices mean nothing.",
            directory,
            trained_on[:SHOWN_CHARACTERS],
            names[0],
        )

"""Folders of adapters that share a base: it is loaded once, and all their updates and heads are put on it."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from peftcls.inference.multi_adapter_layers import (
    RoutedHead,
    RoutedLinear,
    Routes,
    Update,
    put_in_place,
)
from peftcls.models.adapter_folder import Folder, load_own_base, load_own_tokenizer, open_folder
from peftcls.models.folder_safety import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PART_WEIGHTS, check_finite
from peftcls.models.state import Quantize, base_facts
from peftcls.models.trainable import keep_in_float32

PREFIX = "base_model.model."  # before the names of a model's modules in the files of PEFT


def put_on_one_base(
    directories: Iterable[str | Path],
    *,
    base: str | Path | None,
    quantize: Quantize | None,
    device: str | torch.device | None,
) -> tuple[PreTrainedModel, Routes, dict[str, tuple[Folder, PreTrainedTokenizerBase]]]:
    """Load the base of several folders once, and put all their adapters and heads on it.

    Returns:
        The model, what says whose adapter a line goes through (by number, in the folders' order), and the folders with their
        tokenizers by name.

    Raises:
        ValueError: a folder is damaged, or two of them cannot share a base, or have the same name.
    """
    folders = [open_folder(directory) for directory in directories]
    if not folders:
        raise ValueError(
            "there is no folder in the list, expected at least one that Trainer.save wrote."
        )
    for other in folders[1:]:
        if problem := _apart(folders[0], other, quantize):
            raise ValueError(
                f"{folders[0].directory} and {other.directory} cannot share a base: {problem}; load them one by one."
            )
    names = [folder.directory.resolve().name for folder in folders]
    if doubled := [name for name in names if names.count(name) > 1]:
        both = " and ".join(
            str(folder.directory)
            for folder, name in zip(folders, names, strict=True)
            if name == doubled[0]
        )
        raise ValueError(
            f"{both} have the same name, by which their rows would be told apart; rename one of the folders."
        )
    model, tokenizer = load_own_base(folders[0], folders[0].task, base=base, quantize=quantize)
    tokenizers = [
        tokenizer,
        *(load_own_tokenizer(folder, like=tokenizer) for folder in folders[1:]),
    ]
    if base_facts(model).quantize is None:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    routes, updates = Routes(), dict[str, dict[int, Update]]()
    heads: dict[str, list[torch.nn.Module]] = {head: [] for head in base_facts(model).heads}
    for number, folder in enumerate(folders):
        own_updates, own_heads = _parts(folder, model)
        for name, update in own_updates.items():
            updates.setdefault(name, {})[number] = update
        for name, head in own_heads.items():
            heads[name].append(head)
    for name, own in updates.items():
        put_in_place(
            model, name, RoutedLinear(model.get_submodule(name), routes, own).to(model.device)
        )
    for name, every in heads.items():
        put_in_place(model, name, RoutedHead(routes, every).to(model.device))
    model.requires_grad_(False).eval()
    return model, routes, dict(zip(names, zip(folders, tokenizers, strict=True), strict=True))


def _apart(one: Folder, other: Folder, quantize: Quantize | None) -> str | None:
    """Why two folders cannot share a base, in the words that follow their names."""
    if one.base.fingerprint != other.base.fingerprint:
        return (
            f"the weights are others, with the fingerprints {one.base.fingerprint[:12]} ({one.base.name}) and "
            f"{other.base.fingerprint[:12]} ({other.base.name})"
        )
    if one.base.dtype != other.base.dtype:
        return f"one was trained on it in {one.base.dtype}, the other in {other.base.dtype}"
    if quantize is None and one.base.quantize != other.base.quantize:
        held = [folder.base.quantize or "full precision" for folder in (one, other)]
        return f"one was trained on it in {held[0]}, the other in {held[1]} (quantize='8bit' or '4bit' says how to hold it for both)"
    if one.task.auto_model is not other.task.auto_model or one.base.heads != other.base.heads:
        return f"{type(one.task).__name__} and {type(other.task).__name__} have heads of different kinds"
    return None


def _parts(
    folder: Folder, model: PreTrainedModel
) -> tuple[dict[str, Update], dict[str, torch.nn.Module]]:
    """A folder's updates by the names of the layers, and its heads by theirs; every tensor is one of them."""
    directory = folder.directory
    peft = (file := directory / ADAPTER_WEIGHTS).is_file()
    settings = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")) if peft else {}
    if peft and (
        settings["peft_type"] != "LORA"
        or settings.get("use_dora")
        or settings.get("init_lora_weights") == "pissa"
    ):
        raise ValueError(
            f"{directory} cannot share its base: its adapter is of the method {folder.manifest.get('method')}, expected lora, "
            "lora+, rslora or a head; load it alone."
        )
    try:
        tensors = load_file(file := file if peft else directory / PART_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); copy the folder again."
        ) from None
    check_finite(file, tensors.items())
    left = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    heads, updates, model_like = {}, {}, _without_weights(folder, model)
    try:
        for name in folder.base.heads:
            heads[name] = model_like.get_submodule(name).to_empty(device="cpu").eval()
            keep_in_float32(heads[name])
            heads[name].load_state_dict(
                {
                    key.removeprefix(f"{name}."): left.pop(key)
                    for key in list(left)
                    if key.startswith(f"{name}.")
                }
            )
        for name in [
            key.removesuffix(".lora_A.weight")
            for key in left
            if peft and key.endswith(".lora_A.weight")
        ]:
            down, up, rank = (
                left.pop(f"{name}.lora_A.weight"),
                left.pop(f"{name}.lora_B.weight"),
                int(settings["r"]),
            )
            layer: Any = model.get_submodule(name)
            inputs, outputs = (
                (layer.nx, layer.nf)
                if isinstance(layer, Conv1D)
                else (layer.in_features, layer.out_features)
            )
            if [*down.shape, *up.shape] != [rank, inputs, outputs, rank]:
                raise KeyError(name)
            updates[name] = Update(
                down,
                up,
                settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank),
            )
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{file} does not fit the base: {str(error).strip()}; copy the folder again."
        ) from None
    if left and not peft:
        raise ValueError(
            f"{directory} cannot share its base: {sorted(left)[0]} of the base itself was trained; load it alone."
        )
    if left:
        raise ValueError(
            f"{file} does not fit the base: {sorted(left)[0]} and {len(left) - 1} more are not known."
        )
    return updates, heads


def _without_weights(folder: Folder, model: PreTrainedModel) -> Any:
    """A model of the folder's own sizes, from whose structure its head is made."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name, value in folder.task.model_settings().items():
        setattr(config, name, value)
    with torch.device("meta"):
        return folder.task.auto_model.from_config(config, dtype=folder.dtype)

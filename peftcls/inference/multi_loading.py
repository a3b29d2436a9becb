"""Load several adapter folders on one base model: the base is in memory once."""

import copy
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from peftcls.engine.model_choices import Quantize
from peftcls.engine.model_state import base_facts, state_of
from peftcls.inference.multi_adapter_layers import (
    RoutedHead,
    RoutedLinear,
    Routes,
    Update,
    replace_module,
)
from peftcls.models.adapter_folder import Folder, load_own_base, load_own_tokenizer, open_folder
from peftcls.models.adapter_weights import WRAPPED, read_tensors
from peftcls.models.folder_safety import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PART_WEIGHTS, check_finite
from peftcls.models.mixed_precision import keep_in_float32
from peftcls.models.quantization import own_device
from peftcls.models.structure import read_mean_of_tokens
from peftcls.tasks.base import Task

DOWN = ".lora_A.weight"
UP = ".lora_B.weight"
Updates = dict[str, Update]
Heads = dict[str, torch.nn.Module]
Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class LoadedAdapters:
    """A base model with several adapters on it.

    Args:
        model: the base, with routed layers and heads.
        routes: says which adapter a sequence goes through, by its number.
        tasks: by the folders' names, in the order of the adapters' numbers.
        tokenizers: as `tasks`.
    """

    model: PreTrainedModel
    routes: Routes
    tasks: dict[str, Task]
    tokenizers: dict[str, PreTrainedTokenizerBase]


def load_on_one_base(
    directories: Iterable[str | Path],
    *,
    base: str | Path | None,
    quantize: Quantize | None,
    device: str | torch.device | None,
    tasks: Sequence[type[Task]] = (),
) -> LoadedAdapters:
    """Load the base of several folders once, and put all their adapters and heads on it.

    Raises:
        ValueError: a folder is damaged, or two of them cannot share a base, or have the same name.
    """
    folders = [open_folder(directory, tasks=tasks) for directory in directories]
    names = _check_folders(folders, quantize)
    model, tokenizer = load_own_base(folders[0], folders[0].task, base=base, quantize=quantize)
    tokenizers = [tokenizer]
    for folder in folders[1:]:
        tokenizers.append(load_own_tokenizer(folder, like=tokenizer))
    move_to_device(model, device)
    routes = _put_adapters(model, folders)
    model.requires_grad_(False).eval()
    return LoadedAdapters(
        model,
        routes,
        tasks={name: folder.task for name, folder in zip(names, folders, strict=True)},
        tokenizers=dict(zip(names, tokenizers, strict=True)),
    )


def group_by_base(directories: Iterable[str | Path]) -> list[list[Path]]:
    """Group folders so that those of a group can be loaded on one base; each group keeps the order.

    Raises:
        ValueError: a folder is damaged.
    """
    groups: list[list[Folder]] = []
    for directory in directories:
        folder = open_folder(directory)
        for group in groups:
            if _can_share(group[0]) and _can_share(folder) and not _difference(group[0], folder):
                group.append(folder)
                break
        else:
            groups.append([folder])
    return [[folder.directory for folder in group] for group in groups]


def _can_share(folder: Folder) -> bool:
    """Whether a folder holds updates of linear layers and heads only, and nothing of the base."""
    if (folder.directory / ADAPTER_WEIGHTS).is_file():
        return _is_plain_lora(_read_settings(folder))
    heads = tuple(f"{name}." for name in folder.base.heads)
    return all(name.startswith(heads) for name in _own_tensors(folder.directory / PART_WEIGHTS))


def move_to_device(model: torch.nn.Module, device: str | torch.device | None) -> None:
    """Move a model to a device; one that is quantized, or spread over several, stays where it is.

    Args:
        model: to move.
        device: unless given, the GPU of this process or another accelerator, such as an Apple
            GPU; the CPU where there is none.

    Raises:
        ValueError: there is no such device.
    """
    chosen = device or _own_accelerator()
    try:
        # A device that PyTorch knows by name need not be there.
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device={device!r}: there is no such device here; expected one of {there}."
        ) from None
    if base_facts(model).quantize is None and state_of(model).devices is None:
        model.to(chosen)


def _own_accelerator() -> int | str | torch.device:
    """Where this process computes, as Accelerate chooses for a training."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "cuda":
        return own_device()
    return accelerator


def _check_folders(folders: Sequence[Folder], quantize: Quantize | None) -> list[str]:
    """Return the folders' names. Raises ValueError where they cannot share a base and a batch."""
    if not folders:
        raise ValueError(
            "there is no folder in the list, expected at least one that Trainer.save wrote."
        )
    first = folders[0]
    for other in folders[1:]:
        difference = _difference(first, other, quantize)
        if difference is not None:
            raise ValueError(
                f"{first.directory} and {other.directory} cannot share a base: {difference}; "
                "load them one by one."
            )
    names = [folder.directory.resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            same_name = [
                str(folder.directory)
                for folder, other in zip(folders, names, strict=True)
                if other == name
            ]
            raise ValueError(
                f"{' and '.join(same_name)} have the same name, and an adapter is known by the "
                "name of its folder; rename one of the folders."
            )
    return names


def _difference(first: Folder, other: Folder, quantize: Quantize | None = None) -> str | None:
    """Why two folders cannot share a base, in the words that follow their names."""
    if first.base.fingerprint != other.base.fingerprint:
        return (
            f"their base weights differ, with the fingerprints {first.base.fingerprint[:12]} "
            f"({first.base.name}) and {other.base.fingerprint[:12]} ({other.base.name})"
        )
    if first.base.dtype != other.base.dtype:
        return f"one was trained on it in {first.base.dtype}, the other in {other.base.dtype}"
    if quantize is None and first.base.quantize != other.base.quantize:
        first_quantize = first.base.quantize or "full precision"
        other_quantize = other.base.quantize or "full precision"
        return (
            f"one was trained on it in {first_quantize}, the other in {other_quantize} "
            "(quantize='8bit' or '4bit' loads it in the same way for both)"
        )
    if first.task.auto_model is not other.task.auto_model or first.base.heads != other.base.heads:
        return (
            f"{type(first.task).__name__} and {type(other.task).__name__} have heads of "
            "different kinds"
        )
    if "compare" in (first.base.pooling, other.base.pooling):
        return "a head that compares two texts is asked by itself (`pooling='compare'`)"
    if first.base.pooling != other.base.pooling:
        return "the head of one reads the mean of all tokens, that of the other the first token"
    return None


def _put_adapters(model: PreTrainedModel, folders: Sequence[Folder]) -> Routes:
    """Replace the layers and heads of a base by routed ones with the folders' weights."""
    updates: dict[str, dict[int, Update]] = {}
    heads: dict[str, list[torch.nn.Module]] = {name: [] for name in base_facts(model).heads}
    for number, folder in enumerate(folders):
        folder_updates, folder_heads = _read_adapter(folder, model)
        for name, update in folder_updates.items():
            updates.setdefault(name, {})[number] = update
        for name, head in folder_heads.items():
            heads[name].append(head)
    routes = Routes()
    for name, by_adapter in updates.items():
        layer = RoutedLinear(model.get_submodule(name), routes, by_adapter)
        replace_module(model, name, layer.to(model.device))
    for name, every_head in heads.items():
        replace_module(model, name, RoutedHead(routes, every_head).to(model.device))
    return routes


def _read_adapter(folder: Folder, model: PreTrainedModel) -> tuple[Updates, Heads]:
    """Read a folder's updates and heads, by the names of the layers that they are for.

    Raises:
        ValueError: the weights are damaged, do not fit, or are of a method that is no update of
            linear layers.
    """
    directory = folder.directory
    has_adapter = (directory / ADAPTER_WEIGHTS).is_file()
    settings = _plain_lora_settings(folder) if has_adapter else {}
    file = directory / (ADAPTER_WEIGHTS if has_adapter else PART_WEIGHTS)
    remaining = _own_tensors(file)
    structure = _model_without_weights(folder, model)
    try:
        heads = _take_heads(structure, folder.base.heads, remaining)
        updates = _take_updates(model, settings, remaining) if has_adapter else {}
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{file} does not fit the base: {str(error).strip()}; copy the folder again."
        ) from None
    if remaining and not has_adapter:
        raise ValueError(
            f"{directory} cannot share its base: {min(remaining)} of the base itself was trained; "
            "load it alone."
        )
    if remaining:
        raise ValueError(
            f"{file} does not fit the base: {min(remaining)} and {len(remaining) - 1} more are "
            "not known."
        )
    return updates, heads


def _plain_lora_settings(folder: Folder) -> dict[str, Any]:
    """The settings of a folder's adapter. Raises ValueError where it is no plain LoRA."""
    settings = _read_settings(folder)
    if not _is_plain_lora(settings):
        raise ValueError(
            f"{folder.directory} cannot share its base: its adapter is of the method "
            f"{folder.manifest.get('method')}, expected lora, lora+, rslora or a head; "
            "load it alone."
        )
    return settings


def _read_settings(folder: Folder) -> dict[str, Any]:
    settings = json.loads((folder.directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    assert isinstance(settings, dict)  # open_folder has checked it
    return settings


def _is_plain_lora(settings: dict[str, Any]) -> bool:
    """Whether an adapter is an update of linear layers by two matrices."""
    return (
        settings["peft_type"] == "LORA"
        and not settings.get("use_dora")
        and settings.get("init_lora_weights") != "pissa"
    )


def _own_tensors(file: Path) -> Tensors:
    """The tensors of a file, under the names that they have in the base."""
    tensors = read_tensors(file)
    check_finite(file, tensors.items())
    return {name.removeprefix(WRAPPED): tensor for name, tensor in tensors.items()}


def _take_heads(structure: Any, names: Sequence[str], tensors: Tensors) -> Heads:
    """Make a folder's heads, and remove their weights from its tensors."""
    heads: Heads = {}
    for head_name in names:
        weights: Tensors = {}
        for name in list(tensors):
            if name.startswith(f"{head_name}."):
                weights[name.removeprefix(f"{head_name}.")] = tensors.pop(name)
        head = structure.get_submodule(head_name).to_empty(device="cpu").eval()
        keep_in_float32(head)
        head.load_state_dict(weights)
        heads[head_name] = head
    return heads


def _take_updates(model: PreTrainedModel, settings: dict[str, Any], tensors: Tensors) -> Updates:
    """Make the updates of an adapter's layers, and remove their weights from its tensors."""
    own_ranks = settings.get("rank_pattern") or {}
    own_alphas = settings.get("alpha_pattern") or {}
    layers = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    updates: Updates = {}
    for layer in layers:
        rank = int(own_ranks.get(layer, settings["r"]))
        # With rsLoRA the update is divided by the square root of the rank (Kalajdzievski 2023).
        divisor = rank**0.5 if settings.get("use_rslora") else rank
        scale = own_alphas.get(layer, settings["lora_alpha"]) / divisor
        down = tensors.pop(layer + DOWN)
        up = tensors.pop(layer + UP)
        inputs, outputs = _layer_size(model.get_submodule(layer))
        expected = ((rank, inputs), (outputs, rank))
        found = (tuple(down.shape), tuple(up.shape))
        if found != expected:
            raise RuntimeError(f"{layer} has an update of {found}, expected {expected}")
        updates[layer] = Update(down, up, scale)
    return updates


def _layer_size(layer: Any) -> tuple[int, int]:
    """How many inputs and outputs a linear layer has."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features


def _model_without_weights(folder: Folder, model: PreTrainedModel) -> Any:
    """A model on the meta device with the folder's number of labels; its heads show the shape."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name, value in folder.task.model_settings().items():
        setattr(config, name, value)
    with torch.device("meta"):
        structure = folder.task.auto_model.from_config(config, dtype=folder.dtype)
        if folder.base.pooling == "mean":
            read_mean_of_tokens(structure, compares=False)
    return structure

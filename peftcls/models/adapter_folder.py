"""The adapter folder: everything that is needed beside the base model, and nothing of the base."""

import copy
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_choices import DeviceMap, Quantize
from peftcls.engine.model_state import BaseFacts, base_facts, state_of
from peftcls.models.adapter_manifest import (
    FORMAT,
    MANIFEST,
    damaged,
    file_sum,
    listed_files,
    read_manifest,
    read_task,
    write_manifest,
)
from peftcls.models.adapter_weights import load_weights, trained_tensors
from peftcls.models.base_model import load_same_base
from peftcls.models.folder_safety import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PART_WEIGHTS,
    check_adapter_folder,
    check_adapter_settings,
    read_object,
)
from peftcls.models.peft_library import PeftModel
from peftcls.models.tokenizers import read_tokenizer
from peftcls.tasks.base import Task

READABLE = 0o644
"""Temporary files can be read by their owner only, but an adapter is passed on to others."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
LIBRARIES = ("torch", "transformers", "peft")
"""The libraries whose versions a manifest names."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """An adapter folder that was checked, and its manifest; weights and base are not read yet."""

    directory: Path
    manifest: dict[str, Any]
    task: Task
    base: BaseFacts
    dtype: torch.dtype


# Saving


def save_adapter(
    directory: str | Path, model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase
) -> Folder:
    """Write the adapter folder: trained tensors, task, tokenizer, name and fingerprint of the base.

    Everything is written to a temporary folder and then moved into place. The manifest, with the
    SHA-256 of all files, is moved last. A folder without a manifest, or with files that do not
    match it, is never loaded.

    Returns:
        The folder as `open_folder` would give it, without hashing its files again.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        _write_weights(temporary, model)
        # Several chat templates would be written into a folder of their own.
        tokenizer.save_pretrained(str(temporary), save_jinja_files=False)
        write_manifest(temporary / MANIFEST, _make_manifest(temporary, model, task))
        _move_into(directory, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _check_folder(directory, read_object(directory / MANIFEST), tasks=[type(task)])


def _write_weights(directory: Path, model: torch.nn.Module) -> None:
    tensors = trained_tensors(model)
    if not isinstance(model, PeftModel):
        save_file(tensors, directory / PART_WEIGHTS, metadata={"format": "pt"})
        return
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(model.peft_config["default"])
    # The path of a local base is private, and PEFT could not fetch it.
    if base_facts(model).revision is None:
        config.base_model_name_or_path = None
    config.save_pretrained(str(directory))


def _make_manifest(directory: Path, model: torch.nn.Module, task: Task) -> dict[str, Any]:
    state = state_of(model)
    manifest = {
        "format": FORMAT,
        "task": task.to_json(),
        "base": dataclasses.asdict(base_facts(model)),
        "method": state.method,
        "lineage": state.lineage,
        "versions": {name: version(name) for name in LIBRARIES},
        "files": {file.name: file_sum(file) for file in sorted(directory.iterdir())},
    }
    if state.started_from is not None:
        manifest["started_from"] = state.started_from
    return manifest


def _move_into(directory: Path, temporary: Path) -> None:
    """Replace the adapter that a folder holds, if any, by the files of a temporary folder."""
    new_files = sorted(temporary.iterdir(), key=lambda file: (file.name == MANIFEST, file))
    new_names = {file.name for file in new_files}
    earlier_names = {ADAPTER_WEIGHTS, ADAPTER_CONFIG, PART_WEIGHTS} | listed_files(directory)
    (directory / MANIFEST).unlink(missing_ok=True)
    for name in earlier_names - new_names:
        (directory / name).unlink(missing_ok=True)
    for file in new_files:
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.chmod(READABLE)
        os.replace(file, directory / file.name)


def check_not_start(directory: Path, model: torch.nn.Module) -> None:
    """Raise ValueError where a folder is the one that the model is continued from.

    That folder stays, and the new one names it.
    """
    lineage = state_of(model).lineage
    manifest_file = directory / MANIFEST
    if not lineage or not manifest_file.is_file():
        return
    if read_object(manifest_file).get("sum") == lineage[-1]["sum"]:
        raise ValueError(
            f"output_dir={str(directory)!r} holds the folder that this run continues from, or a "
            "copy of it, and would replace it; choose another."
        )


# Loading


def load_adapter(
    source: str | Path | Folder,
    *,
    base: str | Path | None = None,
    quantize: Quantize | Literal["none"] | None = None,
    grow: Callable[[Task], Task] | None = None,
    tasks: Sequence[type[Task]] = (),
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[torch.nn.Module, Task, PreTrainedTokenizerBase]:
    """Load the base that a folder names and put the folder's weights on it, ready to be trained.

    Args:
        source: written by `save_adapter` or `Trainer.save`, as a path or opened.
        base: where the base model is now, if it moved; its fingerprint must be the same.
        quantize: as at training unless given; "none" is the base in full precision.
        grow: makes the folder's task able to learn other rows as well; the head then grows.
        tasks: your own task classes, beside the four built-in ones.
        shard: hold the base in shares, as `load_base` does.
        device_map: spread the base over GPUs, as `load_base` does.

    Raises:
        ValueError: the folder is incomplete or damaged, its task is not known, or the base is
            another one.
    """
    folder = source if isinstance(source, Folder) else open_folder(source, tasks=tasks)
    task = folder.task if grow is None else grow(folder.task)
    model, tokenizer = load_own_base(
        folder, task, base=base, quantize=quantize, shard=shard, device_map=device_map
    )
    known_labels = len(folder.task.labels or ())
    loaded = load_weights(model, folder.directory, known_labels=known_labels)
    continued_from = {
        "folder": folder.directory.name,
        "sum": folder.manifest["sum"],
        "task": folder.task.to_json(),
    }
    state = state_of(loaded)
    state.method = folder.manifest.get("method")
    state.started_from = folder.manifest.get("started_from")
    state.head_is_new = False
    state.lineage = [*folder.manifest.get("lineage", []), continued_from]
    return loaded, task, tokenizer


def open_folder(directory: str | Path, *, tasks: Sequence[type[Task]] = ()) -> Folder:
    """Check an adapter folder and read its manifest.

    Args:
        directory: written by `save_adapter` or `Trainer.save`.
        tasks: your own task classes, beside the four built-in ones.

    Raises:
        ValueError: it is incomplete, damaged, or holds what peftcls never writes.
    """
    directory = Path(directory)
    return _check_folder(directory, read_manifest(directory), tasks=tasks)


def _check_folder(
    directory: Path, manifest: dict[str, Any], *, tasks: Sequence[type[Task]]
) -> Folder:
    """Open a folder whose files match its manifest."""
    check_adapter_folder(directory, manifest)
    check_adapter_settings(directory, manifest)
    task = read_task(directory, manifest, tasks=tasks)
    try:
        heads = tuple(manifest["base"]["heads"])
        facts = BaseFacts(**{**manifest["base"], "heads": heads})
        dtype = DTYPES[facts.dtype]
    except (KeyError, TypeError) as error:
        raise damaged(directory / MANIFEST, error) from None
    return Folder(directory, manifest, task, facts, dtype)


def load_own_base(
    folder: Folder,
    task: Task,
    *,
    base: str | Path | None = None,
    quantize: Quantize | Literal["none"] | None = None,
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base that a folder names, with a head for `task`, and the folder's tokenizer.

    Arguments and errors as of `load_adapter`.
    """
    facts = folder.base
    FastPaths.from_environment()  # a wrong value there is no fault of the base
    precision = facts.quantize if quantize is None else quantize
    try:
        model, base_tokenizer = load_same_base(
            facts,
            task,
            moved_to=base,
            quantize=None if precision == "none" else precision,
            dtype=folder.dtype,
            shard=shard,
            device_map=device_map,
        )
    except ValueError as error:
        moved = "" if base else " If the base has moved, say where it is: base=... (--base MODEL)."
        raise ValueError(
            f"{folder.directory} cannot be loaded without its base: {error}{moved}"
        ) from None
    fingerprint = base_facts(model).fingerprint
    if fingerprint != facts.fingerprint:
        raise ValueError(
            f"{base or facts.name} is not the base of {folder.directory}: expected weights with "
            f"the fingerprint {facts.fingerprint[:12]}, found {fingerprint[:12]}; pass base=... "
            "with the model the adapter was trained on."
        )
    return model, load_own_tokenizer(folder, like=base_tokenizer)


def load_own_tokenizer(folder: Folder, *, like: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer; `like` is one of the same base, with the base's position limit."""
    tokenizer = read_tokenizer(str(folder.directory))
    tokenizer.model_max_length = like.model_max_length
    return tokenizer

"""The folder on disk: everything that another program needs besides the base model, and not a byte of that."""

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.engine.head_logits import unwrapped
from peftcls.models.adapter_methods import METHOD
from peftcls.models.base_model import load_base
from peftcls.models.folder_safety import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PART_WEIGHTS,
    check_adapter_folder,
    check_finite,
    read_object,
)
from peftcls.models.pretrained_io import reraise_as_value_error
from peftcls.models.state import BaseFacts, Quantize, base_facts
from peftcls.models.tokenizers import read_tokenizer
from peftcls.models.trainable import (
    set_head_dropout,
    trained_parameters,
    widen_trained,
    wrap_adapter,
)
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression

MANIFEST = "peftcls.json"
FORMAT = 1
LINEAGE = "lineage"  # the attribute of a model that says which folders it comes from, oldest first
READABLE = 0o644  # temporary files are their owner's alone; an adapter is handed on
TASKS: tuple[type[Task], ...] = (Classification, Regression, ExtractiveQA, Instruction)


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is saved: the adapter under PEFT's names, or the trained parameters of a plain model under its own."""
    if isinstance(model, PeftModel):
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        found = trained_parameters(model)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def save_adapter(
    directory: str | Path, model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Write the adapter folder: trained tensors, task, tokenizer, and the name and fingerprint of the base.

    Everything is written beside first and moved into place, the manifest with the sums of all files last; a folder
    without it, or one whose files do not match it, is never loaded.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        peft = isinstance(model, PeftModel)
        save_file(
            trained_tensors(model),
            beside / (ADAPTER_WEIGHTS if peft else PART_WEIGHTS),
            metadata={"format": "pt"},
        )
        if isinstance(model, PeftModel):
            config = copy.copy(model.peft_config["default"])
            if (
                base_facts(model).revision is None
            ):  # a folder: its path is nobody else's business, and nothing that PEFT could fetch
                config.base_model_name_or_path = None
            config.save_pretrained(str(beside))
        tokenizer.save_pretrained(
            str(beside), save_jinja_files=False
        )  # of several chat templates it would make a folder
        manifest = {
            "format": FORMAT,
            "task": task.to_json(),
            "base": dataclasses.asdict(base_facts(model)),
            "method": vars(model).get(METHOD),
            "lineage": vars(model).get(LINEAGE, []),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
            "files": {file.name: _sum(file) for file in sorted(beside.iterdir())},
        }
        (beside / MANIFEST).write_text(
            json.dumps(seal(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        stale = {ADAPTER_WEIGHTS, ADAPTER_CONFIG, PART_WEIGHTS} | _listed(directory)
        (directory / MANIFEST).unlink(missing_ok=True)
        for name in stale - {
            file.name for file in beside.iterdir()
        }:  # of an adapter that was saved here before
            (directory / name).unlink(missing_ok=True)
        for file in sorted(beside.iterdir(), key=lambda file: file.name == MANIFEST):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.chmod(READABLE)
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return directory


def check_not_start(directory: Path, model: torch.nn.Module) -> None:
    """Raise ValueError where a folder is the one that the model learns on from: it stays, and the new one names it."""
    start, file = vars(model).get(LINEAGE, [])[-1:], directory / MANIFEST
    if start and file.is_file() and read_object(file).get("sum") == start[0]["sum"]:
        raise ValueError(
            f"output_dir={str(directory)!r} holds the folder that this run learns on from, or a copy of it, and would replace "
            "it; choose another."
        )


def load_adapter(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    quantize: Quantize | Literal["none"] | None = None,
    grow: Callable[[Task], Task] | None = None,
) -> tuple[torch.nn.Module, Task, PreTrainedTokenizerBase]:
    """Load the base that a folder names and put the folder's weights on it, ready to be trained on.

    Args:
        directory: written by `save_adapter` or `Trainer.save`.
        base: where the base model is now, if not where it was; its fingerprint must be the same.
        quantize: as at training unless given; "none" is the base in full precision.
        grow: makes the folder's task able to learn other rows as well; the head then grows.

    Raises:
        ValueError: the folder is incomplete or damaged, or the base is another one.
    """
    folder = open_folder(directory)
    task = folder.task if grow is None else grow(folder.task)
    model, tokenizer = load_own_base(folder, task, base=base, quantize=quantize)
    directory, manifest, before = folder.directory, folder.manifest, folder.task
    loaded = _put_weights(model, directory, len(getattr(before, "labels", None) or ()))
    vars(loaded)[METHOD] = manifest.get("method")
    vars(loaded)[LINEAGE] = [
        *manifest.get("lineage", []),
        {"folder": directory.name, "sum": manifest["sum"], "task": before.to_json()},
    ]
    return loaded, task, tokenizer


@dataclasses.dataclass(frozen=True)
class Folder:
    """An adapter folder that is whole, and what its manifest says; its weights and its base are not read yet."""

    directory: Path
    manifest: dict[str, Any]
    task: Task
    base: BaseFacts
    dtype: torch.dtype


def open_folder(directory: str | Path) -> Folder:
    """Look at an adapter folder. Raises ValueError where it is incomplete, damaged, or holds what peftcls never writes."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    check_adapter_folder(directory, manifest)
    task = read_task(directory, manifest)
    try:
        facts = BaseFacts(**{**manifest["base"], "heads": tuple(manifest["base"]["heads"])})
        dtype = {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float64": torch.float64,
        }[facts.dtype]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory / MANIFEST} is damaged ({type(error).__name__}: {error}); copy the folder again."
        ) from None
    return Folder(directory, manifest, task, facts, dtype)


def load_own_base(
    folder: Folder,
    task: Task,
    *,
    base: str | Path | None = None,
    quantize: Quantize | Literal["none"] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base that a folder names, with a head for `task`, and the folder's tokenizer; arguments and errors as of `load_adapter`."""
    directory, facts = folder.directory, folder.base
    held = None if quantize == "none" else quantize or facts.quantize
    try:
        model, own = load_base(
            base or facts.name,
            task,
            quantize=held,
            dtype=folder.dtype,
            revision=None if base else facts.revision,
            pretrained=facts.random_seed is None,
            seed=facts.random_seed or 0,
        )
    except ValueError as error:
        raise ValueError(f"{directory} cannot be loaded without its base: {error}") from None
    if (found := base_facts(model).fingerprint) != facts.fingerprint:
        raise ValueError(
            f"{base or facts.name} is not the base of {directory}: expected weights with the fingerprint "
            f"{facts.fingerprint[:12]}, found {found[:12]}; pass base=... with the model the adapter was trained on."
        )
    return model, load_own_tokenizer(folder, like=own)


def load_own_tokenizer(folder: Folder, *, like: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A folder's tokenizer; `like` is another for the same base, which knows how many positions that has."""
    tokenizer = read_tokenizer(str(folder.directory))
    tokenizer.model_max_length = like.model_max_length
    return tokenizer


def read_task(directory: Path, manifest: dict[str, Any]) -> Task:
    """The task that the manifest of a folder describes. Raises ValueError where it cannot be."""
    kinds = {kind.__name__: kind for kind in TASKS}
    if (name := manifest["task"].get("name")) not in kinds:
        raise ValueError(
            f"{directory / MANIFEST} names the task {name!r}, expected one of {sorted(kinds)}."
        )
    try:
        return kinds[name].from_json(manifest["task"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory / MANIFEST} describes a task that cannot be: {error}"
        ) from None


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an adapter folder whose files are all there and whole."""
    if not directory.is_dir():
        raise ValueError(f"there is no folder {directory}, expected one that Trainer.save wrote.")
    if not (file := directory / MANIFEST).is_file():
        raise ValueError(
            f"{directory} has no {MANIFEST}, so it is not an adapter folder of peftcls or was not saved to its end."
        )
    manifest = read_object(file)
    try:
        sums, _, _, written = (
            {**manifest["files"]},
            manifest["task"]["name"],
            manifest["base"]["name"],
            manifest["sum"],
        )
        if seal(manifest)["sum"] != written:
            raise ValueError("its own SHA-256 is another")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); copy the folder again."
        ) from None
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{file} has the format {manifest.get('format')!r}, expected {FORMAT}; load it with the version of peftcls "
            "that wrote it."
        )
    for name, expected in sums.items():
        if Path(name).name != name or not (directory / name).is_file():
            raise ValueError(
                f"{directory} has no file {name}, which its {MANIFEST} lists; copy the folder again."
            )
        if _sum(directory / name) != expected:
            raise ValueError(
                f"{name} in {directory} is damaged: its SHA-256 is not the one in {MANIFEST}; copy the folder again."
            )
    return manifest


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the sum of its own content, so that a changed label or length is noticed."""
    content = json.dumps(
        {key: value for key, value in manifest.items() if key != "sum"}, sort_keys=True
    )
    return {**manifest, "sum": hashlib.sha256(content.encode()).hexdigest()}


def _put_weights(model: Any, directory: Path, labels: int) -> torch.nn.Module:
    """Put a folder's tensors on a base; those of its head become the first rows of a head with more labels.

    The rows of new labels are the mean of the old ones, so that a new label is never the likeliest before it is learnt (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """
    peft = (directory / ADAPTER_WEIGHTS).is_file()
    if peft:
        with (
            torch.random.fork_rng(devices=[]),
            reraise_as_value_error(f"the adapter in {directory}"),
        ):
            config = PeftConfig.from_pretrained(str(directory))
            config.base_model_name_or_path, config.inference_mode = model.name_or_path, False
            set_head_dropout(model, getattr(config, "lora_dropout", 0.0))
            model = wrap_adapter(model, config)
    file = directory / (ADAPTER_WEIGHTS if peft else PART_WEIGHTS)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); copy the folder again."
        ) from None
    places = (
        get_peft_model_state_dict(model, save_embedding_layers=False)
        if peft
        else dict(unwrapped(model).named_parameters())
    )
    expected = places if peft else {name: places[name] for name in tensors if name in places}
    heads = base_facts(model).heads
    for name, tensor in tensors.items():
        if (
            name in expected
            and any(f".{head}." in f".{name}" for head in heads)
            and 0 < labels == len(tensor) < len(expected[name])
        ):
            tensors[name] = torch.cat(
                [
                    tensor,
                    tensor.mean(0, keepdim=True).expand(
                        len(expected[name]) - labels, *tensor.shape[1:]
                    ),
                ]
            )
    if wrong := sorted(set(tensors) ^ set(expected)) or [
        n for n in tensors if tensors[n].shape != expected[n].shape
    ]:
        raise ValueError(
            f"{file} does not fit the base: {wrong[0]} and {len(wrong) - 1} more are missing, unknown or of another shape."
        )
    check_finite(file, tensors.items())
    if peft:
        set_peft_model_state_dict(model, tensors)
    else:
        for name in tensors:
            expected[name].requires_grad_(True)
        widen_trained(model)
        for name, tensor in tensors.items():
            expected[name].data = tensor.to(expected[name].device)
    return model


def _listed(directory: Path) -> set[str]:
    """The files that a folder's manifest lists, as far as it can be read."""
    try:
        return {
            name
            for name in {**read_object(directory / MANIFEST)["files"]}
            if Path(name).name == name
        }
    except (ValueError, OSError, KeyError, TypeError):
        return set()


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

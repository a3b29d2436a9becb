"""The trained tensors of a model: collecting them for a folder, loading a folder's onto a base."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from peftcls.engine.model_state import base_facts, unwrapped
from peftcls.models.folder_safety import ADAPTER_WEIGHTS, PART_WEIGHTS, check_finite
from peftcls.models.late_shares import share_when_adapted
from peftcls.models.lora_injection import set_head_dropout, wrap_adapter
from peftcls.models.mixed_precision import widen_trained
from peftcls.models.peft_library import (
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peftcls.models.pretrained_io import reraise_as_value_error
from peftcls.models.trainable import Tensors, trained_parameters

WRAPPED = "base_model.model."
"""What PEFT puts before the names of a model's modules."""
BESIDE = "saved"
"""The name of an adapter that was read from a folder, beside the model's own."""


def trained_tensors(model: torch.nn.Module) -> Tensors:
    """Copies of what is saved: an adapter under PEFT's names, or a model's trained parameters."""
    tensors: dict[str, Any]
    if isinstance(model, PeftModel):
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        tensors = trained_parameters(model)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def load_weights(model: Any, directory: Path, *, known_labels: int) -> torch.nn.Module:
    """Load the tensors of a folder onto a base model.

    Args:
        model: from `load_base`; its head may have more rows than the folder's.
        directory: the adapter folder.
        known_labels: how many labels the folder's head has; 0 where it has none.

    Raises:
        ValueError: the tensors are damaged or do not fit the model.
    """
    if (directory / ADAPTER_WEIGHTS).is_file():
        return _load_adapter_weights(model, directory, known_labels)
    return _load_part_weights(model, directory, known_labels)


def _load_adapter_weights(model: Any, directory: Path, known_labels: int) -> PeftModel:
    file = directory / ADAPTER_WEIGHTS
    wrapped = _wrap_as_saved(model, directory)
    tensors = read_tensors(file)
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    _fit_to_model(file, tensors, expected, base_facts(wrapped).heads, known_labels)
    set_peft_model_state_dict(wrapped, tensors)
    return wrapped


def _load_part_weights(model: Any, directory: Path, known_labels: int) -> torch.nn.Module:
    """Load a trained part of the model itself; that part is then trainable, in float32."""
    file = directory / PART_WEIGHTS
    tensors = read_tensors(file)
    parameters = dict(unwrapped(model).named_parameters())
    expected = {name: parameters[name] for name in tensors if name in parameters}
    _fit_to_model(file, tensors, expected, base_facts(model).heads, known_labels)
    for name in tensors:
        expected[name].requires_grad_(True)
    widen_trained(model)
    for name, tensor in tensors.items():
        expected[name].data = tensor.to(expected[name].device)
    share_when_adapted(model)
    return model


@contextlib.contextmanager
def loaded_beside(model: PeftModel, directory: Path) -> Iterator[None]:
    """Let a model compute with a folder's adapter, loaded beside its own, for a while.

    Args:
        model: with the adapter that was saved to the folder.
        directory: the adapter folder.
    """
    trained = list(trained_parameters(model).values())
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    model.load_adapter(str(directory), BESIDE)
    for name, parameter in model.named_parameters():
        if f".{BESIDE}." in name:
            parameter.data = parameter.data.to(dtypes[name.replace(f".{BESIDE}.", ".default.")])
    model.set_adapter(BESIDE)
    try:
        yield
    finally:
        model.set_adapter("default")
        model.delete_adapter(BESIDE)
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def same_part(model: torch.nn.Module, directory: Path) -> bool:
    """Whether a folder holds a trained part of a model bit for bit."""
    saved = read_tensors(directory / PART_WEIGHTS)
    own = trained_tensors(model)
    return saved.keys() == own.keys() and all(torch.equal(saved[n], own[n]) for n in own)


def _wrap_as_saved(model: Any, directory: Path) -> PeftModel:
    """Put an adapter with a folder's PEFT settings on a base; its weights are not loaded yet."""
    with torch.random.fork_rng(devices=[]), reraise_as_value_error(f"the adapter in {directory}"):
        config = PeftConfig.from_pretrained(str(directory))
        config.base_model_name_or_path = model.name_or_path
        config.inference_mode = False
        set_head_dropout(model, getattr(config, "lora_dropout", 0.0))
        return wrap_adapter(model, config)


def read_tensors(file: Path) -> Tensors:
    """The tensors of a safetensors file; ValueError where it is not whole."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); copy the folder again."
        ) from None


def _fit_to_model(
    file: Path, tensors: Tensors, expected: Tensors, heads: tuple[str, ...], known_labels: int
) -> None:
    """Grow the head's tensors to the model's number of labels, in place, and check all of them.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or not finite.
    """
    for name, tensor in tensors.items():
        if name in expected and _in_head(name, heads):
            tensors[name] = _with_rows_for_new_labels(tensor, len(expected[name]), known_labels)
    wrong = sorted(set(tensors) ^ set(expected))
    if not wrong:
        wrong = [name for name in tensors if tensors[name].shape != expected[name].shape]
    if wrong:
        raise ValueError(
            f"{file} does not fit the base: {wrong[0]} and {len(wrong) - 1} more are missing, "
            "unknown or of another shape."
        )
    check_finite(file, tensors.items())


def _in_head(name: str, heads: tuple[str, ...]) -> bool:
    return any(f".{head}." in f".{name}" for head in heads)


def _with_rows_for_new_labels(tensor: torch.Tensor, rows: int, known_labels: int) -> torch.Tensor:
    """A head's tensor with a row for each label that was added; itself where none was.

    The new rows are the mean of the old ones, so that a new label is never the likeliest before it
    is trained (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
    """
    is_by_label = 0 < known_labels == len(tensor)
    if not is_by_label or rows <= known_labels:
        return tensor
    mean = tensor.mean(0, keepdim=True)
    new_rows = mean.expand(rows - known_labels, *tensor.shape[1:])
    return torch.cat([tensor, new_rows])

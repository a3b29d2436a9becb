"""The structure of a base from its config.json alone: shapes on the meta device, no weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from peftcls.engine.model_state import BaseFacts, state_of
from peftcls.engine.planned_attention import PLANNED_ATTENTION
from peftcls.models.folder_safety import check_base_config
from peftcls.models.pretrained_io import (
    quiet,
    reraise_as_value_error,
    resolve_source,
    validate_base_folder,
)
from peftcls.models.sentence_pooling import choose_pooling
from peftcls.models.structure import head_modules, read_mean_of_tokens
from peftcls.tasks.base import Task


def read_skeleton(name: str | Path, task: Task, *, dtype: torch.dtype) -> PreTrainedModel:
    """A base as `load_base` gives it, but on the meta device: it has shapes and no weights.

    Modules that a checkpoint lacks, and that `load_base` would train beside the head, are not known
    from the configuration alone; they count as frozen.

    Args:
        name: as for `load_base`; of a folder, config.json is enough.
        task: as for `load_base`.
        dtype: of the frozen weights.

    Raises:
        ValueError: there is no configuration, transformers does not know its model, or the model
            cannot do the task.
    """
    source = resolve_source(name)
    _check_has_config(source)
    config = _read_config(source, task)
    with (
        quiet(),
        reraise_as_value_error(f"the configuration of {source}"),
        torch.device("meta"),
    ):
        model: Any = task.auto_model.from_config(config, dtype=dtype)
    model.requires_grad_(False).eval()
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PLANNED_ATTENTION)
    causal = task.new_head and is_decoder(config)
    heads = head_modules(model) if task.new_head else []
    pooling = choose_pooling(task, source, None)
    if not causal and pooling != "cls":
        heads = [read_mean_of_tokens(model, compares=pooling == "compare")]
    state = state_of(model)
    state.task_type = task.peft_type
    state.base = BaseFacts(
        name=str(name),
        revision=None,
        fingerprint="",
        quantize=None,
        dtype=str(dtype).removeprefix("torch."),
        heads=tuple(heads),
        causal=causal,
    )
    return model


def is_decoder(config: Any) -> bool:
    """Whether a configuration is that of a decoder: a causal language model, and no masked one."""
    kind = config.model_type
    is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return is_causal and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _check_has_config(source: str) -> None:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{source} has no config.json, so it is not a base model.")
    if not folder.exists():
        validate_base_folder(source)
    if folder.is_file():
        raise ValueError(f"{source} is a file, expected the folder that its config.json is in.")


def _read_config(source: str, task: Task) -> Any:
    with quiet(), reraise_as_value_error(f"the configuration of {source}"):
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=False, **task.model_settings()
        )
        check_base_config(source, config, None)
    if config.is_encoder_decoder:
        raise ValueError(
            f"{source} is a {config.model_type}, an encoder with a decoder, expected one of the "
            "two alone; use --dry-run of a training instead, which measures."
        )
    return config

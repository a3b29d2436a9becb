"""The tokenizer of a base model: fast, with a padding token, and with the model's position limit."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from peftcls.demo import BASE_FOLDER
from peftcls.models.folder_safety import check_base_config
from peftcls.models.pretrained_io import quiet, reraise_as_value_error, validate_base_folder

POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, with a padding token.

    Raises:
        ValueError: there is none that knows where a token stands in its text, or none that can pad.
    """
    source = str(BASE_FOLDER) if str(name) == "demo" else str(name)
    validate_base_folder(source)
    return read_tokenizer(source, revision=revision)


def read_tokenizer(source: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or of a model on the hub, with a padding token. Raises ValueError, as `load_tokenizer`."""
    with quiet(), reraise_as_value_error(f"the tokenizer of {source}"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        tokenizer("a", verbose=False)  # settings of the wrong kind show where they are used
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source} has no fast tokenizer (tokenizer.json), which is needed to know where a token stands in its text."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {source} has neither a padding token nor an end-of-text token; add one to it."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_tokenizer_only(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model that knows how many positions the model has, without reading its weights.

    Raises:
        ValueError: as `load_base`.
    """
    tokenizer, source = load_tokenizer(name), str(BASE_FOLDER) if str(name) == "demo" else str(name)
    with torch.device("meta"), quiet(), reraise_as_value_error(f"the base model {source}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_base_config(source, config, None)
        backbone = AutoModel.from_config(config)
    tokenizer.model_max_length = position_limit(backbone)
    return tokenizer


def position_limit(model: PreTrainedModel) -> int:
    """How many tokens a model with a table of positions can read.

    Positions that are computed have no end: `VERY_LARGE_INTEGER` then, as transformers has it for a
    tokenizer's `model_max_length`. A tokenizer of `load_base` carries this number there, since what
    is published beside a model is often another one.
    """
    limits = []
    for name, module in model.base_model.named_modules():
        if not isinstance(module, torch.nn.Embedding):
            continue
        if name.rpartition(".")[2] not in POSITION_TABLES:
            continue
        reserved = getattr(module, "offset", 0)
        if module.padding_idx is not None:  # RoBERTa counts positions from behind the padding index
            reserved = module.padding_idx + 1
        limits.append(module.num_embeddings - reserved)
    return min(limits, default=VERY_LARGE_INTEGER)

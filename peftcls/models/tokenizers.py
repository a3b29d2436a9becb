"""The tokenizer of a base model: fast, with a padding token and the model's position limit."""

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

from peftcls.models.folder_safety import check_base_config
from peftcls.models.pretrained_io import (
    quiet,
    reraise_as_value_error,
    reraise_base_error,
    resolve_source,
    validate_base_folder,
)

POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
"""Names that architectures give to their table of position embeddings."""


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, with a padding token.

    Raises:
        ValueError: it has no fast tokenizer, which knows where a token stands in its text, or
            neither a padding token nor an end-of-text token.
    """
    source = resolve_source(name)
    validate_base_folder(source)
    return read_tokenizer(source, revision=revision)


def read_tokenizer(source: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Read the tokenizer in a folder, or of a model on the hub; errors as of `load_tokenizer`."""
    with quiet(), reraise_as_value_error(f"the tokenizer of {source}"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        # Settings of the wrong type raise only when they are used.
        tokenizer("a", verbose=False)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source} has no fast tokenizer (tokenizer.json), which is needed to know where a "
            "token stands in its text."
        )
    if tokenizer.pad_token_id is not None:
        return tokenizer
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {source} has neither a padding token nor an end-of-text token; "
            "add one to it."
        )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_tokenizer_only(name: str | Path) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer, with the model's position limit, without reading its weights.

    Raises:
        ValueError: as `load_base`.
    """
    tokenizer = load_tokenizer(name)
    source = resolve_source(name)
    with torch.device("meta"), quiet(), reraise_base_error(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_base_config(source, config, None)
        backbone = AutoModel.from_config(config)
    fit_to_model(tokenizer, backbone, source)
    return tokenizer


def fit_to_model(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, source: str) -> None:
    """Give a tokenizer its model's position limit.

    Args:
        tokenizer: of the model.
        model: a base, or its backbone.
        source: where both come from, for messages.

    Raises:
        ValueError: it knows tokens that the model has no embedding for. A text with one of them
            would end a forward pass, on a GPU without saying why.
    """
    tokenizer.model_max_length = position_limit(model)
    embeddings = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if embeddings is None:
        return
    last_token = max([tokenizer.vocab_size - 1, *tokenizer.added_tokens_decoder])
    if last_token < embeddings:
        return
    raise ValueError(
        f"the tokenizer of {source} knows the token "
        f"{tokenizer.convert_ids_to_tokens(last_token)!r}, which is number {last_token}, counted "
        f"from 0, and the model has {embeddings} embeddings; use the tokenizer that the model was "
        "trained with, or call model.resize_token_embeddings(len(tokenizer)) and save both again."
    )


def position_limit(model: PreTrainedModel) -> int:
    """How many tokens a model with a table of position embeddings can read.

    Computed positions (rotary, relative) have no limit: `VERY_LARGE_INTEGER` then, as transformers
    has it for a tokenizer's `model_max_length`. A tokenizer of `load_base` carries this number
    there, since what is published beside a model is often another one.
    """
    limits = []
    for name, module in model.base_model.named_modules():
        if not isinstance(module, torch.nn.Embedding):
            continue
        if name.rpartition(".")[2] not in POSITION_TABLES:
            continue
        reserved = getattr(module, "offset", 0)
        # RoBERTa counts positions from behind the padding index.
        if module.padding_idx is not None:
            reserved = module.padding_idx + 1
        limits.append(module.num_embeddings - reserved)
    return min(limits, default=VERY_LARGE_INTEGER)

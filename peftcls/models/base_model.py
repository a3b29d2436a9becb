"""The base model: loading it, and finding its parts by structure."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils import logging as transformers_logging

from peftcls.demo import BASE_FOLDER
from peftcls.engine.head_logits import sees_later_tokens, unwrapped
from peftcls.engine.kernels import choose_kernels, fast_dtype
from peftcls.models.fingerprint import fingerprint_base, fingerprint_tensors
from peftcls.models.folder_safety import check_base_config, check_base_folder, check_finite
from peftcls.tasks.base import POSITIONS, Task

Quantize = Literal["8bit", "4bit"]
POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
QUANTIZED_LAYERS = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)


@dataclasses.dataclass(frozen=True)
class BaseFacts:
    """What has to be known about a base model to load the same one again."""

    name: str
    revision: str | None
    fingerprint: str
    quantize: Quantize | None
    dtype: str
    heads: tuple[str, ...]
    causal: bool
    random_seed: int | None = None


def load_base(name: str | Path, task: Task, *, quantize: Quantize | None = None, dtype: torch.dtype | None = None,
              revision: str | None = None, seed: int = 0, pretrained: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model, with the head that the task needs, and its tokenizer; every weight is frozen.

    Only safetensors are read, and no code that comes with a model is run.

    Args:
        name: "demo" (the model that ships with peftcls), a local folder, or the name of a model on the hub.
        task: decides the kind of model, its head and its labels.
        quantize: hold the base in 8 or 4 bits through bitsandbytes; a new head stays in full precision.
        dtype: of the frozen weights; what this machine is fastest in unless given (see `fast_dtype`). What is trained is
            float32 either way, and so is every loss.
        revision: of a model on the hub.
        seed: for the weights of a new head.
        pretrained: False draws random weights in the same shape from the seed, as a control of what pretraining gave; the
            folder then holds the seed, and is loaded by drawing them again.

    Raises:
        ValueError: there is no such model, it is damaged or has no safetensors, or it cannot do the task.
    """
    source = str(BASE_FOLDER) if str(name) == "demo" else str(name)
    if quantize not in (None, "8bit", "4bit"):
        raise ValueError(f"quantize={quantize!r}: expected None, '8bit' or '4bit'.")
    if Path(source).is_dir() and (Path(source) / "peftcls.json").is_file():
        raise ValueError(f"{source} is an adapter folder, expected a base model; load it with load_predictor({source!r}).")
    settings: dict[str, Any] = task.model_settings()
    _look_at_folder(source)
    with _quiet(), told(f"the base model {source}"):  # the labels of another task, which a base may bring, are not ours
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **settings)
        check_base_config(source, config, revision)
        config.return_dict = True
        if str(config._attn_implementation).startswith("flash"):  # what is not installed would be fetched, as code
            config._attn_implementation = None
    tokenizer = load_tokenizer(name, revision=revision)
    config.pad_token_id = tokenizer.pad_token_id
    dtype = dtype or fast_dtype(getattr(config.get_text_config(), "hidden_size", 0))
    if quantize and not pretrained:
        raise ValueError(f"quantize={quantize!r} with pretrained=False: random weights are a control, in full precision.")
    with torch.random.fork_rng(devices=[]), _quiet(), told(f"the base model {source}"):
        torch.manual_seed(seed)
        model, report = _load_weights(source, task, config, revision, dtype, quantize, [])
        fresh = {key.rpartition(".")[0] for key in report["missing_keys"]}
        if quantize and (unread := [name for name in fresh if isinstance(model.get_submodule(name), QUANTIZED_LAYERS)]):
            torch.manual_seed(seed)  # new weights cannot be trained in 8 or 4 bits
            model, report = _load_weights(source, task, config, revision, dtype, quantize, unread)
        if not pretrained:
            torch.manual_seed(seed)
            model = task.auto_model.from_config(config, dtype=dtype)
    if quantize and not any(isinstance(module, QUANTIZED_LAYERS) for module in model.modules()):
        raise ValueError(f"quantize={quantize!r} with {type(model).__name__}: none of its layers can be held in 8 or 4 bits; leave it out.")
    model.requires_grad_(False).eval()
    choose_kernels(model)
    check_finite(source, model.named_parameters())
    for module in model.modules():  # bitsandbytes would repack 4-bit weights on some CPUs, in a layout without a gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    heads = head_modules(model) if task.new_head else []
    if unfit := sorted(key for key, *_ in report["mismatched_keys"] if not any(key.startswith(f"{head}.") for head in heads)):
        raise ValueError(f"{source}: {unfit[0]} has another shape in its safetensors than by its config.json; copy the model again.")
    heads += sorted(m for m in fresh if not any(m == h or m.startswith(h + ".") for h in heads))
    if heads and not task.new_head:
        raise ValueError(f"{source} has no weights for {', '.join(heads)}, so it is not a pretrained {type(model).__name__}; "
                         f"{type(task).__name__} needs one.")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if (positions := _positions(model)) is not None:
        vars(tokenizer)[POSITIONS] = positions
    causal = _reads_causally(model, task)
    if causal or not task.new_head:
        tokenizer.padding_side = "right"  # positions are then counted from the first token by every model
    fingerprint = fingerprint_base(source, revision) if pretrained else fingerprint_tensors(model.base_model.state_dict())
    model.base_facts = BaseFacts(str(name), getattr(config, "_commit_hash", None) or revision, fingerprint, quantize,
                                 str(dtype).removeprefix("torch."), tuple(heads), causal, None if pretrained else seed)
    return model, tokenizer


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, with a padding token.

    Raises:
        ValueError: there is none that knows where a token stands in its text, or none that can pad.
    """
    source = str(BASE_FOLDER) if str(name) == "demo" else str(name)
    _look_at_folder(source)
    return read_tokenizer(source, revision=revision)


def read_tokenizer(source: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or of a model on the hub, with a padding token. Raises ValueError, as `load_tokenizer`."""
    with _quiet(), told(f"the tokenizer of {source}"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        tokenizer("a", verbose=False)  # settings of the wrong kind show where they are used
    if not tokenizer.is_fast:
        raise ValueError(f"{source} has no fast tokenizer (tokenizer.json), which is needed to know where a token stands in its text.")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {source} has neither a padding token nor an end-of-text token; add one to it.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_reader(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model that knows how many positions the model has, without reading its weights.

    Raises:
        ValueError: as `load_base`.
    """
    tokenizer, source = load_tokenizer(name), str(BASE_FOLDER) if str(name) == "demo" else str(name)
    with torch.device("meta"), _quiet(), told(f"the base model {source}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_base_config(source, config, None)
        positions = _positions(AutoModel.from_config(config))
    if positions is not None:
        vars(tokenizer)[POSITIONS] = positions
    return tokenizer


def _load_weights(source: str, task: Task, config: Any, revision: str | None, dtype: torch.dtype, quantize: Quantize | None,
                  in_full: list[str]) -> tuple[Any, dict[str, Any]]:
    """The model, and what its files lacked or held in another shape; some modules stay in full precision."""
    settings: dict[str, Any] = {}
    if quantize:
        settings = {"quantization_config": _quantization(task, config, quantize, dtype, in_full), "device_map": {"": _own_device()}}
    common = {"config": config, "revision": revision, "dtype": dtype, "use_safetensors": True, "trust_remote_code": False,
              "output_loading_info": True, **settings}
    model, report = task.auto_model.from_pretrained(source, ignore_mismatched_sizes=task.new_head, **common)
    prefix = model.base_model_prefix
    if 2 * sum(key.startswith(f"{prefix}.") for key in report["missing_keys"]) > len(model.base_model.state_dict()):
        # Llama's class for question answering, and others, look for their backbone under a name that no file has.
        backbone, report = AutoModel.from_pretrained(source, **common)
        setattr(model, prefix, backbone)
        report["missing_keys"] = {f"{prefix}.{key}" for key in report["missing_keys"]}
    return model, report


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model with a table of positions can read; None where positions are computed and have no end."""
    tables = [module for name, module in model.base_model.named_modules()
              if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES]
    return min((t.num_embeddings - (getattr(t, "offset", 0) if t.padding_idx is None else t.padding_idx + 1) for t in tables), default=None)


def _look_at_folder(source: str) -> None:
    """Say at once what a local folder lacks, before anything is asked of a hub."""
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or folder.exists():
            raise ValueError(f"there is no folder {source}, expected one with a base model, the name of a model on the hub, or 'demo'.")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} has no config.json, so it is not a base model.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{source} has no *.safetensors file; other weight files can run code when they are read, so they are not. "
                         "Save the model again with save_pretrained.")
    check_base_folder(folder)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """A library's failure to read what a folder holds, in one sentence that names it."""
    try:
        yield
    except Exception as error:  # what a library raises at a file that lies cannot be foretold
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot load {what}: {type(error).__name__}: {first}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No report of missing weights, which are dealt with here, and no progress bar where nobody watches it."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _own_device() -> int | str:
    """The GPU of this process, by its number on this machine: quantized weights cannot be moved once they are loaded."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def _quantization(task: Task, config: Any, quantize: Quantize, dtype: torch.dtype, in_full: list[str]) -> BitsAndBytesConfig:
    with torch.device("meta"):  # the structure alone, without weights
        skeleton = task.auto_model.from_config(config)
    skip = get_keys_to_not_convert(skeleton) + (head_modules(skeleton) if task.new_head else []) + in_full
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip, bnb_4bit_quant_type="nf4",
                              bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_storage=dtype)


def _reads_causally(model: PreTrainedModel, task: Task) -> bool:
    """Whether the task's head must be fed by us, since the model is a decoder; settings that do not fit are refused."""
    pooling, causal = getattr(task, "pooling", None), getattr(task, "causal", True)
    backbone, vocabulary = model.base_model, model.config.get_text_config().vocab_size
    decoder = not model.config.is_encoder_decoder and not sees_later_tokens(backbone, vocabulary, causal=True)
    if not task.new_head:
        return decoder
    if decoder and pooling == "cls":
        raise ValueError(f"pooling='cls' with {type(model).__name__}: a decoder's first token has seen nothing; use 'last' or 'mean'.")
    if not decoder and (pooling not in (None, "cls") or not causal):
        raise ValueError(f"pooling={pooling!r}, causal={causal} with {type(model).__name__}: its head reads its own token and has no "
                         "causal mask; leave both out.")
    if not causal and not _can_look_ahead(backbone, vocabulary):
        raise ValueError(f"causal=False with {type(model).__name__}: this architecture keeps its causal mask; leave it out.")
    return decoder


def _can_look_ahead(backbone: torch.nn.Module, vocabulary: int) -> bool:
    try:
        return sees_later_tokens(backbone, vocabulary, causal=False)
    except (RuntimeError, ValueError, IndexError):  # it builds on a mask of two dimensions (Bloom)
        return False


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules above the backbone that have weights: the head, whatever an architecture calls it.

    Raises:
        ValueError: the backbone is not one child of the model, so what is above it cannot be told.
    """
    prefix = model.base_model_prefix
    if not isinstance(getattr(model, prefix, None), torch.nn.Module):
        raise ValueError(f"{type(model).__name__} has no backbone called {prefix!r}; peftcls cannot tell its head from its body.")
    return [name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())]


def attention_projections(model: torch.nn.Module) -> list[str]:
    """Full names of the linear layers inside attention modules, found by class name."""
    found = [f"{name}.{inner}" for name, module in model.named_modules() if "Attention" in type(module).__name__
             for inner, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)]
    return list(dict.fromkeys(found))


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the backbone's linear layers; the head's and the output embedding's are not among them."""
    prefix = model.base_model_prefix
    return [f"{prefix}.{name}" for name, layer in getattr(model, prefix).named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)]


def base_facts(model: Any) -> BaseFacts:
    """The facts that `load_base` left with the model."""
    if not isinstance(facts := getattr(unwrapped(model), "base_facts", None), BaseFacts):
        raise ValueError("this model does not come from load_base; use model, tokenizer = load_base(name, task), so that the "
                         "adapter can name the base it belongs to.")
    return facts

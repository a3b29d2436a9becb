"""The base model: loading it, and finding its parts by structure."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from peftcls.demo import BASE_FOLDER
from peftcls.engine.kernels import choose_kernels, fast_dtype
from peftcls.models.fingerprint import fingerprint_base, fingerprint_tensors
from peftcls.models.folder_safety import check_base_config, check_finite
from peftcls.models.pretrained_io import quiet, reraise_as_value_error, validate_base_folder
from peftcls.models.quantization import own_device, quantization_config_for
from peftcls.models.state import BaseFacts, Quantize
from peftcls.models.structure import QUANTIZED_LAYERS, head_modules, needs_own_pooling
from peftcls.models.tokenizers import load_tokenizer, position_limit
from peftcls.tasks.base import Task


def load_base(
    name: str | Path,
    task: Task,
    *,
    quantize: Quantize | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    seed: int = 0,
    pretrained: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
        raise ValueError(
            f"{source} is an adapter folder, expected a base model; load it with load_predictor({source!r})."
        )
    settings: dict[str, Any] = task.model_settings()
    validate_base_folder(source)
    with (
        quiet(),
        reraise_as_value_error(f"the base model {source}"),
    ):  # the labels of another task, which a base may bring, are not ours
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, **settings
        )
        check_base_config(source, config, revision)
        config.return_dict = True
        if str(config._attn_implementation).startswith(
            "flash"
        ):  # what is not installed would be fetched, as code
            config._attn_implementation = None
    tokenizer = load_tokenizer(name, revision=revision)
    config.pad_token_id = tokenizer.pad_token_id
    dtype = dtype or fast_dtype(getattr(config.get_text_config(), "hidden_size", 0))
    if quantize and not pretrained:
        raise ValueError(
            f"quantize={quantize!r} with pretrained=False: random weights are a control, in full precision."
        )
    with (
        torch.random.fork_rng(devices=[]),
        quiet(),
        reraise_as_value_error(f"the base model {source}"),
    ):
        torch.manual_seed(seed)
        model, report = _load_weights(source, task, config, revision, dtype, quantize, [])
        fresh = {key.rpartition(".")[0] for key in report["missing_keys"]}
        if quantize and (
            unread := [
                name for name in fresh if isinstance(model.get_submodule(name), QUANTIZED_LAYERS)
            ]
        ):
            torch.manual_seed(seed)  # new weights cannot be trained in 8 or 4 bits
            model, report = _load_weights(source, task, config, revision, dtype, quantize, unread)
        if not pretrained:
            torch.manual_seed(seed)
            model = task.auto_model.from_config(config, dtype=dtype)
    if quantize and not any(isinstance(module, QUANTIZED_LAYERS) for module in model.modules()):
        raise ValueError(
            f"quantize={quantize!r} with {type(model).__name__}: none of its layers can be held in 8 or 4 bits; leave it out."
        )
    model.requires_grad_(False).eval()
    choose_kernels(model)
    check_finite(source, model.named_parameters())
    for module in (
        model.modules()
    ):  # bitsandbytes would repack 4-bit weights on some CPUs, in a layout without a gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    heads = head_modules(model) if task.new_head else []
    if unfit := sorted(
        key
        for key, *_ in report["mismatched_keys"]
        if not any(key.startswith(f"{head}.") for head in heads)
    ):
        raise ValueError(
            f"{source}: {unfit[0]} has another shape in its safetensors than by its config.json; copy the model again."
        )
    heads += sorted(m for m in fresh if not any(m == h or m.startswith(h + ".") for h in heads))
    if heads and not task.new_head:
        raise ValueError(
            f"{source} has no weights for {', '.join(heads)}, so it is not a pretrained {type(model).__name__}; "
            f"{type(task).__name__} needs one."
        )
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = position_limit(model)
    causal = needs_own_pooling(model, task)
    if causal or not task.new_head:
        tokenizer.padding_side = (
            "right"  # positions are then counted from the first token by every model
        )
    fingerprint = (
        fingerprint_base(source, revision)
        if pretrained
        else fingerprint_tensors(model.base_model.state_dict())
    )
    model.base_facts = BaseFacts(
        str(name),
        getattr(config, "_commit_hash", None) or revision,
        fingerprint,
        quantize,
        str(dtype).removeprefix("torch."),
        tuple(heads),
        causal,
        None if pretrained else seed,
    )
    return model, tokenizer


def _load_weights(
    source: str,
    task: Task,
    config: Any,
    revision: str | None,
    dtype: torch.dtype,
    quantize: Quantize | None,
    in_full: list[str],
) -> tuple[Any, dict[str, Any]]:
    """The model, and what its files lacked or held in another shape; some modules stay in full precision."""
    settings: dict[str, Any] = {}
    if quantize:
        settings = {
            "quantization_config": quantization_config_for(task, config, quantize, dtype, in_full),
            "device_map": {"": own_device()},
        }
    common = {
        "config": config,
        "revision": revision,
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        **settings,
    }
    model, report = task.auto_model.from_pretrained(
        source, ignore_mismatched_sizes=task.new_head, **common
    )
    prefix = model.base_model_prefix
    if 2 * sum(key.startswith(f"{prefix}.") for key in report["missing_keys"]) > len(
        model.base_model.state_dict()
    ):
        # Llama's class for question answering, and others, look for their backbone under a name that no file has.
        backbone, report = AutoModel.from_pretrained(source, **common)
        setattr(model, prefix, backbone)
        report["missing_keys"] = {f"{prefix}.{key}" for key in report["missing_keys"]}
    return model, report

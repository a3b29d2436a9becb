"""Loading a base model, with the head that a task needs, and its tokenizer."""

import contextlib
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from peftcls.argument_checks import check_argument_types
from peftcls.argument_names import names_arguments
from peftcls.engine.agreement import failing_together
from peftcls.engine.allocator import trim_heap
from peftcls.engine.device_map import check_device_map, spread_over_gpus
from peftcls.engine.head_inputs import head_layer_name
from peftcls.engine.kernels import choose_kernels, fast_dtype
from peftcls.engine.launcher import check_launcher, launcher_asks_for_shares
from peftcls.engine.model_choices import DeviceMap, Quantize
from peftcls.engine.model_state import BaseFacts, state_of
from peftcls.engine.probes import ask_all
from peftcls.engine.sharding import (
    Shares,
    join_machine,
    loading_in_every_process,
    own_parts,
    reading_shares,
)
from peftcls.models.fingerprint import fingerprint_base, fingerprint_tensors
from peftcls.models.folder_safety import check_base_config, check_finite
from peftcls.models.pretrained_io import (
    lasting_name,
    quiet,
    reraise_as_value_error,
    reraise_base_error,
    resolve_source,
    validate_base_folder,
)
from peftcls.models.quantization import (
    drop_cast_warnings,
    own_device,
    quantization_config_for,
)
from peftcls.models.sentence_pooling import EncoderPooling, as_encoder_pooling, choose_pooling
from peftcls.models.structure import (
    QUANTIZED_LAYERS,
    head_modules,
    needs_own_pooling,
    read_mean_of_tokens,
)
from peftcls.models.tokenizers import fit_to_model, load_tokenizer
from peftcls.tasks.base import Task

logger = logging.getLogger("peftcls")


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments of `load_base`, and the configuration that they lead to."""

    source: str
    task: Task
    config: Any
    quantize: Quantize | None
    dtype: torch.dtype
    revision: str | None
    seed: int
    pretrained: bool
    pooling: EncoderPooling
    shares: Shares | None


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A model, and how the tensors in its files differ from its own."""

    model: Any
    missing: set[str]
    """Tensors of the model that no file has."""
    mismatched: list[str]
    """Tensors that have another shape in the files."""

    @property
    def new_modules(self) -> set[str]:
        """Modules whose weights were drawn at random, since no file has them."""
        return {key.rpartition(".")[0] for key in self.missing}


@names_arguments
def load_base(
    name: str | Path,
    task: Task,
    *,
    quantize: Quantize | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    seed: int = 0,
    pretrained: bool = True,
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model, with the head that the task needs, and its tokenizer.

    Every weight is frozen. Only safetensors are read, and no code that comes with a model is run.

    Args:
        name: "demo" (the tiny model that ships with peftcls), "minilm" or "smollm2" (real ones from
            Python packages), a local folder, or the name of a model on the hub.
        task: decides the kind of model, its head and its labels.
        quantize: load the base in 8 or 4 bits through bitsandbytes; a new head stays in full
            precision.
        dtype: of the frozen weights; the fastest on this machine unless given (see `fast_dtype`).
            What is trained is float32 either way, and so is every loss.
        revision: of a model on the hub.
        seed: for the weights of a new head.
        pretrained: False draws random weights in the same shape from the seed, as a control of what
            pretraining gave; the folder then holds the seed, and is loaded by drawing them again.
        shard: hold the frozen weights in shares, one in each process of this machine, for a base
            that does not fit on one GPU. With one process it is loaded as always. A base in 4
            bits is loaded whole, on the CPU, and divided when its adapter is attached. Unless
            given, where the launcher asks for FSDP 2.
        device_map: "auto" spreads the layers over the GPUs of one process, which compute one after
            the other. With one GPU, or none, the base is loaded as always.

    Raises:
        ValueError: the model does not exist, is damaged or has no safetensors, or cannot do the
            task, or cannot be held in shares or be spread over the GPUs; or the launcher asks for a
            training that is not done here.
    """
    check_argument_types({"name": name, "revision": revision, "seed": seed}, load_base)
    check_launcher()
    if not isinstance(task, Task):
        raise ValueError(f"task={task!r}: expected a task, such as Classification(...).")
    return _load(
        name,
        task,
        quantize=quantize,
        dtype=dtype,
        revision=revision,
        seed=seed,
        pretrained=pretrained,
        shard=shard,
        device_map=device_map,
    )


def load_same_base(
    facts: BaseFacts,
    task: Task,
    *,
    moved_to: str | Path | None,
    quantize: Quantize | None,
    dtype: torch.dtype,
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base that an adapter was trained on, with a head of the same kind.

    Args:
        facts: of that base.
        task: as for `load_base`.
        moved_to: where the base is now; None for where it was.
        quantize: as for `load_base`, whatever it was at training.
        dtype: as for `load_base`.
        shard: as for `load_base`.
        device_map: as for `load_base`.

    Raises:
        ValueError: as `load_base`.
    """
    return _load(
        moved_to or facts.name,
        task,
        quantize=quantize,
        dtype=dtype,
        revision=None if moved_to else facts.revision,
        seed=facts.random_seed or 0,
        pretrained=facts.random_seed is None,
        shard=shard,
        device_map=device_map,
        pooling=as_encoder_pooling(facts.pooling),
    )


def _load(
    name: str | Path,
    task: Task,
    *,
    quantize: Quantize | None,
    dtype: torch.dtype | None,
    revision: str | None,
    seed: int,
    pretrained: bool,
    shard: bool | None,
    device_map: DeviceMap | None,
    pooling: EncoderPooling | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base; what an encoder's head reads, task and folder say unless given."""
    source = resolve_source(name)
    _validate_arguments(source, quantize)
    validate_base_folder(source)
    if pooling is None:
        pooling = choose_pooling(task, source, revision)
    settings = task.model_settings()
    config = _read_config(source, settings, revision)
    tokenizer = load_tokenizer(name, revision=revision)
    config.pad_token_id = tokenizer.pad_token_id
    if dtype is None:
        dtype = fast_dtype(getattr(config.get_text_config(), "hidden_size", 0))
    if quantize and not pretrained:
        raise ValueError(
            f"quantize={quantize!r} with pretrained=False: random weights are a control, in full "
            "precision."
        )
    check_device_map(device_map, quantize=quantize, shard=shard)
    shares = _join(shard, quantize, pretrained=pretrained)
    request = _Request(
        source, task, config, quantize, dtype, revision, seed, pretrained, pooling, shares
    )
    loaded = _load_or_draw(request)
    model = loaded.model
    _freeze(request, model)
    causal = needs_own_pooling(model, task)
    if causal or model.config.is_encoder_decoder:
        request = dataclasses.replace(request, pooling="cls")
    heads = _find_heads(request, loaded)
    if request.pooling != "cls":
        heads = _put_linear_head(request, model, heads)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    fit_to_model(tokenizer, model, source)
    # On the right, every model counts positions from the first token.
    if causal or not task.new_head:
        tokenizer.padding_side = "right"
    state = state_of(model)
    state.task_type = task.peft_type
    state.base = _collect_facts(lasting_name(name), request, model, heads, causal=causal)
    state.head_is_new = request.pooling != "cls" or _is_new(loaded, head_layer_name(model))
    _lay_out(model, shares, device_map)
    return model, tokenizer


def _lay_out(model: Any, shares: Shares | None, device_map: DeviceMap | None) -> None:
    """Finish a model that several devices hold."""
    if device_map is not None:
        spread_over_gpus(model)
    # A base in 4 bits is divided when its adapter is there.
    if shares is not None and shares.roots:
        ask_all(model)
        shares.reset()
        trim_heap()


def _join(shard: bool | None, quantize: Quantize | None, *, pretrained: bool) -> Shares | None:
    """The processes that are to hold a base in shares; None where each holds the whole."""
    if shard is None:
        shard = launcher_asks_for_shares()
    if not shard:
        return None
    if quantize == "8bit":
        raise ValueError(
            "quantize='8bit' with shard=True: bitsandbytes keeps the scales of 8-bit weights with "
            "the whole weights, which no process holds then; use quantize='4bit', or leave one of "
            "the two out."
        )
    if not pretrained:
        raise ValueError(
            "pretrained=False with shard=True: random weights are drawn whole, in every process; "
            "leave shard out."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return join_machine()
    logger.info(
        "shard=True with one process: the base is held whole; start several with "
        "torchrun --nproc-per-node."
    )
    return None


def _validate_arguments(source: str, quantize: str | None) -> None:
    if quantize not in (None, "8bit", "4bit"):
        raise ValueError(f"quantize={quantize!r}: expected None, '8bit' or '4bit'.")
    if (Path(source) / "peftcls.json").is_file():
        raise ValueError(
            f"{source} is an adapter folder, expected a base model; load it with "
            f"load_predictor({source!r})."
        )


def _read_config(source: str, settings: dict[str, Any], revision: str | None) -> Any:
    """The model's configuration, with the task's labels in place of those that it came with."""
    with quiet(), reraise_base_error(source):
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, **settings
        )
        check_base_config(source, config, revision)
        config.return_dict = True
        # Flash attention that is not installed would be fetched from the hub, as code.
        if str(config._attn_implementation).startswith("flash"):
            config._attn_implementation = None
    return config


# Weights


def _load_or_draw(request: _Request) -> _Loaded:
    """Load the pretrained weights, or draw random ones; a new head is drawn from the seed."""
    with (
        torch.random.fork_rng(devices=[]),
        quiet(),
        reraise_as_value_error(f"the base model {request.source}"),
    ):
        torch.manual_seed(request.seed)
        loaded = _load_weights(request, in_full=[])
        new_quantized = _new_quantized_modules(loaded)
        # New weights cannot be trained in 8 or 4 bits, so they are loaded again in full precision.
        if request.quantize and new_quantized:
            torch.manual_seed(request.seed)
            again = _load_weights(request, in_full=new_quantized)
            loaded = dataclasses.replace(again, missing=loaded.missing)
        if not request.pretrained:
            torch.manual_seed(request.seed)
            model = request.task.auto_model.from_config(request.config, dtype=request.dtype)
            loaded = dataclasses.replace(loaded, model=model)
    return loaded


def _load_weights(request: _Request, *, in_full: list[str]) -> _Loaded:
    """Load a model from its files; the modules `in_full` are not quantized."""
    task = request.task
    arguments: dict[str, Any] = {
        "config": request.config,
        "revision": request.revision,
        "dtype": request.dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    if request.quantize:
        arguments["quantization_config"] = quantization_config_for(
            task,
            request.config,
            request.quantize,
            request.dtype,
            in_full,
            in_shares=request.shares is not None,
        )
        # What will be held in shares waits for its adapter where there is room.
        arguments["device_map"] = {"": own_device() if request.shares is None else "cpu"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(loading_in_every_process())
        if request.shares is not None and not request.quantize:
            arguments |= stack.enter_context(reading_shares(request.shares, task.new_head))
        model, report = _read_weights(request, arguments)
    state_of(model).shares = request.shares
    mismatched = [key for key, *_ in report["mismatched_keys"]]
    return _Loaded(model, set(report["missing_keys"]), mismatched)


def _read_weights(request: _Request, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model of a task, and what transformers reports of its files."""
    auto_model = request.task.auto_model
    arguments["ignore_mismatched_sizes"] = request.task.new_head
    model, report = auto_model.from_pretrained(request.source, **arguments)
    prefix, missing = model.base_model_prefix, report["missing_keys"]
    missing_in_backbone = sum(key.startswith(f"{prefix}.") for key in missing)
    if 2 * missing_in_backbone > len(model.base_model.state_dict()):
        # Some classes, such as Llama's for question answering, look for their backbone under a
        # name that no file has.
        renamed = f"^{model.base_model.base_model_prefix}\\."
        arguments["key_mapping"] = {renamed: f"{prefix}."}
        torch.manual_seed(request.seed)
        model, report = auto_model.from_pretrained(request.source, **arguments)
        # The renaming would be undone where the model is saved, and that file not be read again.
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if renamed not in conversion.source_patterns
        ]
    return model, report


def _new_quantized_modules(loaded: _Loaded) -> list[str]:
    """Modules with new weights that were quantized."""
    return [
        name
        for name in loaded.new_modules
        if isinstance(loaded.model.get_submodule(name), QUANTIZED_LAYERS)
    ]


def _freeze(request: _Request, model: Any) -> None:
    """Freeze a model, choose its kernels, and check its weights."""
    is_quantized = any(isinstance(module, QUANTIZED_LAYERS) for module in model.modules())
    if request.quantize and not is_quantized:
        raise ValueError(
            f"quantize={request.quantize!r} with {type(model).__name__}: none of its layers can be "
            "held in 8 or 4 bits; leave it out."
        )
    if request.quantize == "8bit":
        drop_cast_warnings()
    model.requires_grad_(False).eval()
    choose_kernels(model)
    # The processes that hold a base in shares see a part of its values each.
    with contextlib.nullcontext() if request.shares is None else failing_together():
        check_finite(request.source, own_parts(model.named_parameters()))
    for module in model.modules():
        # bitsandbytes would repack 4-bit weights on some CPUs, in a layout without a gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


# Heads and facts


def _find_heads(request: _Request, loaded: _Loaded) -> list[str]:
    """The names of the model's heads, and of other modules whose weights no file has.

    Raises:
        ValueError: the files do not fit the configuration, or a needed module is not pretrained.
    """
    model = loaded.model
    task = request.task
    heads = head_modules(model) if task.new_head else []
    in_backbone = [key for key in loaded.mismatched if not _is_below(key, heads)]
    if in_backbone:
        raise ValueError(
            f"{request.source}: {min(in_backbone)} has another shape in its safetensors than by "
            "its config.json; copy the model again."
        )
    heads += sorted(
        module
        for module in loaded.new_modules
        if module not in heads and not _is_below(module, heads)
    )
    if heads and not task.new_head:
        raise ValueError(
            f"{request.source} has no weights for {', '.join(heads)}, so it is not a pretrained "
            f"{type(model).__name__}; {type(task).__name__} needs one."
        )
    return heads


def _is_new(loaded: _Loaded, module: str | None) -> bool:
    """Whether the weights of a module were drawn, since no file has them in its shape."""
    drawn = {*loaded.missing, *loaded.mismatched}
    return module is not None and f"{module}.weight" in drawn


def _put_linear_head(request: _Request, model: Any, heads: list[str]) -> list[str]:
    """Give an encoder a head that reads the mean of its tokens; return the heads' names now."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        linear = read_mean_of_tokens(model, compares=request.pooling == "compare")
    names = {name for name, _ in model.named_modules()}
    # What fed the former head is gone, or passes its input on.
    kept = [
        name
        for name in heads
        if name in names and any(True for _ in model.get_submodule(name).parameters())
    ]
    return [linear, *[name for name in kept if name != linear]]


def _is_below(name: str, modules: list[str]) -> bool:
    """Whether a tensor or a module is inside one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def _collect_facts(
    name: str, request: _Request, model: Any, heads: list[str], *, causal: bool
) -> BaseFacts:
    if request.pretrained:
        fingerprint = fingerprint_base(request.source, request.revision)
    else:
        fingerprint = fingerprint_tensors(model.base_model.state_dict())
    return BaseFacts(
        name=name,
        revision=getattr(request.config, "_commit_hash", None) or request.revision,
        fingerprint=fingerprint,
        quantize=request.quantize,
        dtype=str(request.dtype).removeprefix("torch."),
        heads=tuple(heads),
        causal=causal,
        random_seed=None if request.pretrained else request.seed,
        pooling=None if request.pooling == "cls" else request.pooling,
    )

"""What a folder that somebody else made may hold; looked at before a library reads it, and nothing of it is run."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open
from transformers.utils import find_adapter_config_file

ADAPTER_WEIGHTS = "adapter_model.safetensors"  # the name that PEFT looks for
ADAPTER_CONFIG = "adapter_config.json"
PART_WEIGHTS = "trained_part.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
READ_FILES = frozenset(
    (
        ADAPTER_WEIGHTS,
        ADAPTER_CONFIG,
        PART_WEIGHTS,
        TOKENIZER_CONFIG,
        "tokenizer.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "special_tokens_map.json",
        "added_tokens.json",
    )
)
"""Names that a library would read in an adapter folder, whether or not its manifest lists them."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
MANIFEST_BYTES = 16 * 1024 * 1024
METHODS = ("LORA", "ADALORA", "IA3")  # the kinds of adapter that attach_lora makes
HEADS = frozenset(
    ("classifier", "score", "qa_outputs")
)  # PEFT adds these names to those that it is given
FREE_TEXTS = frozenset(
    ("base_model_name_or_path", "revision", "task_type", "peft_type", "peft_version")
)  # not acted upon
NUMBERS = frozenset(
    (
        "r",
        "target_r",
        "init_r",
        "lora_alpha",
        "lora_dropout",
        "total_step",
        "tinit",
        "tfinal",
        "deltaT",
    )
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_labels",
    "n_embd",
    "n_layer",
    "n_inner",
    "d_model",
    "d_ff",
    "dim",
    "hidden_dim",
    "n_layers",
    "type_vocab_size",
)
LEAST_SIZE = (
    1000  # a model without a wide tensor may have as many layers, or labels of another task
)
RANKS = ("r", "target_r", "init_r")
EMPTY = frozenset(
    ("feedforward_modules", "target_parameters")
)  # PEFT may write an empty list, where the default is none
SWITCHES = frozenset(("fan_in_fan_out", "inference_mode", "use_dora", "use_rslora"))
BASE_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "revision": (str, type(None)),
    "fingerprint": (str,),
    "quantize": (str, type(None)),
    "dtype": (str,),
    "heads": (list,),
    "causal": (bool,),
    "random_seed": (int, type(None)),
}


def check_links(folder: Path) -> None:
    """Raise ValueError where a file of a folder is a link out of it; the hub's own cache links to the blobs beside its snapshots."""
    home = folder.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for file in folder.rglob(
        "*"
    ):  # libraries read folders within it too; a link to one is not followed here
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in allowed):
            raise ValueError(
                f"{file.relative_to(folder)} in {folder} is a link out of the folder, to {file.resolve()}; put the file "
                "itself there."
            )


def check_base_folder(folder: Path) -> None:
    """Raise ValueError for what a local base model must not hold: links and names that lead out of it, or an adapter."""
    check_links(folder)
    for index in folder.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            odd = sorted(
                name for name in names if Path(name).name != name or not (folder / name).is_file()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{index.name} in {folder} is damaged ({type(error).__name__}: {error}); copy the model again."
            ) from None
        if odd and index.name.endswith(".safetensors.index.json"):
            raise ValueError(
                f"{index.name} in {folder} names the file {odd[0]!r}, which is not in the folder; copy the model again."
            )
    check_tokenizer_config(folder)
    _check_sizes(folder)


def _check_sizes(folder: Path) -> None:
    """Whether a model is no larger by its settings than its weights could make it: memory is taken before the two are compared."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {name: size for name in SIZES if isinstance(size := settings.get(name), int)}
    except (ValueError, AttributeError, RecursionError):  # the library says what is wrong with it
        return
    if not sizes:
        return
    try:
        widest = max((_widest(file) for file in folder.glob("*.safetensors")), default=0)
    except ValueError:  # likewise
        return
    if large := [
        f"{name}={size}" for name, size in sizes.items() if size > max(widest, LEAST_SIZE)
    ]:
        raise ValueError(
            f"config.json of {folder} has {large[0]}, but no side of its tensors is longer than {widest}; copy the model "
            "again."
        )


def check_base_config(source: str, config: Any, revision: str | None) -> None:
    """Raise ValueError where a base model, on the hub or here, would have a library read or fetch more than its own weights."""
    if find_adapter_config_file(source, revision=revision) is not None:
        raise ValueError(
            f"{source} holds an adapter ({ADAPTER_CONFIG}), which would be loaded with it or lead to another model, expected "
            "a base model alone."
        )
    weights, attention = (
        str(getattr(config, "transformers_weights", None) or ""),
        getattr(config, "_attn_implementation", None),
    )
    if weights and (
        Path(weights).name != weights
        or not weights.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise ValueError(
            f"config.json of {source} asks for the weights {weights!r}, expected a safetensors file of the folder."
        )
    if isinstance(attention, str) and "/" in attention:
        raise ValueError(
            f"config.json of {source} asks for the attention {attention!r} from a hub, which is code and is not run; leave "
            "it out."
        )


def check_tokenizer_config(folder: Path) -> None:
    """Raise ValueError where a tokenizer's settings are no object or name files outside the folder."""
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return
    settings = read_object(file)
    listed = settings.get("fast_tokenizer_files") or []
    if odd := [name for name in listed if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(
            f"{TOKENIZER_CONFIG} in {folder} names the file {odd[0]!r}, which is not in the folder; leave it out."
        )


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, with the file's name, where there is none or it is far too large."""
    if (size := file.stat().st_size) > MANIFEST_BYTES:
        raise ValueError(
            f"{file} has {size} bytes, expected at most {MANIFEST_BYTES}; it is not what was saved."
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); copy the folder again."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} is damaged (TypeError: {type(found).__name__} instead of an object); copy the folder again."
        )
    return found


def check_adapter_folder(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ValueError where an adapter folder holds what `save_adapter` never writes.

    Args:
        directory: the folder; its listed files have been checked against their sums.
        manifest: as it was read. Its own sum proves that it is whole, not who wrote it.
    """
    file, base = directory / "peftcls.json", manifest["base"]
    wrong = [
        f"base {name}={base.get(name)!r}"
        for name, kinds in BASE_TYPES.items()
        if not isinstance(base.get(name), kinds) or (name not in base and name != "random_seed")
    ]
    wrong += (
        [f"base heads={base['heads']!r}"]
        if not wrong and not all(isinstance(head, str) for head in base["heads"])
        else []
    )
    wrong += (
        []
        if isinstance(manifest["task"].get("name"), str)
        else [f"task {manifest['task'].get('name')!r}"]
    )
    lineage, versions = manifest.get("lineage", []), manifest.get("versions", {})
    wrong += [] if _is_lineage(lineage) else [f"lineage {lineage!r}"]
    wrong += (
        []
        if isinstance(versions, dict)
        and all(isinstance(version, str) for version in versions.values())
        else ["versions"]
    )
    wrong += (
        [] if isinstance(manifest.get("method"), str | None) else [f"method {manifest['method']!r}"]
    )
    if wrong:
        raise ValueError(
            f"{file} is damaged ({wrong[0][:200]} is of another kind); copy the folder again."
        )
    check_links(directory)
    listed = set(manifest["files"])
    if extra := sorted(name for name in READ_FILES - listed if (directory / name).exists()):
        raise ValueError(
            f"{directory} holds {extra[0]}, which its peftcls.json does not list; it was put there later, take it out."
        )
    weights = {ADAPTER_WEIGHTS, PART_WEIGHTS} & listed
    if len(weights) != 1:
        other = [name for name in sorted(listed) if name.endswith(PICKLED)]
        found = (
            f"only {other[0]}, which can run code when it is read, so it is not"
            if other
            else sorted(weights) or "none"
        )
        raise ValueError(
            f"{directory} has no one file of weights, expected {ADAPTER_WEIGHTS} or {PART_WEIGHTS}, found {found}."
        )
    if missing := sorted(
        {
            "tokenizer.json",
            TOKENIZER_CONFIG,
            *([ADAPTER_CONFIG] if ADAPTER_WEIGHTS in weights else []),
        }
        - listed
    ):
        raise ValueError(
            f"{directory} has no {missing[0]} in its peftcls.json; copy the folder again."
        )
    check_tokenizer_config(directory)
    if ADAPTER_WEIGHTS in weights:
        _check_adapter_config(
            directory / ADAPTER_CONFIG, base["heads"], _widest(directory / ADAPTER_WEIGHTS)
        )


def _is_lineage(found: Any) -> bool:
    """Whether it names the folders that an adapter was learnt on from, as `load_adapter` does."""
    return isinstance(found, list) and all(
        isinstance(old, dict)
        and isinstance(old.get("folder"), str)
        and isinstance(old.get("sum"), str)
        for old in found
    )


def _check_adapter_config(file: Path, heads: Iterable[str], widest: int) -> None:
    """Whether PEFT's settings are of the few kinds that `attach_lora` makes; all others must be what PEFT has by default."""
    settings = read_object(file)
    if (method := settings.get("peft_type")) not in METHODS:
        raise ValueError(f"{file} has the peft_type {method!r}, expected one of {list(METHODS)}.")
    kind: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    usual = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(kind)
    }
    for name, value in settings.items():
        if name in FREE_TEXTS:
            fits = isinstance(value, str | None)
        elif name in SWITCHES:
            fits = isinstance(value, bool)
        elif name in NUMBERS:
            fits = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
                and value >= 0
            )
        elif name == "target_modules":  # as a text it would be a pattern, which can take forever
            fits = isinstance(value, list) and all(isinstance(target, str) for target in value)
        elif name == "modules_to_save":
            fits = value is None or (
                isinstance(value, list) and set(map(str, value)) <= HEADS.union(heads)
            )
        elif name == "init_lora_weights":
            fits = value in (True, "pissa")
        else:
            fits = (
                value == usual[name] or (name in EMPTY and value == [])
                if name in usual
                else not value
            )
        if not fits:
            raise ValueError(
                f"{file} has {name}={json.dumps(value)[:200]}, which is no setting of an adapter that peftcls wrote."
            )
    if large := [
        f"{name}={settings[name]}"
        for name in RANKS
        if name in settings and not 1 <= settings[name] <= widest
    ]:
        raise ValueError(
            f"{file} has {large[0]}, expected a rank of at least 1 and at most {widest}, the widest of its tensors."
        )


def _widest(file: Path) -> int:
    """The largest side of all tensors of a file, from its header alone."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            names = opened.keys()
            shapes = [opened.get_slice(name).get_shape() for name in names]
        return max((side for shape in shapes for side in shape), default=0)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); copy the folder again."
        ) from None


def check_finite(source: str | Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ValueError for a tensor of fractions that holds nan or infinity: every answer would be nan."""
    for name, tensor in tensors:
        packed = (
            tensor.is_meta or getattr(tensor, "quant_state", None) is not None
        )  # 4-bit numbers, packed into what look like fractions
        if not packed and tensor.is_floating_point() and not all_finite(tensor):
            raise ValueError(
                f"{source}: the tensor {name} holds values that are not finite; copy the weights again."
            )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is nan or infinite, without a copy, and fifty times as fast as to ask each of them."""
    if tensor.numel() == 0:
        return True
    least, most = torch.aminmax(tensor)  # where one is nan, both are
    return bool(torch.isfinite(least) & torch.isfinite(most))

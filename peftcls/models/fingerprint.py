"""A short name for the weights of a base model, so that an adapter is never put on another one."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download

SAMPLE_BYTES = 1024
LONGEST_HEADER_BYTES = 100 * 1024 * 1024


def fingerprint_base(source: str, revision: str | None = None) -> str:
    """SHA-256 over name, shape and samples (start, middle, end) of every tensor of a folder or a cached hub model.

    The same for any sharding, and read in a moment for a model of any size: 3 KiB a tensor.

    Raises:
        ValueError: a weight file is damaged.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(
            snapshot_download(
                source, revision=revision, allow_patterns=["*.safetensors"], local_files_only=True
            )
        )
    lines = sorted(
        line for file in sorted(folder.glob("*.safetensors")) for line in _tensor_lines(file)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and values of tensors in memory, for weights that were drawn and not read."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


def _tensor_lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > LONGEST_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(opened.read(size))
            data_bytes = file.stat().st_size - 8 - size
            return [
                _tensor_line(opened, 8 + size, data_bytes, name, entry)
                for name, entry in header.items()
                if name != "__metadata__"
            ]
    except (
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OSError,
    ) as error:
        raise ValueError(
            f"{file.name} in {file.parent} is not a whole safetensors file ({error}); fetch it again."
        ) from None


def _tensor_line(
    opened: BinaryIO, start: int, data_bytes: int, name: str, entry: Mapping[str, Any]
) -> str:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data_bytes:
        raise ValueError(f"the tensor {name} lies outside it")
    sample = hashlib.sha256()
    for place in (begin, (begin + end) // 2, max(begin, end - SAMPLE_BYTES)):
        opened.seek(start + place)
        sample.update(opened.read(min(SAMPLE_BYTES, end - place)))
    return f"{name} {entry['dtype']} {entry['shape']} {sample.hexdigest()}"

"""The fingerprint of a base model's weights, so that an adapter is never put on another base."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download

SAMPLE_BYTES = 1024
MAX_HEADER_BYTES = 100 * 1024 * 1024
LENGTH_BYTES = 8
"""A safetensors file starts with the length of its header, as a 64-bit number."""
MALFORMED = (
    struct.error,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    OSError,
)
"""What reading a malformed safetensors file raises."""


def fingerprint_base(source: str, revision: str | None = None) -> str:
    """SHA-256 over name, shape and three samples of every tensor of a folder or a cached hub model.

    The samples are taken at the start, the middle and the end, 3 KiB a tensor, so that a model of
    any size is read in a moment. The fingerprint does not depend on the sharding.

    Raises:
        ValueError: a weight file is damaged.
    """
    folder = Path(source)
    if not folder.is_dir():
        snapshot = snapshot_download(
            source, revision=revision, allow_patterns=["*.safetensors"], local_files_only=True
        )
        folder = Path(snapshot)
    lines: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        lines += _tensor_lines(file)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and values of tensors in memory, for weights that were drawn at random."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def _tensor_lines(file: Path) -> list[str]:
    """A line for each tensor of a safetensors file: name, dtype, shape, digest of its samples."""
    try:
        with file.open("rb") as opened:
            return _read_tensor_lines(opened, file.stat().st_size)
    except MALFORMED as error:
        raise ValueError(
            f"{file.name} in {file.parent} is not a whole safetensors file ({error}); "
            "fetch it again."
        ) from None


def _read_tensor_lines(opened: BinaryIO, file_bytes: int) -> list[str]:
    (header_bytes,) = struct.unpack("<Q", opened.read(LENGTH_BYTES))
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError("its header is too long")
    header = json.loads(opened.read(header_bytes))
    data_start = LENGTH_BYTES + header_bytes
    data_bytes = file_bytes - data_start
    lines = []
    for name, entry in header.items():
        if name != "__metadata__":
            lines.append(_tensor_line(opened, data_start, data_bytes, name, entry))
    return lines


def _tensor_line(
    opened: BinaryIO, data_start: int, data_bytes: int, name: str, entry: Mapping[str, Any]
) -> str:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data_bytes:
        raise ValueError(f"the tensor {name} lies outside it")
    digest = hashlib.sha256()
    for offset in (begin, (begin + end) // 2, max(begin, end - SAMPLE_BYTES)):
        opened.seek(data_start + offset)
        digest.update(opened.read(min(SAMPLE_BYTES, end - offset)))
    return f"{name} {entry['dtype']} {entry['shape']} {digest.hexdigest()}"

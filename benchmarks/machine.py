"""The machine of an experiment: its names and versions, and how fast it multiplies matrices."""

import os
import platform
import subprocess
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "datasets", "peftcls")
# The tokens of a micro-batch.
TOKENS = {"cpu": 1024, "cuda": 32768}
TRIES = 7
Shapes = Counter[tuple[int, int]]


def body_shapes(base: str) -> Shapes:
    """The shapes (out, in) of the matrices in a model's layers, and how often each occurs."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(base))
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    layers = max(lists, key=len)
    linears = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    return Counter(tuple(linear.weight.shape) for linear in linears)


def measure_peak(shapes: Shapes, dtype: torch.dtype) -> float:
    """FLOP/s of multiplying a micro-batch's tokens with all matrices; the best of several tries."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = TOKENS[device]
    flops = 0.0
    seconds = 0.0
    for (out_size, in_size), count in shapes.items():
        states = torch.randn(tokens, in_size, device=device, dtype=dtype)
        weight = torch.randn(out_size, in_size, device=device, dtype=dtype)
        flops += 2.0 * tokens * out_size * in_size * count
        seconds += _best_seconds(states, weight) * count
    return flops / seconds


@torch.inference_mode()
def _best_seconds(states: torch.Tensor, weight: torch.Tensor) -> float:
    best = float("inf")
    for turn in range(TRIES + 1):
        started = time.perf_counter()
        F.linear(states, weight)
        if states.is_cuda:
            torch.cuda.synchronize()
        # The first call builds its kernel.
        if turn:
            best = min(best, time.perf_counter() - started)
    return best


def describe(base: str) -> dict[str, Any]:
    """Processor, memory, versions, commit, and the peaks in float32 and bfloat16 for a base."""
    shapes = body_shapes(base)
    peaks = {
        "float32": measure_peak(shapes, torch.float32) / 1e9,
        "bfloat16": measure_peak(shapes, torch.bfloat16) / 1e9,
    }
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": _memory_bytes() / 2**30,
            "peak_gflops": peaks,
        },
        "body_parameters": sum(rows * columns * count for (rows, columns), count in shapes.items()),
    }


def _git(*arguments: str) -> str:
    ended = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return ended.stdout.strip()


def _versions() -> dict[str, str]:
    """The versions of the packages that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    """The name of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

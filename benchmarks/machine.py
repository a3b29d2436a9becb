"""The machine an experiment ran on: what it is called, what is installed, and how fast it multiplies a body's own matrices."""

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
TOKENS, TRIES = {"cpu": 1024, "cuda": 32768}, 7
Shapes = Counter[tuple[int, int]]


def body_shapes(base: str) -> Shapes:
    """The shapes (out, in) of the matrices in a body's layers, and how often each occurs."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(base))
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    return Counter(
        tuple(m.weight.shape) for m in layers.modules() if isinstance(m, torch.nn.Linear)
    )


def measure_peak(shapes: Shapes, dtype: torch.dtype) -> float:
    """FLOP/s of the products of a micro-batch's tokens with all matrices of a body, at the best of several tries each."""
    flops, seconds, device = 0.0, 0.0, "cuda" if torch.cuda.is_available() else "cpu"
    tokens = TOKENS[device]
    with torch.inference_mode():
        for (wide, narrow), count in shapes.items():
            states, weight = (
                torch.randn(*shape, device=device, dtype=dtype)
                for shape in ((tokens, narrow), (wide, narrow))
            )
            best = float("inf")
            for turn in range(TRIES + 1):
                started = time.perf_counter()
                F.linear(states, weight)
                if device == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first call builds its kernel
                    best = min(best, time.perf_counter() - started)
            flops, seconds = flops + 2.0 * tokens * wide * narrow * count, seconds + best * count
    return flops / seconds


def describe(base: str) -> dict[str, Any]:
    """Processor, memory, versions, commit, and the peaks in float32 and bfloat16 at the shapes of a base."""
    shapes = body_shapes(base)
    peaks = {
        str(dtype).removeprefix("torch."): measure_peak(shapes, dtype) / 1e9
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
        "hardware": {
            "processor": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else _processor(),
            "cores": os.cpu_count(),
            "memory_gib": _memory_bytes() / 2**30,
            "peak_gflops": peaks,
        },
        "body_parameters": sum(wide * narrow * count for (wide, narrow), count in shapes.items()),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

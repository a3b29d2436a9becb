"""How a run was made: base, trained tensors, settings, versions, time, memory, and the command that repeats it."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

COUNTERS = Path("/sys/class/powercap")
MOST_WATTS = 500  # of one processor: at more, its counter could have gone round unseen


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of how a model was trained, besides its answers; what is not known stays empty."""

    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Name, revision, fingerprint and kind of the base model; see `BaseFacts`."""
    method: str | None = None
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The adapter's own settings: rank, alpha, dropout."""
    parts: Sequence[Mapping[str, Any]] = ()
    """What is trained and what is frozen, in parameters and bytes; see `model_parts`."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The fields of `TrainConfig`."""
    history: Sequence[Mapping[str, float]] = ()
    """`Progress.history`: entries with a step and a loss, or a step and validation scores."""
    best_step: int | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By what took them."""
    peak_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The most memory that was in use, by where."""
    joules: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str | None = None
    processes: int = 1
    command: str | None = None


class Meter:
    """Reads clock, memory and the processors' energy counters; what it tells is counted from when it was made."""

    def __init__(self, counters: Path = COUNTERS) -> None:
        self.counters, self.started, self._energy = (
            counters,
            time.perf_counter(),
            _read_counters(counters),
        )

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self.started

    def peak_bytes(self) -> dict[str, int]:
        """The most memory that this process has held, of the machine and of each accelerator; empty where it is not told."""
        found = {}
        with contextlib.suppress(ImportError):  # there is none on Windows
            import resource

            found["memory of the process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
                1 if sys.platform == "darwin" else 1024
            )
        if torch.cuda.is_available():
            found |= {
                f"memory of GPU {i}": n
                for i in range(torch.cuda.device_count())
                if (n := torch.cuda.max_memory_allocated(i))
            }
        return found

    def joules(self) -> float | None:
        """What the machine's processors took, everything on them included; None where the counters cannot be read for sure.

        The Linux power capping interface: `energy_uj` counts microjoules up to `max_energy_range_uj` and begins again.
        """
        now, total = _read_counters(self.counters), 0
        for name, (before, span) in self._energy.items():
            if name not in now or self.seconds() * MOST_WATTS * 1e6 > span:
                return None
            total += (now[name][0] - before) % span
        return total / 1e6 if self._energy else None


def _read_counters(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for zone in sorted(folder.glob("intel-rapl:[0-9]")) + sorted(
        folder.glob("intel-rapl:[0-9][0-9]")
    ):
        with contextlib.suppress(OSError, ValueError):  # they are often the superuser's alone
            found[zone.name] = (
                int((zone / "energy_uj").read_text()),
                int((zone / "max_energy_range_uj").read_text()),
            )
    return found

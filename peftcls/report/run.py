"""How a run was made: base, trained tensors, settings, versions, time, memory and energy."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# The Linux power capping interface: `energy_uj` counts microjoules up to `max_energy_range_uj`, and
# starts again from zero.
COUNTERS = Path("/sys/class/powercap")
# Of one processor. At more than this its counter could have wrapped around without being noticed.
MAX_WATTS = 500


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of how a model was trained; fields that are not known stay empty."""

    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Name, revision, fingerprint and kind of the base model; see `BaseFacts`."""
    method: str | None = None
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The adapter's settings: rank, alpha, dropout."""
    parts: Sequence[Mapping[str, Any]] = ()
    """What is trained and what is frozen, in parameters and bytes; see `model_parts`."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The fields of `TrainConfig`."""
    unchanged: Sequence[str] = ()
    """The settings that have their default, which the page does not list."""
    history: Sequence[Mapping[str, float]] = ()
    """`Progress.history`: entries with a step and a loss, or a step and validation scores."""
    best_step: int | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Time by what it was spent on."""
    peak_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Peak memory by where it was used."""
    joules: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str | None = None
    processes: int = 1
    command: str | None = None


class Meter:
    """Measures time, memory and the processors' energy since it was made."""

    def __init__(self, counters: Path = COUNTERS) -> None:
        self.counters = counters
        self.started = time.perf_counter()
        self._energy = _read_counters(counters)

    def seconds(self) -> float:
        """The seconds since the meter was made."""
        return time.perf_counter() - self.started

    def peak_bytes(self) -> dict[str, int]:
        """Peak memory of this process, on the machine and on each GPU; empty where not known."""
        peaks = {}
        # Windows has no such module.
        with contextlib.suppress(ImportError):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            usage = resource.getrusage(resource.RUSAGE_SELF)
            peaks["memory of the process"] = usage.ru_maxrss * unit
        for gpu in range(_gpu_count()):
            peak = torch.cuda.max_memory_allocated(gpu)
            if peak:
                peaks[f"memory of GPU {gpu}"] = peak
        return peaks

    def joules(self) -> float | None:
        """The energy of the machine's processors, with everything that ran on them.

        Returns:
            None where the counters cannot be read reliably.
        """
        if not self._energy:
            return None
        now = _read_counters(self.counters)
        microjoules = 0
        for name, (before, span) in self._energy.items():
            may_have_wrapped = self.seconds() * MAX_WATTS * 1e6 > span
            if name not in now or may_have_wrapped:
                return None
            after, _ = now[name]
            microjoules += (after - before) % span
        return microjoules / 1e6


def _gpu_count() -> int:
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.device_count()


def _read_counters(folder: Path) -> dict[str, tuple[int, int]]:
    """Each processor's energy counter and the range of it, in microjoules."""
    zones = sorted(folder.glob("intel-rapl:[0-9]")) + sorted(folder.glob("intel-rapl:[0-9][0-9]"))
    counters = {}
    for zone in zones:
        # Often only the superuser can read them.
        with contextlib.suppress(OSError, ValueError):
            energy = int((zone / "energy_uj").read_text())
            span = int((zone / "max_energy_range_uj").read_text())
            counters[zone.name] = (energy, span)
    return counters

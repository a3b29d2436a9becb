"""How a run was made: base, trained tensors, settings, versions, time, memory, and the command that repeats it."""

import contextlib
import dataclasses
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from peftcls.models.adapter_methods import METHOD, method_settings
from peftcls.models.base_model import base_facts
from peftcls.training.run_info import model_parts
from peftcls.training.trainer import Trainer

LIBRARIES = ("peftcls", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn")
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
        self.counters, self.started, self._energy = counters, time.perf_counter(), _read_counters(counters)

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self.started

    def peak_bytes(self) -> dict[str, int]:
        """The most memory that this process has held, of the machine and of each accelerator; empty where it is not told."""
        found = {}
        with contextlib.suppress(ImportError):  # there is none on Windows
            import resource

            found["memory of the process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if torch.cuda.is_available():
            found |= {f"memory of GPU {i}": n for i in range(torch.cuda.device_count()) if (n := torch.cuda.max_memory_allocated(i))}
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
    for zone in sorted(folder.glob("intel-rapl:[0-9]")) + sorted(folder.glob("intel-rapl:[0-9][0-9]")):
        with contextlib.suppress(OSError, ValueError):  # they are often the superuser's alone
            found[zone.name] = (int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text()))
    return found


def describe_run(trainer: Trainer, meter: Meter | None = None, *, seconds: Mapping[str, float] | None = None) -> Run:
    """All that a trainer knows of its run.

    Args:
        trainer: after `fit`.
        meter: made when the program began.
        seconds: times that were taken by themselves, by what took them.
    """
    model, accelerator = trainer.model, trainer.accelerator
    device = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else platform.machine() + " processor"
    settings = {name: value for name, value in dataclasses.asdict(trainer.config).items() if name != "output_dir"}
    return Run(base=dataclasses.asdict(base_facts(model)), method=vars(model).get(METHOD),
               adapter={name: value for name, value in method_settings(model).items() if isinstance(value, str | int | float)},
               parts=model_parts(model), settings={**settings, "precision": str(accelerator.mixed_precision)},
               history=trainer.progress.history, best_step=trainer.progress.best_step,
               seconds={**({"the whole run": meter.seconds()} if meter else {}), **(seconds or {})},
               peak_bytes=meter.peak_bytes() if meter else {}, joules=meter.joules() if meter else None,
               versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
               device=device, processes=accelerator.num_processes,
               command=command_line(accelerator.num_processes, str(accelerator.mixed_precision), accelerator.device.type))


def command_line(processes: int, precision: str, device: str) -> str:
    """The command that starts this program again in as many processes and the same precision."""
    program = shlex.join(sys.argv)
    if device != "cpu" and (processes > 1 or precision != "no"):
        return f"accelerate launch --num_processes {processes} --mixed_precision {precision} {program}"
    launcher = f"torchrun --nproc-per-node {processes}" if processes > 1 else "python"
    return f"{'' if precision == 'no' else f'ACCELERATE_MIXED_PRECISION={precision} '}{launcher} {program}"

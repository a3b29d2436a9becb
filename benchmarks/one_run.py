"""What run.py starts: one process that does one job and prints what it found, as one line of JSON."""

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from experiment import Job


def do(job: Job) -> dict[str, Any]:
    """A job; only the library that it is about is imported, so that memory is its own."""
    torch.set_num_threads(job.experiment.threads)
    job.cache.mkdir(parents=True, exist_ok=True)
    if job.what == "machine":
        import machine
        import material

        return machine.describe(material.base_folder(job.experiment.base, job.cache))
    side: Any
    if job.system == "peftcls":
        import ours as side
    else:
        import contenders as side
    found: dict[str, Any] = {"adapter": side.make_adapter, "gate": side.gate, "run": side.run}[
        job.what
    ](job)
    return {**found, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process held, on a GPU if there is one; not what the one that started it held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = do(Job.from_json(sys.argv[1]))
    print(json.dumps(found))

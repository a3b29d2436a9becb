"""What run.py starts: one process that does one job and prints its result as a line of JSON."""

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from experiment import Job


def do(job: Job) -> dict[str, Any]:
    """Do a job; only the library that it is about is imported, so that it has its own memory."""
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
    actions = {"adapter": side.make_adapter, "gate": side.gate, "run": side.run}
    result: dict[str, Any] = actions[job.what](job)
    return {**result, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The peak memory of this process: of the GPU if there is one, without its parent's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return kib / 1024


if __name__ == "__main__":
    # Libraries may print; only the result goes to standard output.
    with contextlib.redirect_stdout(sys.stderr):
        result = do(Job.from_json(sys.argv[1]))
    print(json.dumps(result))

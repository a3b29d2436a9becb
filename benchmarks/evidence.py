"""Scores on real data over seeds, beside other systems on the same base: makes docs/evidence.md.

    python benchmarks/evidence.py --data DATA --work sms medical --bases minilm --seeds 0 1 2 3 4
    python benchmarks/evidence.py --page

DATA holds the folders sms_spam, medical_papers, imdb, mrpc, sts_b and squad, which are not part of
the project. Each run is a process of its own, and one at a time. A run that the results hold with
the same settings is not repeated, so that the command can be interrupted. `--page` writes the table
into docs/evidence.md. SetFit and TRL need `pip install setfit trl`. TRL is for instructions.

What is kept of a run is the score of each test row, never a text or an answer.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from evidence_data import WORK, described, read_splits
from evidence_page import write_page
from evidence_scores import row_scores
from real_data import commit, versions

RESULTS = Path(__file__).parent / "results" / "evidence.json"
RATES = (3e-4, 1e-3, 3e-3)
BASES = ("minilm", "smollm2")
# Which systems are run at several rates.
WITH_RATES = ("trainer", "trl")
SYSTEMS = ("peftcls", "baselines", "trainer", "trl", "setfit")
LIMIT_SECONDS = 7200


def main() -> None:
    """Run one system in this process, or all in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", nargs="*", choices=sorted(WORK), default=["sms", "medical"])
    parser.add_argument("--bases", nargs="*", choices=BASES, default=["minilm"])
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS[:3]))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", nargs="*", type=float, default=RATES, help="of contenders")
    parser.add_argument("--page", action="store_true", help="only write docs/evidence.md")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        run_one(options.data, options.one)
    elif options.page:
        write_page(kept_runs())
    elif options.data is None or not options.data.is_dir():
        sys.exit("--data: give the folder that holds the data sets.")
    else:
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    """Run what the results do not hold yet."""
    for name, base, seed, system in itertools.product(
        options.work, options.bases, options.seeds, options.systems
    ):
        rates = options.rates if system in WITH_RATES else [None]
        for rate in rates:
            job = {"work": name, "base": base, "system": system, "rate": rate, "seed": seed}
            runs = kept_runs()
            key = key_of(job)
            if runs.get(key, {}).get("settings") == described(WORK[name]):
                continue
            runs[key] = run_in_process(options.data, job)
            RESULTS.write_text(json.dumps(runs, sort_keys=True) + "\n")
            scores = {name: found["score"] for name, found in runs[key]["found"].items()}
            print(key, scores, f"{runs[key]['seconds']:.0f} s", flush=True)


def key_of(job: dict[str, Any]) -> str:
    """The name of a run; baselines are the same for all bases."""
    base = "any" if job["system"] == "baselines" else job["base"]
    rate = f" rate {job['rate']:g}" if job["rate"] else ""
    return f"{job['work']} {base} {job['system']}{rate} seed {job['seed']}"


def kept_runs() -> dict[str, Any]:
    """All runs that were finished, by their names."""
    if not RESULTS.is_file():
        return {}
    runs: dict[str, Any] = json.loads(RESULTS.read_text())
    return runs


def run_in_process(data: Path, job: dict[str, Any]) -> dict[str, Any]:
    """A run in a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": f"{scratch}/cache",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": scratch,
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, __file__, "--data", str(data), "--one", json.dumps(job)]
        ended = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
        )
    if ended.returncode:
        sys.exit(f"{job} failed:\n{ended.stderr}")
    run: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return run


def run_one(data: Path, job: dict[str, Any]) -> None:
    """Run a system in this process, and print its scores and costs."""
    from evidence_systems import SYSTEMS

    work = WORK[job["work"]]
    rows = read_splits(work, data, job["seed"])
    clocks = (time.perf_counter(), time.process_time())
    answers = SYSTEMS[job["system"]](work, job["base"], rows, job["seed"], job["rate"])
    run = {
        **job,
        "settings": described(work),
        "found": {name: row_scores(work, found, rows[2]) for name, found in answers.items()},
        "seconds": round(time.perf_counter() - clocks[0], 1),
        "cpu_seconds": round(time.process_time() - clocks[1], 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "commit": commit(),
        **versions("torch", "transformers", "peft"),
    }
    print(json.dumps(run))


if __name__ == "__main__":
    main()

"""`peftcls predict` on several processes, one of which is killed at random, again and again.

    python benchmarks/predict_kills.py --kills 40

A tiny adapter answers a table on two or three processes. A random one of them is killed at a random
moment, and the run goes on with `--resume`, on another number of processes, until the output is
there; then the next output begins. Every output is compared with that of one process: the same
rows in the same order, the same labels, probabilities to 1e-6. Results go to
benchmarks/results/predict_kills.json.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from real_data import commit, versions

RESULTS = Path(__file__).parent / "results" / "predict_kills.json"
PROCESSES = (2, 3)
ROWS = 6000
LIMIT_SECONDS = 300
TOLERANCE = 1e-6


def main() -> None:
    """Kill until there were as many kills as asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        adapter, rows = make_adapter(folder), make_rows(folder, draw)
        predict(1, adapter, rows, folder / "alone.csv").communicate(timeout=LIMIT_SECONDS)
        expected = read(folder / "alone.csv")
        found = {"kills": 0, "runs": 0, "outputs": 0, "wrong": 0, "killed_while_answering": 0}
        found |= {f"runs_on_{processes}": 0 for processes in PROCESSES}
        while found["kills"] < options.kills:
            out = folder / f"answers_{found['outputs']}.csv"
            while not out.exists():
                run_once(draw, adapter, rows, out, found)
            found["outputs"] += 1
            found["wrong"] += not same(read(out), expected)
            print(found, flush=True)
    about = {"seed": options.seed, "commit": commit(), **versions("torch", "transformers")}
    RESULTS.write_text(json.dumps({**found, **about}, indent=1) + "\n")


def run_once(
    draw: random.Random, adapter: Path, rows: Path, out: Path, found: dict[str, int]
) -> None:
    """Start a run, and kill one of its processes when a random number of chunks is there."""
    processes = draw.choice(PROCESSES)
    part = Path(f"{out}.part")
    running = predict(processes, adapter, rows, out)
    found["runs"] += 1
    found[f"runs_on_{processes}"] += 1
    before = chunks(part)
    wait_for = before + draw.randint(0, 4)
    until = time.monotonic() + LIMIT_SECONDS
    while running.poll() is None and time.monotonic() < until:
        workers = children(running.pid)
        if len(workers) == processes and chunks(part) >= wait_for and part.is_dir():
            time.sleep(draw.random() * 0.2)
            if running.poll() is None:
                subprocess.run(["kill", "-9", str(draw.choice(workers))], check=False)
                found["kills"] += 1
                found["killed_while_answering"] += chunks(part) > before
            break
        time.sleep(0.005)
    running.communicate(timeout=LIMIT_SECONDS)


def chunks(part: Path) -> int:
    """How many chunks of answers are there."""
    return len(list(part.glob("*.jsonl")))


def children(process: int) -> list[int]:
    """The processes that a launcher has started."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in listed.split()]


def predict(processes: int, adapter: Path, rows: Path, out: Path) -> "subprocess.Popen[str]":
    """Start the command on so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = ["predict", adapter, rows, "--out", out, "--probabilities", "--resume"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "peftcls", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def make_adapter(folder: Path) -> Path:
    """A head on the tiny base that ships with peftcls; it has learnt nothing."""
    import peftcls
    from peftcls.models.adapter_folder import save_adapter

    task = peftcls.Classification(labels=("no", "yes"), max_length=32)
    model, tokenizer = peftcls.load_base("demo", task)
    save_adapter(folder / "adapter", peftcls.train_only(model, task, "head"), task, tokenizer)
    return folder / "adapter"


def make_rows(folder: Path, draw: random.Random) -> Path:
    """A table of random words."""
    words = ["patient", "prize", "stock", "drug", "lunch", "bank", "galaxy", "winner"]
    file = folder / "rows.csv"
    with file.open("w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["number", "text"])
        for number in range(ROWS):
            text = " ".join(draw.choices(words, k=draw.randint(2, 20)))
            table.writerow([number, f"{text} {number}"])
    return file


def read(out: Path) -> list[dict[str, Any]]:
    """The rows of an output."""
    with out.open(newline="") as opened:
        return list(csv.DictReader(opened))


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether two outputs have the same rows, labels and probabilities."""
    if len(found) != len(expected):
        return False
    for one, other in zip(found, expected, strict=True):
        if any(one[name] != other[name] for name in ("number", "text", "label")):
            return False
        for name in ("probability_no", "probability_yes"):
            if abs(float(one[name]) - float(other[name])) > TOLERANCE:
                return False
    return True


if __name__ == "__main__":
    main()

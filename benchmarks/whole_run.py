"""From Enter to the saved folder: where the time of one `peftcls train` goes.

    python benchmarks/whole_run.py --data DATA --runs 4
    python benchmarks/whole_run.py --data DATA --runs 4 --busy 1
    OMP_WAIT_POLICY=ACTIVE python benchmarks/whole_run.py --data DATA --runs 4 --busy 1

DATA holds the folder sms_spam, which is not part of the project. Each run is a process of its own
that trains on the first 1000 messages with the command's defaults. `--busy N` computes beside N
other programs, which multiply numbers in one thread each. Threads without work sleep, as the
command has them do, unless OMP_WAIT_POLICY says otherwise. The result goes to
benchmarks/results/whole_run.json, under the number of busy programs and how threads wait.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "whole_run.json"
ROWS = 1000
BUSY = "x = 1.0\nwhile True: x = x * 1.0000001 % 7.0"
# What is timed, by part: a function's time counts without that of the others inside it.
PARTS = {
    "rows are read, checked and split": [
        ("peftcls.cli.training", "_read_rows"),
        ("peftcls.cli.training", "examine"),
    ],
    "the base is loaded, rows become tokens": [
        ("peftcls.cli.training", "load_and_prepare"),
        ("peftcls.cli.training", "build_model"),
    ],
    "a linear probe for the head": [("peftcls.training.trainer", "Trainer._fit_head")],
    "steps": [("peftcls.training.trainer", "Trainer._step")],
    "evaluations on validation rows": [("peftcls.training.trainer", "Trainer._judge")],
    "the folder is written and loaded again": [("peftcls.training.trainer", "Trainer._finish")],
    "scores, baselines and report": [("peftcls.cli.training", "finish")],
}
IMPORTS = "Python and its libraries start"
REST = "everything else"


class Clock:
    """Seconds by part; a part inside another one is taken from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.open_parts: list[str] = []
        self.since = time.perf_counter()

    def change(self) -> None:
        """Count the time since the last change for the innermost open part."""
        now = time.perf_counter()
        part = self.open_parts[-1] if self.open_parts else REST
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count what is done inside for a part."""
        self.change()
        self.open_parts.append(part)
        try:
            yield
        finally:
            self.change()
            self.open_parts.pop()

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.timing(part):
                return function(*arguments, **named)

        return timed


def run_one(arguments: list[str], started: float) -> None:
    """Run the command in this process, and print the seconds of its parts as JSON."""
    for places in PARTS.values():
        for module, _ in places:
            importlib.import_module(module)
    from peftcls.cli import main

    clock = Clock()
    for part, places in PARTS.items():
        for module, name in places:
            *owner, last = name.split(".")
            holder = functools.reduce(getattr, owner, sys.modules[module])
            setattr(holder, last, clock.wrap(part, getattr(holder, last)))
    imports = time.time() - started
    with contextlib.redirect_stdout(sys.stderr):
        code = main(arguments)
    clock.change()
    if code:
        sys.exit(code)
    print(json.dumps({IMPORTS: imports, **clock.seconds}))


def run_in_process(file: Path, out: Path) -> dict[str, float]:
    """One run: the seconds of all parts, and from start to end."""
    started = time.time()
    command = ["train", str(file), "--text", "Text", "--label", "Label"]
    command += ["--model", "minilm", "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(command), "--started", str(started)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        sys.exit(ended.stderr)
    parts: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    total = time.time() - started
    # The end of the interpreter.
    parts[REST] += total - sum(parts.values())
    return {**parts, "in all": total}


def table(runs: list[dict[str, float]]) -> str:
    """The medians of all parts in seconds with their range, and the whole beside the steps."""
    lines = ["| part | seconds |", "|---|---|"]
    for part in runs[0]:
        seconds = sorted(run[part] for run in runs)
        median = statistics.median(seconds)
        lines.append(f"| {part} | {median:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f}) |")
    ratios = [run["in all"] / run["steps"] for run in runs]
    lines.append(f"| in all, steps = 1 | {statistics.median(ratios):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command several times, or once in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.started)
        return
    if options.data is None or not (options.data / "sms_spam").is_dir():
        sys.exit("--data: give the folder that holds sms_spam.")
    lines = (options.data / "sms_spam" / "train.csv").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "messages.csv"
        file.write_text("\n".join(lines[: ROWS + 1]) + "\n", encoding="utf-8")
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.busy)]
        try:
            runs = [run_in_process(file, Path(folder) / f"{n}") for n in range(options.runs)]
        finally:
            for program in busy:
                program.kill()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    waiting = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    results[f"{options.busy} busy programs, OMP_WAIT_POLICY={waiting}"] = {
        "cores": os.cpu_count(),
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()

"""Whether a change has made peftcls slower: five small experiments beside the recorded ratios.

    python benchmarks/guard.py --data DATA             compare; the exit code is 1 where one fell
    python benchmarks/guard.py --data DATA --record    record the ratios of this machine

Takes about five minutes on two quiet cores. A ratio compares peftcls with the Trainer, or with
itself without a fast path, in one run. Ratios depend on the processor, so they are recorded for
each kind of processor in results/guard.json; record before the change, and compare after it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiment import Experiment
from run import describe_machine, measure

RECORDED = Path(__file__).parent / "results" / "guard.json"
LARGEST_FALL = 0.15
# What differs from the defaults of an experiment. No gates: this is about speed alone.
SMALL: dict[str, dict[str, Any]] = {
    "training a head, short texts": {
        "rows": 320,
        "systems": ("trainer_best",),
    },
    "training a head, long texts": {
        "texts": "abstracts",
        "rows": 96,
        "systems": ("trainer_best",),
    },
    "answers of a head, long texts": {
        "texts": "abstracts",
        "rows": 160,
        "epochs": 0,
        "predict": True,
        "measure": "predict_rows_per_second",
        "systems": ("trainer_best",),
    },
    "frozen layers computed once": {
        "rows": 320,
        "epochs": 4,
        "trained": "top2",
        "systems": ("peftcls",),
        "without": (("frozen_cache",),),
        "measure": "rows_per_second_in_all",
    },
    "one instruction for all rows": {
        "kind": "instructions",
        "base": "two-layers",
        "instructions": 4,
        "rows": 128,
        "systems": ("peftcls",),
        "without": (("prefix",),),
    },
}


def main() -> None:
    """Measure, then compare with what is recorded, or record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "peftcls-bench")
    options = parser.parse_args()
    processor, found = measured(options.data, options.cache)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    if options.record:
        recorded[processor] = found
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
        print(f"recorded in {RECORDED} for {processor}")
        return
    if processor not in recorded:
        sys.exit(
            f"{RECORDED} has no ratios of this processor ({processor}); run with --record before "
            "the change."
        )
    lines, is_slower = compared(recorded[processor], found)
    print("\n".join(lines))
    sys.exit(1 if is_slower else 0)


def measured(data: Path, cache: Path) -> tuple[str, dict[str, float]]:
    """The name of the processor, and the ratio of each experiment."""
    experiments = {name: small_experiment(settings) for name, settings in SMALL.items()}
    first = next(iter(experiments.values()))
    machine = describe_machine(first, data, cache)
    found = {}
    for name, e in experiments.items():
        faster = measure(e, data, cache, machine)["faster"].get(e.measure)
        if not faster:
            sys.exit(f"{name}: the contender gave no result.")
        ((ratio, *_),) = faster.values()
        found[name] = round(ratio, 2)
    return processor_name(machine["hardware"]), found


def small_experiment(settings: dict[str, Any]) -> Experiment:
    """An experiment of two turns, without a gate."""
    return Experiment(**{"kind": "heads", "base": "minilm", "gate_rows": 0, **settings})


def processor_name(hardware: dict[str, Any]) -> str:
    """What ratios are recorded for: the processor, its cores, and whether bfloat16 is faster."""
    peaks = hardware["peak_gflops"]
    faster = "bfloat16" if peaks["bfloat16"] > peaks["float32"] else "float32"
    return f"{hardware['processor']}, {hardware['cores']} cores, {faster}"


def compared(recorded: dict[str, float], found: dict[str, float]) -> tuple[list[str], bool]:
    """A line for each experiment, and whether one ratio fell by more than is allowed."""
    lines = []
    is_slower = False
    for name, ratio in found.items():
        if name not in recorded:
            lines.append(f"{name}: {ratio:.2f}, nothing recorded")
            continue
        fell = ratio < (1 - LARGEST_FALL) * recorded[name]
        is_slower = is_slower or fell
        verdict = f"SLOWER by more than {LARGEST_FALL:.0%}" if fell else "as before"
        lines.append(f"{name}: {ratio:.2f}, recorded {recorded[name]:.2f}, {verdict}")
    return lines, is_slower


if __name__ == "__main__":
    main()

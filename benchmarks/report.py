"""The table and the figure of benchmarks/results/speed.json: by what factor peftcls is faster, with the spread of the runs.

    python benchmarks/speed_report.py

Written to results/speed.md and results/speed.png.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
NAMES = {"trainer": "Trainer + PEFT, defaults", "trainer_best": "Trainer + PEFT, bf16 and group_by_length", "pad_to_max": "padded to 256",
         "trl": "TRL, defaults", "trl_best": "TRL without gradient checkpointing", "trl_packing": "TRL, packing"}


def middle(runs: list[dict[str, Any]], measure: str) -> str:
    """The median of a measure, with its smallest and largest value where there are several."""
    values = [run[measure] for run in runs if run.get(measure)]
    if not values:
        return ""
    return f"{median(values):.4g}" + (f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else "")


def table(results: dict[str, Any]) -> str:
    """A row for each system of each experiment."""
    lines = ["| experiment | system | rows/s in training | peftcls is faster by | rows/s answered | peak MiB |", 6 * "|---" + "|"]
    for experiment, found in results.items():
        for system, runs in found["runs"].items():
            ratio = found["faster"]["rows_per_second"].get(system)
            by = f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})" if ratio else ""
            crash = next((run["crash"] for run in runs if "crash" in run), None)
            speed = crash or middle(runs, "rows_per_second")
            lines.append(f"| {experiment} | {NAMES.get(system, system)} | {speed} | {by} | {middle(runs, 'predict_rows_per_second')} | "
                         f"{middle(runs, 'peak_mib')} |")
            experiment = ""
    return "\n".join(lines) + "\n"


def figure(results: dict[str, Any], path: Path) -> None:
    """One bar for each contender, with a line for the spread of the ratio."""
    bars = [(f"{experiment}: {NAMES[system]}", ratio) for experiment, found in results.items()
            for system, ratio in found["faster"]["rows_per_second"].items() if system in NAMES]
    fig, axis = plt.subplots(figsize=(9, 0.38 * len(bars) + 1))
    for place, (name, (factor, low, high)) in enumerate(reversed(bars)):
        axis.barh(place, factor, color="#4477aa")
        axis.plot([low, high], [place, place], color="#222222", linewidth=1.5)
        axis.text(high + 0.05, place, f"{factor:.1f}", va="center", fontsize=8)
        axis.text(0.05, place, name, va="center", fontsize=7, color="white" if factor > 3 else "#222222")
    axis.axvline(1, color="#999999", linewidth=0.8)
    axis.set_yticks([])
    axis.set_xlabel("training rows a second of peftcls, as a multiple of the other's")
    fig.tight_layout()
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    kept = json.loads((RESULTS / "speed.json").read_text())
    first = next(iter(kept.values()))
    about = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    told = (f"{first['settings']['threads']} threads, {about}. Medians of the runs of one call of "
            "speed.py, smallest and largest in brackets.")
    (RESULTS / "speed.md").write_text(f"# Speed\n\n{told}\n\n{table(kept)}")
    figure(kept, RESULTS / "speed.png")

"""The tables of docs/evidence.md: means over seeds with t-intervals, and differences.

A difference has two intervals: over seeds (a t-interval of the paired differences), and over test
rows (a bootstrap of the rows; each row's difference is a mean over seeds). Other scores are means
over seeds, and the time is the processor time of a whole run, a mean too.
"""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
BEGIN = "<!-- begin: written by benchmarks/evidence.py -->"
END = "<!-- end: written by benchmarks/evidence.py -->"
OURS = "peftcls"
SAMPLES = 2000
FEWEST_SEEDS = 3
NAMES = {
    "accuracy": "accuracy",
    "f1_macro": "macro-F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "f1": "F1",
    "exact_match": "exact match",
    "f1_at_10": "F1@10",
    "f1_at_5": "F1@5",
    "recall_present": "recall, present",
    "recall_absent": "recall, absent",
}
Scores = dict[int, float]
Runs = dict[str, Any]


def write_page(runs: Runs) -> None:
    """Put the tables between their marks in docs/evidence.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n\n".join(_tables(runs))
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def _tables(runs: Runs) -> list[str]:
    """A table for every data set and base on which peftcls has run."""
    by_work: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs.values():
        by_work[run["work"], run["base"]].append(run)
    tables = []
    for (work, base), own in sorted(by_work.items()):
        shared = [
            run for run in runs.values() if run["work"] == work and run["system"] == "baselines"
        ]
        found = _by_system([*own, *shared])
        if OURS in found:
            score = json.loads(own[0]["settings"])["score"]
            tables.append(_table(f"{work}, {base}", score, found))
    return tables


def _by_system(runs: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """What each system scored, by its name with its learning rate, and by seed.

    A system without a score is left out: answers that are all the same have no correlation.
    """
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        for system, scores in run["found"].items():
            if math.isnan(scores["score"]):
                continue
            rate = f", rate {run['rate']:g}" if run["rate"] else ""
            # What is found beside a system, such as its probe, has no time of its own.
            own_time = {"cpu_seconds": run["cpu_seconds"]} if system == run["system"] else {}
            found[system + rate][run["seed"]] = {**scores, **own_time}
    return found


def _table(title: str, score: str, found: dict[str, dict[int, dict[str, Any]]]) -> str:
    ours = found[OURS]
    others = [name for name in NAMES if name in next(iter(ours.values()))]
    header = ["system", "seeds", NAMES[score], "95 % t-interval", "peftcls less it, over seeds"]
    header += ["over rows", *(NAMES[name] for name in others), "processor seconds"]
    lines = [f"### {title}", "", _line(header), _line(["---"] * len(header))]
    order = sorted(found, key=lambda name: -_mean(found[name]))
    for name in order:
        theirs = found[name]
        scores = [run["score"] for run in theirs.values()]
        line = [
            name,
            ", ".join(f"{theirs[seed]['score']:.1f}" for seed in sorted(theirs)),
            f"{statistics.mean(scores):.1f}",
            _interval(scores),
        ]
        seeds = sorted(set(ours) & set(theirs))
        if name == OURS or not seeds:
            line += ["", ""]
        else:
            differences = [ours[seed]["score"] - theirs[seed]["score"] for seed in seeds]
            mean = statistics.mean(differences)
            interval = _interval(differences)
            line.append(f"{mean:+.1f} ({interval})" if interval else f"{mean:+.1f}")
            line.append(_row_interval([ours[s] for s in seeds], [theirs[s] for s in seeds]))
        line += [_mean_of(theirs, other, 1) for other in others]
        line.append(_mean_of(theirs, "cpu_seconds", 0))
        lines.append(_line(line))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean_of(by_seed: dict[int, dict[str, Any]], name: str, digits: int) -> str:
    """The mean of a number over seeds as text; empty where runs lack it."""
    values = [run[name] for run in by_seed.values() if name in run]
    return f"{statistics.mean(values):.{digits}f}" if values else ""


def _mean(by_seed: dict[int, dict[str, Any]]) -> float:
    return statistics.mean(run["score"] for run in by_seed.values())


def _interval(values: list[float]) -> str:
    """A 95 % t-interval as text; empty for fewer than three values, or where all are equal."""
    if len(values) < FEWEST_SEEDS or len(set(values)) == 1:
        return ""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    mean = statistics.mean(values)
    return f"{mean - half:.1f} to {mean + half:.1f}"


def _row_interval(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """A 95 % bootstrap interval over test rows; empty where rows have no score of their own."""
    if "by_row" not in ours[0]:
        return ""
    differences = np.mean(
        [np.subtract(a["by_row"], b["by_row"]) for a, b in zip(ours, theirs, strict=True)], axis=0
    )
    random = np.random.default_rng(0)
    rows = random.integers(len(differences), size=(SAMPLES, len(differences)))
    low, high = np.percentile(differences[rows].mean(1), [2.5, 97.5])
    return f"{low:.1f} to {high:.1f}"

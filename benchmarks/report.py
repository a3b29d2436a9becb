"""The tables and figures of all results that there are of the experiments: by what factor peftcls is faster, and what it is made of.

    python benchmarks/report.py

Written to results/speed.md, speed.png (the factors), growth.png (cost by rows and by length) and losses.png (the curves of the losses).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from experiment import FOLDER

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "trainer": "Trainer + PEFT, defaults",
    "trainer_best": "Trainer + PEFT, group_by_length",
    "pad_to_max": "Trainer + PEFT, padded to the maximum",
    "trl": "TRL, defaults",
    "trl_float32": "TRL, float32",
    "trl_best": "TRL, no checkpointing, group_by_length",
    "trl_packing": "TRL, no checkpointing, packing",
    "trl_liger": "TRL, no checkpointing, group_by_length, Liger",
    "generate": "generate",
    "generate_best": "generate, sorted by length",
}
OURS, OTHERS = "#4477aa", ("#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#888888")
ABOUT = (
    "`benchmarks/run.py` makes the result of an experiment, `benchmarks/report.py` this page. Medians of the runs, smallest and "
    "largest in brackets; ratios of medians, with the smallest and largest ratio of any two runs."
)
ABOUT_TRAINING = (
    "Rows in all are those of the whole training: rows into tokens, all steps, and the folder written. Real tokens are "
    "those of the rows, once a row, for everyone: padding does not count, and an instruction that peftcls reads once a step "
    "counts in every row. The share of the peak is 4 x the body's parameters x real tokens a second (2 operations forward, "
    "2 back through the activations) over the larger of the machine's matrix peaks."
)
ABOUT_PARITY = "The first step from the same weights on the same rows, dropout off: loss, and gradient of all that is trained."
Results = dict[str, dict[str, Any]]


def read_results(folder: Path, names: list[str]) -> Results:
    """The results that there are, by name, in the order of the experiments."""
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in names
        if (folder / f"{name}.json").is_file()
    }


def spread(runs: list[dict[str, Any]], measure: str, digits: int = 3) -> str:
    """The median of a measure, with its smallest and largest value where there are several."""
    values = [run[measure] for run in runs if run.get(measure)]
    if not values:
        return ""
    shown = [
        f"{value:.{digits}g}" if value < 1000 else f"{value:.0f}"
        for value in (median(values), min(values), max(values))
    ]
    return shown[0] + (f" ({shown[1]} to {shown[2]})" if len(values) > 1 else "")


def factor(result: dict[str, Any], measure: str, system: str) -> str:
    """By what peftcls is faster than a system, with the smallest and largest ratio of any two runs."""
    ratio = result["faster"].get(measure, {}).get(system)
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})" if ratio else ""


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"
    )


def by_system(
    results: Results,
    wanted: Callable[[dict[str, Any]], bool],
    cells: Callable[[dict[str, Any], str, list[dict[str, Any]]], list[str]],
) -> list[list[str]]:
    """A line for each system of each experiment that is wanted; a crash stands where the measures would."""
    lines = []
    for experiment, result in results.items():
        if result["settings"]["points"] or not wanted(result["settings"]):
            continue
        for system, runs in result["runs"].items():
            crash = next((run["crash"] for run in runs if "crash" in run), None)
            dtypes = sorted({run["dtype"] for run in runs if "dtype" in run})
            name = NAMES.get(system, system) + "".join(f" ({dtype})" for dtype in dtypes)
            lines.append(
                [
                    experiment,
                    name,
                    *([crash.replace("|", "/")] if crash else cells(result, system, runs)),
                ]
            )
            experiment = ""
    width = max(map(len, lines), default=0)
    return [line + [""] * (width - len(line)) for line in lines]


def training(results: Results) -> str:
    """Rates, steps, memory and share of the machine's peak of every training."""

    def cells(result: dict[str, Any], system: str, runs: list[dict[str, Any]]) -> list[str]:
        share = [
            f"{100 * value:.0f} %"
            for value in [median(run.get("useful_share", 0.0) for run in runs)]
            if value
        ]
        steps = f"{spread(runs, 'median_step_seconds').partition(' ')[0]} / {spread(runs, 'p90_step_seconds').partition(' ')[0]}"
        rates = [
            cell
            for measure in ("rows_per_second", "rows_per_second_in_all")
            for cell in (spread(runs, measure), factor(result, measure, system))
        ]
        return [
            *rates,
            spread(runs, "tokens_per_second").partition(" ")[0],
            "".join(share),
            steps,
            spread(runs, "wall_seconds").partition(" ")[0],
            spread(runs, "peak_mib", 4),
        ]

    return table(
        [
            "experiment",
            "system",
            "rows/s in steady steps",
            "peftcls is faster by",
            "rows/s in all",
            "peftcls is faster by",
            "real tokens/s",
            "share of peak",
            "step, median / p90 (s)",
            "process (s)",
            "peak MiB",
        ],
        by_system(results, lambda e: e["epochs"] > 0, cells),
    )


def answering(results: Results) -> str:
    """Rates of answers."""
    return table(
        [
            "experiment",
            "system",
            "rows/s answered",
            "peftcls is faster by",
            "answers alike",
            "peak MiB",
        ],
        by_system(
            results,
            lambda e: e["predict"],
            lambda result, system, runs: [
                spread(runs, "predict_rows_per_second"),
                factor(result, "predict_rows_per_second", system),
                f"{100 * result['agreement'][system]:.1f} %"
                if system in result["agreement"]
                else "",
                spread(runs, "peak_mib", 4),
            ],
        ),
    )


def targets(results: Results) -> str:
    """Seconds until the validation rows are answered well enough."""
    return table(
        ["experiment", "system", "seconds to the target", "target accuracy"],
        by_system(
            results,
            lambda e: e["target"] is not None,
            lambda result, _, runs: [
                spread(runs, "target_seconds") or "not reached",
                f"{result['settings']['target']:.3g}",
            ],
        ),
    )


def scores(results: Results) -> str:
    """Final scores over the seeds, and whether they are level."""
    lines = [
        [
            name,
            found["score"],
            *(
                " ".join(f"{100 * value:.1f}" for value in found[side])
                for side in ("peftcls", contender)
            ),
            f"{100 * found['difference']:+.2f}",
            f"{100 * found['spread']:.2f}",
            "yes" if found["passed"] else "NO",
        ]
        for name, result in results.items()
        for found in result.get("scores", [])
        for contender in result["runs"]
        if contender in found and contender != "peftcls"
    ]
    return table(
        [
            "experiment",
            "score",
            "peftcls, by seed",
            "contender, by seed",
            "difference of means",
            "spread over seeds",
            "level",
        ],
        lines,
    )


def parity(results: Results) -> str:
    """The first step of both sides."""
    lines = [
        [
            name,
            gate["contender"],
            gate["dtype"],
            *(
                [gate["crash"], "", "", ""]
                if "crash" in gate
                else [
                    f"{gate['loss']:.6f}",
                    f"{gate['loss_apart']:.1e}",
                    f"{gate['gradient_cosine']:.7f}",
                    "yes" if gate["passed"] else "NO",
                ]
            ),
        ]
        for name, result in results.items()
        for gate in result["gates"]
    ]
    return table(
        ["experiment", "beside", "dtype", "loss", "apart", "cosine of the gradients", "passed"],
        lines,
    )


def growth(results: Results) -> str:
    """What a row costs as rows grow in number and in length."""
    lines = [
        [
            name,
            curve["over"],
            f"{size}",
            f"{1000 * (cost / size if curve['over'] == 'rows' else cost):.3g}",
            f"{curve['slope']:.2f}",
        ]
        for name, result in results.items()
        if (curve := result.get("curve"))
        for size, cost in curve["points"]
    ]
    return table(
        ["experiment", "over", "size", "ms a row", "slope of log cost over log size"], lines
    )


def machines(results: Results) -> str:
    """What the experiments ran on, in a line for each machine, commit and set of versions."""
    found: dict[str, list[str]] = {}
    for name, r in results.items():
        hardware, versions = (
            r["hardware"],
            ", ".join(f"{package} {number}" for package, number in r["versions"].items()),
        )
        commit = f"commit {r['commit']}{' with changes' if r['changed_files'] else ''}"
        machine = (
            f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']:.0f} GiB"
        )
        found.setdefault(
            f"{machine}, {r['settings']['threads']} threads; {commit}; {versions}", []
        ).append(name)
    peaks = [
        [
            name,
            str(r["settings"]["base"]),
            f"{r['body_parameters'] / 1e6:.1f}",
            *(f"{r['hardware']['peak_gflops'][dtype]:.0f}" for dtype in ("float32", "bfloat16")),
        ]
        for name, r in results.items()
    ]
    told = "\n".join(f"- {machine}: {', '.join(names)}." for machine, names in found.items())
    return f"{told}\n\n" + table(
        [
            "experiment",
            "base",
            "body parameters (M)",
            "float32 peak (GFLOP/s)",
            "bfloat16 peak (GFLOP/s)",
        ],
        peaks,
    )


def draw_factors(results: Results, path: Path) -> None:
    """One bar for each contender, with a line for the spread of the ratio."""
    bars = [
        (f"{experiment}: {NAMES.get(system, system)}", ratio)
        for experiment, found in results.items()
        for system, ratio in found["faster"].get(found["settings"]["measure"], {}).items()
    ]
    if not bars:
        return
    fig, axis = plt.subplots(figsize=(9, 0.38 * len(bars) + 1))
    for place, (_, (ratio, low, high)) in enumerate(reversed(bars)):
        axis.barh(place, ratio, color=OURS)
        axis.plot([low, high], [place, place], color="#222222", linewidth=1.5)
        axis.text(high + 0.05, place, f"{ratio:.1f}", va="center", fontsize=8)
    axis.axvline(1, color="#999999", linewidth=0.8)
    axis.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)], fontsize=7)
    axis.set_xlabel("rows a second of peftcls, as a multiple of the other's")
    _save(fig, path)


def draw_growth(results: Results, path: Path) -> None:
    """Cost over size, on two logarithmic axes, beside a line of slope 1."""
    curves = {name: result["curve"] for name, result in results.items() if "curve" in result}
    if not curves:
        return
    fig, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4), squeeze=False)
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        sizes, costs = zip(*curve["points"], strict=True)
        axis.loglog(sizes, costs, "o-", color=OURS, label=f"peftcls, slope {curve['slope']:.2f}")
        axis.loglog(
            sizes,
            [costs[-1] * size / sizes[-1] for size in sizes],
            "--",
            color="#999999",
            label="slope 1",
        )
        axis.set_xlabel("rows" if curve["over"] == "rows" else "tokens of a row")
        axis.set_ylabel("seconds in all" if curve["over"] == "rows" else "seconds a row")
        axis.set_title(name, fontsize=9)
        axis.legend(fontsize=8)
    _save(fig, path)


def draw_losses(results: Results, path: Path) -> None:
    """The first run's loss of every system, step by step."""
    own = {
        name: {
            system: runs[0]["losses"]
            for system, runs in result["runs"].items()
            if runs[0].get("losses")
        }
        for name, result in results.items()
        if not result["settings"]["points"]
    }
    if not (curves := {name: systems for name, systems in own.items() if len(systems) > 1}):
        return
    lines = -(-len(curves) // 3)
    fig, axes = plt.subplots(lines, 3, figsize=(12, 2.8 * lines), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (name, systems) in zip(axes.flat, curves.items(), strict=False):
        for place, (system, losses) in enumerate(systems.items()):
            axis.plot(
                range(1, len(losses) + 1),
                losses,
                color=OURS if system == "peftcls" else OTHERS[(place - 1) % len(OTHERS)],
                linewidth=1.0,
                label=system,
            )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.legend(fontsize=6)
    _save(fig, path)


def _save(fig: Any, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write_report(results: Results, folder: Path) -> None:
    """All tables in speed.md, and the figures beside it."""
    sections = {
        "Training": f"{ABOUT_TRAINING}\n\n{training(results)}",
        "Answers": answering(results),
        "Time to a score": targets(results),
        "Final scores": scores(results),
        "Growth": growth(results),
        "The same training": f"{ABOUT_PARITY}\n\n{parity(results)}",
        "Machine": machines(results),
    }
    told = "\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    (folder / "speed.md").write_text(f"# Speed\n\n{ABOUT}\n\n{told}", encoding="utf-8")
    draw_factors(results, folder / "speed.png")
    draw_growth(results, folder / "growth.png")
    draw_losses(results, folder / "losses.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", nargs="*", help="names of experiments; all in experiments/ unless given"
    )
    o = parser.parse_args()
    write_report(
        read_results(o.results, o.only or sorted(file.stem for file in FOLDER.glob("*.json"))),
        o.results,
    )

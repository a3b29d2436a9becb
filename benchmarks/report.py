"""The tables and figures of all results: how much faster peftcls is, and what makes it faster.

    python benchmarks/report.py

Written to results/speed.md, speed.png (the factors), growth.png (cost by rows and by length) and
losses.png (the curves of the losses).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from experiment import FOLDER, Runs

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
OUR_COLOUR = "#4477aa"
OTHER_COLOURS = ("#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#888888")
FIGURES_PER_LINE = 3
ABOUT = (
    "`benchmarks/run.py` makes the result of an experiment, `benchmarks/report.py` this page. "
    "Medians of the runs, smallest and largest in brackets; ratios of medians, with the smallest "
    "and largest ratio of any two runs."
)
ABOUT_TRAINING = (
    "Rows in all are those of the whole training: rows into tokens, all steps, and the folder "
    "written. Real tokens are those of the rows, once a row, for everyone: padding does not count, "
    "and an instruction that peftcls reads once a step counts in every row. The share of the peak "
    "is 4 x the body's parameters x real tokens a second (2 operations forward, 2 back through the "
    "activations) over the larger of the machine's matrix peaks."
)
ABOUT_PARITY = (
    "The first step from the same weights on the same rows, dropout off: loss, and gradient of all "
    "that is trained."
)
Result = dict[str, Any]
Results = dict[str, Result]
Cells = Callable[[Result, str, list[dict[str, Any]]], list[str]]


def read_results(folder: Path, names: list[str]) -> Results:
    """The results that exist, by name, in the order of the names."""
    results = {}
    for name in names:
        file = folder / f"{name}.json"
        if file.is_file():
            results[name] = json.loads(file.read_text(encoding="utf-8"))
    return results


# Cells


def spread(runs: list[dict[str, Any]], measure: str, digits: int = 3) -> str:
    """The median of a measure, with its smallest and largest value if there are several."""
    values = [run[measure] for run in runs if run.get(measure)]
    if not values:
        return ""
    middle = _number(median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values), digits)} to {_number(max(values), digits)})"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}g}" if value < 1000 else f"{value:.0f}"


def middle(runs: list[dict[str, Any]], measure: str) -> str:
    """The median of a measure."""
    return spread(runs, measure).partition(" ")[0]


def factor(result: Result, measure: str, system: str) -> str:
    """How many times faster peftcls is, with the smallest and largest ratio of any two runs."""
    ratio = result["faster"].get(measure, {}).get(system)
    if not ratio:
        return ""
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def passed(comparison: dict[str, Any]) -> str:
    """Whether a comparison was passed."""
    return "yes" if comparison["passed"] else "NO"


# Tables


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    all_lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in all_lines) + "\n"


def by_system(
    results: Results, is_included: Callable[[dict[str, Any]], bool], cells: Cells
) -> list[list[str]]:
    """A line for each system of each experiment.

    Args:
        results: of all experiments.
        is_included: says from the settings of an experiment whether it belongs in the table.
        cells: the measures of a system; the message stands in their place where it crashed.
    """
    lines = []
    for experiment, result in results.items():
        if result["settings"]["points"] or not is_included(result["settings"]):
            continue
        first_cell = experiment
        for system, runs in result["runs"].items():
            crashes = [run["crash"] for run in runs if "crash" in run]
            if crashes:
                system_cells = [crashes[0].replace("|", "/")]
            else:
                system_cells = cells(result, system, runs)
            lines.append([first_cell, _system_name(system, runs), *system_cells])
            first_cell = ""
    width = max(map(len, lines), default=0)
    return [line + [""] * (width - len(line)) for line in lines]


def _system_name(system: str, runs: list[dict[str, Any]]) -> str:
    """The name of a system with its dtypes."""
    dtypes = sorted({run["dtype"] for run in runs if "dtype" in run})
    return NAMES.get(system, system) + "".join(f" ({dtype})" for dtype in dtypes)


def training(results: Results) -> str:
    """Rates, steps, memory and share of the machine's peak of every training."""
    head = [
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
    ]
    return table(head, by_system(results, lambda e: e["epochs"] > 0, _training_cells))


def _training_cells(result: Result, system: str, runs: list[dict[str, Any]]) -> list[str]:
    share = median(run.get("useful_share", 0.0) for run in runs)
    return [
        spread(runs, "rows_per_second"),
        factor(result, "rows_per_second", system),
        spread(runs, "rows_per_second_in_all"),
        factor(result, "rows_per_second_in_all", system),
        middle(runs, "tokens_per_second"),
        f"{100 * share:.0f} %" if share else "",
        f"{middle(runs, 'median_step_seconds')} / {middle(runs, 'p90_step_seconds')}",
        middle(runs, "wall_seconds"),
        spread(runs, "peak_mib", 4),
    ]


def answering(results: Results) -> str:
    """Rates of answers."""
    head = [
        "experiment",
        "system",
        "rows/s answered",
        "peftcls is faster by",
        "answers alike",
        "peak MiB",
    ]
    return table(head, by_system(results, lambda e: e["predict"], _answering_cells))


def _answering_cells(result: Result, system: str, runs: list[dict[str, Any]]) -> list[str]:
    agreement = ""
    if system in result["agreement"]:
        agreement = f"{100 * result['agreement'][system]:.1f} %"
    return [
        spread(runs, "predict_rows_per_second"),
        factor(result, "predict_rows_per_second", system),
        agreement,
        spread(runs, "peak_mib", 4),
    ]


def targets(results: Results) -> str:
    """Seconds until the validation rows are answered well enough."""
    head = ["experiment", "system", "seconds to the target", "target accuracy"]
    return table(head, by_system(results, lambda e: e["target"] is not None, _target_cells))


def _target_cells(result: Result, _: str, runs: list[dict[str, Any]]) -> list[str]:
    seconds = spread(runs, "target_seconds") or "not reached"
    return [seconds, f"{result['settings']['target']:.3g}"]


def scores(results: Results) -> str:
    """Final scores over the seeds, and whether they are level."""
    lines = []
    for name, result in results.items():
        for parity in result.get("scores", []):
            contenders = [
                system for system in result["runs"] if system in parity and system != "peftcls"
            ]
            lines += [_score_line(name, parity, contender) for contender in contenders]
    head = [
        "experiment",
        "score",
        "peftcls, by seed",
        "contender, by seed",
        "difference of means",
        "spread over seeds",
        "level",
    ]
    return table(head, lines)


def _score_line(name: str, parity: dict[str, Any], contender: str) -> list[str]:
    return [
        name,
        parity["score"],
        " ".join(f"{100 * value:.1f}" for value in parity["peftcls"]),
        " ".join(f"{100 * value:.1f}" for value in parity[contender]),
        f"{100 * parity['difference']:+.2f}",
        f"{100 * parity['spread']:.2f}",
        passed(parity),
    ]


def parity(results: Results) -> str:
    """The first step of both sides."""
    lines = []
    for name, result in results.items():
        lines += [_gate_line(name, gate) for gate in result["gates"]]
    head = ["experiment", "beside", "dtype", "loss", "apart", "cosine of the gradients", "passed"]
    return table(head, lines)


def _gate_line(name: str, gate: dict[str, Any]) -> list[str]:
    first_cells = [name, gate["contender"], gate["dtype"]]
    if "crash" in gate:
        return [*first_cells, gate["crash"], "", "", ""]
    return [
        *first_cells,
        f"{gate['loss']:.6f}",
        f"{gate['loss_apart']:.1e}",
        f"{gate['gradient_cosine']:.7f}",
        passed(gate),
    ]


def growth(results: Results) -> str:
    """The cost of a row as rows grow in number and in length."""
    lines = []
    for name, result in results.items():
        curve = result.get("curve")
        if not curve:
            continue
        for size, cost in curve["points"]:
            row_seconds = cost / size if curve["over"] == "rows" else cost
            milliseconds = f"{1000 * row_seconds:.3g}"
            lines.append([name, curve["over"], f"{size}", milliseconds, f"{curve['slope']:.2f}"])
    head = ["experiment", "over", "size", "ms a row", "slope of log cost over log size"]
    return table(head, lines)


def machines(results: Results) -> str:
    """What the experiments ran on, in a line for each machine, commit and set of versions."""
    experiments: dict[str, list[str]] = {}
    peaks = []
    for name, result in results.items():
        experiments.setdefault(_machine_line(result), []).append(name)
        peak = result["hardware"]["peak_gflops"]
        peaks.append(
            [
                name,
                str(result["settings"]["base"]),
                f"{result['body_parameters'] / 1e6:.1f}",
                f"{peak['float32']:.0f}",
                f"{peak['bfloat16']:.0f}",
            ]
        )
    head = [
        "experiment",
        "base",
        "body parameters (M)",
        "float32 peak (GFLOP/s)",
        "bfloat16 peak (GFLOP/s)",
    ]
    lines = [f"- {machine}: {', '.join(names)}." for machine, names in experiments.items()]
    listed = "\n".join(lines)
    return f"{listed}\n\n{table(head, peaks)}"


def _machine_line(result: Result) -> str:
    hardware = result["hardware"]
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    changes = " with changes" if result["changed_files"] else ""
    return (
        f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']:.0f} GiB, "
        f"{result['settings']['threads']} threads; commit {result['commit']}{changes}; {versions}"
    )


# Figures


def draw_factors(results: Results, path: Path) -> None:
    """One bar for each contender, with a line for the spread of the ratio."""
    bars = []
    for experiment, result in results.items():
        factors = result["faster"].get(result["settings"]["measure"], {})
        for system, ratio in factors.items():
            bars.append((f"{experiment}: {NAMES.get(system, system)}", ratio))
    if not bars:
        return
    bars.reverse()
    fig, axis = plt.subplots(figsize=(9, 0.38 * len(bars) + 1))
    for position, (_, (ratio, low, high)) in enumerate(bars):
        axis.barh(position, ratio, color=OUR_COLOUR)
        axis.plot([low, high], [position, position], color="#222222", linewidth=1.5)
        axis.text(high + 0.05, position, f"{ratio:.1f}", va="center", fontsize=8)
    axis.axvline(1, color="#999999", linewidth=0.8)
    axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
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
        proportional = [costs[-1] * size / sizes[-1] for size in sizes]
        label = f"peftcls, slope {curve['slope']:.2f}"
        axis.loglog(sizes, costs, "o-", color=OUR_COLOUR, label=label)
        axis.loglog(sizes, proportional, "--", color="#999999", label="slope 1")
        over_rows = curve["over"] == "rows"
        axis.set_xlabel("rows" if over_rows else "tokens of a row")
        axis.set_ylabel("seconds in all" if over_rows else "seconds a row")
        axis.set_title(name, fontsize=9)
        axis.legend(fontsize=8)
    _save(fig, path)


def draw_losses(results: Results, path: Path) -> None:
    """The first run's loss of every system, step by step."""
    curves = {}
    for name, result in results.items():
        losses = _first_losses(result["runs"])
        if not result["settings"]["points"] and len(losses) > 1:
            curves[name] = losses
    if not curves:
        return
    lines = -(-len(curves) // FIGURES_PER_LINE)
    fig, axes = plt.subplots(
        lines, FIGURES_PER_LINE, figsize=(4 * FIGURES_PER_LINE, 2.8 * lines), squeeze=False
    )
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (name, systems) in zip(axes.flat, curves.items(), strict=False):
        for number, (system, losses) in enumerate(systems.items()):
            colour = OTHER_COLOURS[(number - 1) % len(OTHER_COLOURS)]
            if system == "peftcls":
                colour = OUR_COLOUR
            steps = range(1, len(losses) + 1)
            axis.plot(steps, losses, color=colour, linewidth=1.0, label=system)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.legend(fontsize=6)
    _save(fig, path)


def _first_losses(runs: Runs) -> dict[str, list[float]]:
    """The losses of each system's first run, where it has any."""
    losses = {}
    for system, system_runs in runs.items():
        if system_runs[0].get("losses"):
            losses[system] = system_runs[0]["losses"]
    return losses


def _save(fig: Any, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write_report(results: Results, folder: Path) -> None:
    """Write all tables to speed.md, and the figures beside it."""
    sections = {
        "Training": f"{ABOUT_TRAINING}\n\n{training(results)}",
        "Answers": answering(results),
        "Time to a score": targets(results),
        "Final scores": scores(results),
        "Growth": growth(results),
        "The same training": f"{ABOUT_PARITY}\n\n{parity(results)}",
        "Machine": machines(results),
    }
    text = "\n".join(f"## {name}\n\n{section}" for name, section in sections.items())
    (folder / "speed.md").write_text(f"# Speed\n\n{ABOUT}\n\n{text}", encoding="utf-8")
    draw_factors(results, folder / "speed.png")
    draw_growth(results, folder / "growth.png")
    draw_losses(results, folder / "losses.png")


def main() -> None:
    """Read the results and write the report beside them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", nargs="*", help="names of experiments; all in experiments/ unless given"
    )
    options = parser.parse_args()
    names = options.only or sorted(file.stem for file in FOLDER.glob("*.json"))
    write_report(read_results(options.results, names), options.results)


if __name__ == "__main__":
    main()

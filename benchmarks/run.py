"""How fast peftcls trains and answers beside other systems: an experiment file in, a result out.

    pip install '.[bench]'
    python benchmarks/run.py benchmarks/experiments/heads_minilm_sms.json --data DATA
    python benchmarks/report.py

DATA holds the folders sms_spam and medical_papers, which are not part of the project. Every run is
a process of its own. All systems begin with the same weights. Their order is reversed in every
second turn (A B B A), so that a machine that slows down does so for all. First, a step of peftcls
and of the contender on the same rows are compared, in float32 and bfloat16: the loss and the
gradient of all that is trained. A contender's crash is a result; a crash of peftcls ends the
experiment. The result goes to benchmarks/results, under the experiment's name. `--set rows=64`
replaces a setting for a trial.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from experiment import BFLOAT16_PATHS, Experiment, Job, Measure, Runs, ratios, score_parity
from safetensors.numpy import load_file

HERE = Path(__file__).parent
# Relative to a loss above 1.
MAX_LOSS_DIFFERENCE = {"float32": 1e-5, "bfloat16": 2e-2}
# In bfloat16 it is only reported.
MIN_GRADIENT_COSINE = {"float32": 0.9999, "bfloat16": 0.0}
# The system that takes the gate's step for these contenders; the others take it themselves.
GATE_SYSTEMS = {"pad": "trainer", "generate": "trl"}
# Operations for each parameter and token: 2 forward, 2 backward through the activations.
FLOPS_PER_PARAMETER = 4
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
PYTHON = [sys.executable, str(HERE / "one_run.py")]


def start(job: Job) -> dict[str, Any]:
    """Do a job in a process of its own.

    Returns:
        The result, or {"crash": ...} where a contender crashed.

    Raises:
        SystemExit: peftcls crashed.
    """
    started = time.perf_counter()
    limit = job.experiment.limit_seconds
    # The threads of torch, and of tokenizers.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(job.experiment.threads))
    problem = ""
    try:
        ended = subprocess.run(
            [*PYTHON, job.to_json()],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            env={**os.environ, **OFFLINE, **threads},
        )
        if ended.returncode > 0:
            problem = ended.stderr.strip()
        elif ended.returncode < 0:
            problem = f"ended by signal {-ended.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"no end within {limit} s"
    if problem and job.system == "peftcls":
        sys.exit(f"{problem}\npeftcls failed in a job ({job.what}) that it must be able to do.")
    if problem:
        return {"crash": problem.splitlines()[-1]}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {**found, "wall_seconds": time.perf_counter() - started}


def parity_gate(job: Job) -> dict[str, Any]:
    """Compare one step of peftcls and of a contender from the same weights on the same rows.

    Returns:
        The losses, the cosine of the angle between the gradients, and whether both are near enough.
    """
    dtype = "bfloat16" if job.bf16 else "float32"
    contender = job.experiment.contenders[0].partition("_")[0]
    contender = GATE_SYSTEMS.get(contender, contender)
    contender_job = dataclasses.replace(job, system=contender)
    ours = start(job)
    theirs = start(contender_job)
    gate = {"dtype": dtype, "contender": contender}
    if "crash" in theirs:
        return {**gate, "crash": theirs["crash"], "passed": False}
    our_gradient, their_gradient = _flat_gradients(job, contender_job)
    cosine = _cosine(our_gradient, their_gradient)
    difference = abs(ours["loss"] - theirs["loss"])
    max_difference = MAX_LOSS_DIFFERENCE[dtype] * max(1.0, abs(theirs["loss"]))
    return {
        **gate,
        "loss": ours["loss"],
        "contender_loss": theirs["loss"],
        "loss_apart": difference,
        "gradient_cosine": cosine,
        "values": len(our_gradient),
        "passed": difference <= max_difference and cosine >= MIN_GRADIENT_COSINE[dtype],
    }


def _flat_gradients(ours: Job, theirs: Job) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of both systems as vectors with the same order of tensors."""
    our_tensors = load_file(ours.gradient)
    their_tensors = load_file(theirs.gradient)
    different = sorted(set(our_tensors) ^ set(their_tensors))
    if different:
        sys.exit(f"{different[0]} has a gradient in only one system.")
    names = sorted(our_tensors)
    our_vector = np.concatenate([our_tensors[name].ravel() for name in names])
    their_vector = np.concatenate([their_tensors[name].ravel() for name in names])
    return our_vector.astype(np.float64), their_vector.astype(np.float64)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def slope(points: list[tuple[float, float]]) -> float:
    """The slope of a line through the logarithms: 1 where the cost grows as the size does."""
    sizes, costs = np.log(np.array(points)).T
    return float(np.polyfit(sizes, costs, 1)[0])


class Turn(NamedTuple):
    """One run of an experiment."""

    name: str
    system: str
    without: tuple[str, ...]
    seed: int
    point: dict[str, Any]


def plan_runs(e: Experiment) -> list[Turn]:
    """All runs of an experiment in their order."""
    systems: list[tuple[str, tuple[str, ...]]] = [("peftcls", ())]
    systems += [(contender, ()) for contender in e.contenders]
    systems += [("peftcls", paths) for paths in e.without]
    points: list[dict[str, Any]] = list(e.points) or [{}]
    runs = []
    for turn, seed in enumerate(e.seeds):
        direction = -1 if turn % 2 else 1
        for system, paths in systems[::direction]:
            name = f"{system} without {', '.join(paths)}" if paths else system
            runs += [Turn(name, system, paths, seed, point) for point in points[::direction]]
    return runs


def describe_machine(e: Experiment, data: Path, cache: Path) -> dict[str, Any]:
    """The machine, and how fast it multiplies the matrices of an experiment's base."""
    machine = start(Job("machine", e, data, cache))
    print(f"matrix peaks, GFLOP/s: {machine['hardware']['peak_gflops']}", flush=True)
    return machine


def measure(e: Experiment, data: Path, cache: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything that the result of an experiment holds."""
    result = dict(machine)
    peaks = result["hardware"]["peak_gflops"]
    job = Job("run", e, data, cache, bf16=peaks["bfloat16"] > peaks["float32"])
    for seed in sorted(set(e.seeds)):
        start(dataclasses.replace(job, what="adapter", seed=seed))
    result["gates"] = []
    if e.contenders and e.gate_rows:
        for bf16 in (False, True):
            gate = parity_gate(dataclasses.replace(job, what="gate", bf16=bf16))
            result["gates"].append(gate)
            print(f"gate: {gate}", flush=True)
    runs: Runs = {}
    for turn in plan_runs(e):
        if BFLOAT16_PATHS.intersection(turn.without) and not job.bf16:
            continue
        found = _run(job, turn, result)
        runs.setdefault(turn.name, []).append(found)
    result |= _comparisons(e, runs)
    result["runs"] = {name: _without_answers(system_runs) for name, system_runs in runs.items()}
    return result


def _run(job: Job, turn: Turn, machine: dict[str, Any]) -> dict[str, Any]:
    """One run, with its share of the machine's peak."""
    point_experiment = dataclasses.replace(job.experiment, **turn.point)
    found = start(
        dataclasses.replace(
            job,
            what="run",
            experiment=point_experiment,
            system=turn.system,
            without=turn.without,
            seed=turn.seed,
        )
    )
    if "tokens_per_second" in found and point_experiment.trained == "all-layers":
        peak = max(machine["hardware"]["peak_gflops"].values()) * 1e9
        flops_per_token = FLOPS_PER_PARAMETER * machine["body_parameters"]
        found["useful_share"] = flops_per_token * found["tokens_per_second"] / peak
    numbers = {name: round(value, 3) for name, value in found.items() if isinstance(value, float)}
    point = f" {turn.point}" if turn.point else ""
    print(f"{turn.name}{point}: {found.get('crash') or numbers}", flush=True)
    return {**found, "seed": turn.seed, "point": turn.point}


def _comparisons(e: Experiment, runs: Runs) -> dict[str, Any]:
    """What is compared between systems: speed, answers, scores; and the curve over a setting."""
    compared: dict[str, Any] = {"faster": {}, "agreement": _agreement(runs)}
    if not e.points:
        for kind in get_args(Measure):
            factors = ratios(runs, kind)
            if factors:
                compared["faster"][kind] = factors
    if e.score:
        compared["scores"] = [
            score_parity(runs, name, score)
            for name in e.contenders
            for score in ("accuracy", "f1_macro")
            if all("scores" in run for run in runs[name])
        ]
    if e.points:
        compared["curve"] = _curve(e, runs)
    return compared


def _agreement(runs: Runs) -> dict[str, float]:
    """The share of rows to which a system gives the same answer as peftcls."""
    agreement = {}
    for name, system_runs in runs.items():
        if name == "peftcls" or "answers" not in system_runs[0]:
            continue
        ours = runs["peftcls"][0]["answers"]
        theirs = system_runs[0]["answers"]
        same = [a == b for a, b in zip(ours, theirs, strict=True)]
        agreement[name] = float(np.mean(same))
    return agreement


def _curve(e: Experiment, runs: Runs) -> dict[str, Any]:
    """The seconds of peftcls over the setting that the points change."""
    (over,) = {next(iter(point)) for point in e.points}
    points = []
    for run in runs["peftcls"]:
        rows = run["point"].get("rows", 1)
        points.append((run["point"][over], rows / run[e.measure]))
    return {"over": over, "points": sorted(points), "slope": slope(points)}


def _without_answers(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for run in runs:
        kept.append({name: value for name, value in run.items() if name != "answers"})
    return kept


def _read_settings(file: Path, replaced: list[str]) -> dict[str, Any]:
    """The settings of a file, with those of --set in their place."""
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for setting in replaced:
        name, _, value = setting.partition("=")
        settings[name] = json.loads(value)
    return settings


def main() -> None:
    """Run an experiment from its file to its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "peftcls-bench",
        help="where random bases are kept",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="SETTING=JSON", help="replace settings of the file"
    )
    options = parser.parse_args()
    try:
        settings = _read_settings(options.experiment, options.set)
        e = Experiment.of(settings)
    except (OSError, ValueError) as error:
        sys.exit(f"{options.experiment}: {error}")
    machine = describe_machine(e, options.data, options.cache)
    measured = measure(e, options.data, options.cache, machine)
    result = {"experiment": settings, "settings": dataclasses.asdict(e), **measured}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{options.experiment.stem}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    summary = {name: result[name] for name in ("faster", "scores", "curve") if name in result}
    print(json.dumps(summary, indent=1), f"\nwritten to {file}")
    comparisons = result["gates"] + result.get("scores", [])
    failed = [comparison for comparison in comparisons if not comparison["passed"]]
    if failed:
        sys.exit(f"not the same training: {failed}")


if __name__ == "__main__":
    main()

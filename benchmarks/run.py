"""How fast peftcls trains and answers beside what people use: one experiment file in, one result out.

    pip install '.[bench]'
    python benchmarks/run.py benchmarks/experiments/heads_minilm_sms.json --data DATA
    python benchmarks/report.py

DATA holds the folders sms_spam and medical_papers, which are not part of the project. Every run is a process of its own; all systems
begin with the same weights, and take a turn in one order and the next in the other (A B B A), so that a machine that slows down does so
for all. First, a step of peftcls and of the contender on the same rows are compared, in float32 and bfloat16: the loss and the gradient
of all that is trained. A contender's crash is a result, one of peftcls is not. The result goes to benchmarks/results, under the
experiment's name. `--set rows=64` replaces a setting for a trial.
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
from typing import Any, get_args

import numpy as np
from experiment import NARROW_PATHS, Experiment, Job, Measure, ratios, score_parity
from safetensors.numpy import load_file

HERE = Path(__file__).parent
LOSS_NEAR = {"float32": 1e-5, "bfloat16": 2e-2}  # relative to a loss above 1
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.0}  # in bfloat16 it is reported
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
PYTHON = [sys.executable, str(HERE / "one_run.py")]


def start(job: Job) -> dict[str, Any]:
    """A job in a process of its own, which ends with {"crash": ...} for a contender's and with SystemExit for peftcls's."""
    started = time.perf_counter()
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(job.experiment.threads)
    )  # torch's, and tokenizers'
    try:
        ended = subprocess.run(
            [*PYTHON, job.to_json()],
            capture_output=True,
            text=True,
            check=False,
            timeout=job.experiment.limit_seconds,
            env={**os.environ, **OFFLINE, **threads},
        )
        problem = (
            ended.stderr.strip()
            if ended.returncode > 0
            else f"ended by signal {-ended.returncode}"
            if ended.returncode
            else ""
        )
    except subprocess.TimeoutExpired:
        problem = f"no end within {job.experiment.limit_seconds} s"
    if problem and job.system == "peftcls":
        sys.exit(f"{problem}\npeftcls failed in a job ({job.what}) that it must be able to do.")
    if problem:
        return {"crash": problem.splitlines()[-1]}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {**found, "wall_seconds": time.perf_counter() - started}


def parity_gate(job: Job) -> dict[str, Any]:
    """One step of peftcls and of a contender from the same weights on the same rows: losses, and the angle between the gradients."""
    dtype, contender = (
        "bfloat16" if job.bf16 else "float32",
        job.experiment.contenders[0].partition("_")[0],
    )
    theirs = dataclasses.replace(
        job, system={"pad": "trainer", "generate": "trl"}.get(contender, contender)
    )
    own, other = start(job), start(theirs)
    if "crash" in other:
        return {
            "dtype": dtype,
            "contender": theirs.system,
            "crash": other["crash"],
            "passed": False,
        }
    gradients = [load_file(side.gradient) for side in (job, theirs)]
    if different := sorted(set(gradients[0]) ^ set(gradients[1])):
        sys.exit(f"{different[0]} has a gradient in one system alone.")
    flat = [
        np.concatenate([side[name].ravel() for name in sorted(side)]).astype(np.float64)
        for side in gradients
    ]
    cosine = float(flat[0] @ flat[1] / np.sqrt((flat[0] @ flat[0]) * (flat[1] @ flat[1])))
    apart = abs(own["loss"] - other["loss"])
    passed = (
        apart <= LOSS_NEAR[dtype] * max(1.0, abs(other["loss"])) and cosine >= LEAST_COSINE[dtype]
    )
    return {
        "dtype": dtype,
        "contender": theirs.system,
        "loss": own["loss"],
        "contender_loss": other["loss"],
        "loss_apart": apart,
        "gradient_cosine": cosine,
        "values": len(flat[0]),
        "passed": passed,
    }


def slope(points: list[tuple[float, float]]) -> float:
    """Of a line through the logarithms: 1 where the cost grows as the size does."""
    sizes, costs = np.log(np.array(points)).T
    return float(np.polyfit(sizes, costs, 1)[0])


def plan_runs(e: Experiment) -> list[tuple[str, str, tuple[str, ...], int, dict[str, Any]]]:
    """All runs in turn, as (name, system, fast paths left out, seed, point)."""
    systems: list[tuple[str, tuple[str, ...]]] = [
        ("peftcls", ()),
        *((name, ()) for name in e.contenders),
        *(("peftcls", paths) for paths in e.without),
    ]
    runs = []
    for turn, seed in enumerate(e.seeds):
        for system, paths in systems[:: -1 if turn % 2 else 1]:
            name = " without ".join([system, *([", ".join(paths)] if paths else [])])
            runs += [
                (name, system, paths, seed, point)
                for point in e.points[:: -1 if turn % 2 else 1] or ({},)
            ]
    return runs


def measure(e: Experiment, data: Path, cache: Path) -> dict[str, Any]:
    """Everything that the result of an experiment holds."""
    job = Job("machine", e, data, cache)
    result: dict[str, Any] = start(job)
    peaks = result["hardware"]["peak_gflops"]
    peak, job = (
        max(peaks.values()) * 1e9,
        dataclasses.replace(job, bf16=peaks["bfloat16"] > peaks["float32"]),
    )
    print(f"matrix peaks, GFLOP/s: {peaks}", flush=True)
    for seed in sorted(set(e.seeds)):
        start(dataclasses.replace(job, what="adapter", seed=seed))
    result["gates"] = []
    if e.contenders and e.gate_rows:
        for bf16 in (False, True):
            result["gates"].append(
                found := parity_gate(dataclasses.replace(job, what="gate", bf16=bf16))
            )
            print(f"gate: {found}", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, system, paths, seed, point in plan_runs(e):
        if NARROW_PATHS.intersection(paths) and not job.bf16:
            continue
        own = dataclasses.replace(e, **point)
        found = start(
            dataclasses.replace(
                job, what="run", experiment=own, system=system, without=paths, seed=seed
            )
        )
        if (
            "tokens_per_second" in found and own.trained == "all-layers"
        ):  # forward 2, back through the activations 2
            found["useful_share"] = (
                4 * result["body_parameters"] * found["tokens_per_second"] / peak
            )
        runs.setdefault(name, []).append(found | {"seed": seed, "point": point})
        told = found.get("crash") or {
            k: round(v, 3) for k, v in found.items() if isinstance(v, float)
        }
        print(f"{name}{f' {point}' if point else ''}: {told}", flush=True)
    result["faster"] = {
        kind: found for kind in get_args(Measure) if not e.points and (found := ratios(runs, kind))
    }
    result["agreement"] = {
        name: float(
            np.mean(
                [
                    a == b
                    for a, b in zip(runs["peftcls"][0]["answers"], found[0]["answers"], strict=True)
                ]
            )
        )
        for name, found in runs.items()
        if "answers" in found[0] and name != "peftcls"
    }
    if e.score:
        result["scores"] = [
            score_parity(runs, name, score)
            for name in e.contenders
            for score in ("accuracy", "f1_macro")
            if all("scores" in run for run in runs[name])
        ]
    if e.points:
        (over,) = {next(iter(point)) for point in e.points}
        pairs = [
            (run["point"][over], run["point"].get("rows", 1) / run[e.measure])
            for run in runs["peftcls"]
        ]
        result["curve"] = {"over": over, "points": sorted(pairs), "slope": slope(pairs)}
    result["runs"] = {
        name: [{k: v for k, v in run.items() if k != "answers"} for run in found]
        for name, found in runs.items()
    }
    return result


def main() -> None:
    """An experiment from its file to its result."""
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
    o = parser.parse_args()
    try:
        given = json.loads(o.experiment.read_text(encoding="utf-8")) | {
            name: json.loads(value)
            for name, _, value in (setting.partition("=") for setting in o.set)
        }
        e = Experiment.of(given)
    except (OSError, ValueError) as error:
        sys.exit(f"{o.experiment}: {error}")
    result = {"experiment": given, "settings": dataclasses.asdict(e), **measure(e, o.data, o.cache)}
    o.out.mkdir(parents=True, exist_ok=True)
    (file := o.out / f"{o.experiment.stem}.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    print(
        json.dumps({k: result[k] for k in ("faster", "scores", "curve") if k in result}, indent=1),
        f"\nwritten to {file}",
    )
    if failed := [
        gate for gate in result["gates"] + result.get("scores", []) if not gate["passed"]
    ]:
        sys.exit(f"not the same training: {failed}")


if __name__ == "__main__":
    main()

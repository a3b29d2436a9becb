"""What the frozen-layer cache gives: in one training, and in a sweep over learning rates.

    python benchmarks/frozen_layers.py --data DATA --base minilm --trained head --rates 1
    python benchmarks/frozen_layers.py --data DATA --base minilm --trained head --rates 10

DATA holds the folders sms_spam and medical_papers. Each run is a process of its own with one
thread, in turn A B B A. What counts are the processor seconds of that process: of all that `fit` or
`sweep` does, and of its optimizer steps only.

The limit of what can be gained follows from the layers that are left. The unit is the forward pass
of a layer; the backward pass of a layer with an adapter is one more, as no weight of the base has a
gradient. E epochs over n layers of which k are trained take E(n + k) without the cache, and
(n - k) + 2Ek with it. Results go to benchmarks/results/frozen_layers.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import material
import torch
from real_data import versions

import peftcls
from peftcls.models.trainable import copy_tensors, put_tensors, trained_parameters

RESULTS = Path(__file__).parent / "results" / "frozen_layers.json"
LAYERS = {"minilm": 6, "bert-base": 12}
TRAINED_LAYERS = {"head": 0, "top2": 2}
CACHED = "kept"
COMPUTED = "each time"


def limit(base: str, trained: str, epochs: int, rates: int) -> float:
    """The factor by which fewer layers are computed, forward and backward."""
    layers = LAYERS[base]
    top = TRAINED_LAYERS[trained]
    return rates * epochs * (layers + top) / (layers - top + 2 * rates * epochs * top)


def run(options: argparse.Namespace) -> None:
    """Train in this process and print its seconds as a line of JSON."""
    torch.set_num_threads(1)
    rows = material.read_file(options.data, options.texts, "train")
    rows = rows[: options.rows + options.valid_rows]
    train = rows[: options.rows]
    valid = rows[options.rows :]
    task = peftcls.Classification(text="text", label="label", max_length=256).learn(rows)
    base = material.base_folder(options.base, options.cache)
    model, tokenizer = peftcls.load_base(base, task, dtype=torch.float32)
    if options.trained == "head":
        model = peftcls.train_only(model, task, "head")
    else:
        model = peftcls.attach_lora(model, task, targets=["query", "value"], layers=[-2, -1])
    configs = _configs(options)
    step_seconds = _time_steps()
    started = time.process_time()
    if options.one == CACHED and options.rates > 1:
        members = peftcls.sweep(model, task, tokenizer, configs, train, valid)
        scores = {member.name: member.scores for member in members}
    else:
        parameters = trained_parameters(model)
        initial = copy_tensors(parameters)
        scores = {}
        for name, config in configs.items():
            put_tensors(parameters, initial)
            scores[name] = peftcls.Trainer(model, task, tokenizer, config).fit(train, valid)
    result = {
        "processor_seconds": time.process_time() - started,
        "step_seconds": sum(step_seconds),
        "scores": scores,
    }
    print(json.dumps(result))


def _configs(options: argparse.Namespace) -> dict[str, peftcls.TrainConfig]:
    """The settings of each learning rate."""
    out = Path(tempfile.mkdtemp())
    fast_paths = peftcls.FastPaths(frozen_cache=options.one == CACHED)
    configs = {}
    for number in range(options.rates):
        configs[str(number)] = peftcls.TrainConfig(
            out / str(number),
            epochs=options.epochs,
            learning_rate=1e-4 * 2**number,
            fast_paths=fast_paths,
        )
    return configs


def _time_steps() -> list[float]:
    """A list that gets the processor seconds of every optimizer step of any trainer."""
    seconds: list[float] = []
    step = peftcls.Trainer._step

    def timed(*arguments: Any) -> float | None:
        started = time.process_time()
        loss = step(*arguments)
        seconds.append(time.process_time() - started)
        return loss

    peftcls.Trainer._step = timed  # type: ignore[method-assign]
    return seconds


def compare(options: argparse.Namespace) -> None:
    """Run both in turn, and add how much faster the cache is to the file of results."""
    material.base_folder(options.base, options.cache)
    runs: dict[str, list[dict[str, Any]]] = {CACHED: [], COMPUTED: []}
    for name in (CACHED, COMPUTED, COMPUTED, CACHED):
        command = [sys.executable, *sys.argv, "--one", name]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(ended.stderr)
        found = json.loads(ended.stdout.splitlines()[-1])
        runs[name].append(found)
        print(
            f"{name}: {found['processor_seconds']:.1f} s, {found['step_seconds']:.1f} s in steps",
            flush=True,
        )
    settings = {
        name: value for name, value in vars(options).items() if name not in ("data", "cache", "one")
    }
    comparison = {
        "faster": {name: _factors(runs, name) for name in ("processor_seconds", "step_seconds")},
        "limit": limit(options.base, options.trained, options.epochs, options.rates),
        "scores_apart": _scores_apart(runs),
    }
    result = {
        **comparison,
        "runs": {name: [_rounded(found) for found in several] for name, several in runs.items()},
        "settings": settings,
        "processor": platform.processor() or platform.machine(),
        **versions("torch", "transformers", "peft"),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    rates = f"{options.rates} rate{'s' if options.rates > 1 else ''}"
    key = f"{options.base} {options.texts} {options.trained}, {options.epochs} epochs, {rates}"
    results[key] = result
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(comparison))


def _factors(runs: dict[str, list[dict[str, Any]]], measure: str) -> list[float]:
    """How much faster the cache is: over all runs, and the least and the most of any two."""
    cached = [found[measure] for found in runs[CACHED]]
    computed = [found[measure] for found in runs[COMPUTED]]
    return [
        sum(computed) / sum(cached),
        min(computed) / max(cached),
        max(computed) / min(cached),
    ]


def _scores_apart(runs: dict[str, list[dict[str, Any]]]) -> float:
    """The largest difference of a score with and without the cache."""
    cached = runs[CACHED][0]["scores"]
    computed = runs[COMPUTED][0]["scores"]
    differences = []
    for name, scores in cached.items():
        differences += [abs(scores[score] - computed[name][score]) for score in scores]
    return max(differences)


def _rounded(found: dict[str, Any]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in found.items() if name != "scores"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", choices=list(LAYERS), required=True)
    parser.add_argument("--trained", choices=list(TRAINED_LAYERS), required=True)
    parser.add_argument("--texts", choices=["sms", "abstracts"], default="sms")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--valid-rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rates", type=int, default=1)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "peftcls-bench",
        help="where random bases are kept",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.one:
        run(options)
    else:
        compare(options)

"""What keeping the states of frozen layers gives: in one training, and in a sweep over rates; each beside computing them every time.

    python benchmarks/frozen_layers.py --data DATA --base minilm --trained head --rows 320 --rates 1
    python benchmarks/frozen_layers.py --data DATA --base minilm --trained head --rows 320 --rates 10

Each run is a process of its own with one thread, in turn A B B A, and what counts are the processor's seconds of that process: of all that
`fit` or `sweep` does, and of its optimizer steps alone. The limit of what can be gained follows from the layers that are left: with the
way forward through a layer as the unit, and the way back through a layer with an adapter as one more (no weight of the base has a
gradient), E epochs over n layers of which k are trained take E(n + k) without, and (n - k) + 2Ek with kept states. Results go to
benchmarks/results/frozen_layers.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contenders
import torch

import peftcls
from peftcls.engine import frozen_cache

RESULTS = Path(__file__).parent / "results" / "frozen_layers.json"
LAYERS = {"minilm": 6, "bert-base": 12}
TRAINED = {"head": 0, "top2": 2}


def limit(base: str, trained: str, epochs: int, rates: int) -> float:
    """By what factor fewer layers are computed, there and back."""
    layers, top = LAYERS[base], TRAINED[trained]
    return rates * epochs * (layers + top) / (layers - top + 2 * rates * epochs * top)


def run(o: argparse.Namespace) -> None:
    """One process: print its seconds as a line of JSON."""
    torch.set_num_threads(1)
    if o.one == "each time":
        frozen_cache.frozen_layers = lambda _: None  # type: ignore[assignment]
    rows = contenders.read_texts(o.data, o.texts, o.rows + o.valid_rows)
    folder = contenders.base_folder(o.base, o.cache)
    train, valid = rows[: o.rows], rows[o.rows :]
    task = peftcls.Classification(text="text", label="label", max_length=256).learn(rows)
    model, tokenizer = peftcls.load_base(folder, task, dtype=torch.float32)
    model = (
        peftcls.train_only(model, task, "head")
        if o.trained == "head"
        else peftcls.attach_lora(model, task, targets=["query", "value"], layers=[-2, -1])
    )
    out, steps = Path(tempfile.mkdtemp()), [0.0]
    configs = {
        str(n): peftcls.TrainConfig(out / str(n), epochs=o.epochs, learning_rate=1e-4 * 2**n)
        for n in range(o.rates)
    }
    take = peftcls.Trainer._step

    def timed(*given: Any) -> float:
        started = time.process_time()
        loss = take(*given)
        steps[0] += time.process_time() - started
        return loss

    peftcls.Trainer._step = timed  # type: ignore[method-assign]
    started = time.process_time()
    if o.one == "kept" and o.rates > 1:
        found = peftcls.sweep(model, task, tokenizer, configs, train, valid)
        scores = {one.name: one.scores for one in found}
    else:
        start, scores = (
            peftcls.models.trainable.copy_tensors(
                peftcls.models.trainable.trained_parameters(model)
            ),
            {},
        )
        for name, config in configs.items():
            peftcls.models.trainable.put_tensors(
                peftcls.models.trainable.trained_parameters(model), start
            )
            scores[name] = peftcls.Trainer(model, task, tokenizer, config).fit(train, valid)
    print(
        json.dumps(
            {
                "processor_seconds": time.process_time() - started,
                "step_seconds": steps[0],
                "scores": scores,
            }
        )
    )


def main(o: argparse.Namespace) -> None:
    """The runs in turn, and what one way is faster by."""
    contenders.base_folder(o.base, o.cache)
    runs: dict[str, list[dict[str, Any]]] = {"kept": [], "each time": []}
    for name in ("kept", "each time", "each time", "kept"):
        ended = subprocess.run(
            [sys.executable, *sys.argv, "--one", name], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            sys.exit(ended.stderr)
        runs[name].append(json.loads(ended.stdout.splitlines()[-1]))
        print(
            f"{name}: {runs[name][-1]['processor_seconds']:.1f} s, {runs[name][-1]['step_seconds']:.1f} s in steps",
            flush=True,
        )
    one, other = runs["kept"][0]["scores"], runs["each time"][0]["scores"]
    apart = max(abs(one[name][score] - other[name][score]) for name in one for score in one[name])
    faster = {}
    for measure in ("processor_seconds", "step_seconds"):
        kept, computed = (
            [found[measure] for found in runs[name]] for name in ("kept", "each time")
        )
        faster[measure] = [
            sum(computed) / sum(kept),
            min(computed) / max(kept),
            max(computed) / min(kept),
        ]
    found = {
        "faster": faster,
        "limit": limit(o.base, o.trained, o.epochs, o.rates),
        "scores_apart": apart,
        "runs": {
            name: [
                {k: round(v, 2) for k, v in single.items() if k != "scores"} for single in several
            ]
            for name, several in runs.items()
        },
        "settings": {k: v for k, v in vars(o).items() if k not in ("data", "cache", "one")},
        "processor": platform.processor() or platform.machine(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    key = f"{o.base} {o.texts} {o.trained}, {o.epochs} epochs, {o.rates} rate{'s' if o.rates > 1 else ''}"
    results[key] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k in ("faster", "limit", "scores_apart")}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", choices=list(LAYERS), required=True)
    parser.add_argument("--trained", choices=list(TRAINED), required=True)
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
        main(options)

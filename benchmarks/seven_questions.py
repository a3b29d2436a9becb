"""Seven questions about turning a GPT into a classifier, answered for a labelled table and a model of your own.

    python benchmarks/seven_questions.py --train train.csv
    python benchmarks/seven_questions.py --train train.csv --valid valid.csv --test test.csv --model openai-community/gpt2 \
        --encoder google-bert/bert-base-uncased --larger openai-community/gpt2-medium --seeds 0 1 2 --epochs 5 --out results/mine

Which layers to train, which token to read, encoder or decoder, causal mask or none, model size, LoRA or full training,
and how to pad. An experiment differs from the default (last block and head, last token, causal mask, batches of 16 padded
to the longest of a micro-batch) only in what it says; what several questions ask is run once. A run is a process of its
own, so that its peak memory is its own. It learns for all epochs and no rows choose the best, so validation and test rows
are equally unseen. Results go to OUT.json after every run, and what is there with the same settings is not run again; the
table, the answers and the figure (pip install matplotlib) to OUT.md and OUT.png after every seed, or by --report-only.
"""

import argparse
import dataclasses
import hashlib
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

from study_run import EXPERIMENTS, MOST_TOKENS, Experiment, measure

HERE = Path(__file__).parent


def shown_base(name: str | None) -> str | None:
    """A model's name; of a folder the end of its path, since results say nothing of where files are."""
    return "/".join(Path(name).resolve().parts[-2:]) if name and Path(name).is_dir() else name


def study_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a study share: the data by name and content, and how long they are learnt."""
    sources = {part: getattr(options, part) for part in ("train", "valid", "test")}
    data = {
        part: {
            "file": source and Path(source).name,
            "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()[:12],
        }
        if source and Path(source).is_file()
        else {"file": source}
        for part, source in sources.items()
    }
    return {
        "data": data,
        "text": options.text,
        "label": options.label,
        "epochs": options.epochs,
        "pad_to": options.pad_to,
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }


def machine() -> dict[str, str]:
    """What a run is computed with; the commit may change while a study lasts."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "commit": commit,
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
    }


def run(e: Experiment, seed: int) -> dict[str, Any]:
    """One run in a process of its own; where it fails, the sentence that says why."""
    with tempfile.TemporaryDirectory() as out:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": f"{out}/cache",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--one",
            e.name,
            "--seed",
            str(seed),
            "--folder",
            out,
        ]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            return {
                "failed": (
                    ended.stderr.strip() or f"it ended with {ended.returncode}"
                ).splitlines()[-1]
            }
        found: dict[str, Any] = json.loads((Path(out) / "found.json").read_text())
    return found


def main() -> None:
    """The study, one run of it, or its report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", help="labelled rows (csv, tsv, json, jsonl, parquet, hub id)")
    parser.add_argument("--valid", help="split off the training rows unless given, 10 %%")
    parser.add_argument("--test", help="split off the training rows unless given, 20 %%")
    parser.add_argument("--text", default="text", help="the column, in any case (text)")
    parser.add_argument("--label", default="label", help="the column, in any case (label)")
    parser.add_argument(
        "--model", default="demo", help="the decoder: demo, a local folder or a hub id"
    )
    parser.add_argument(
        "--encoder", help="an encoder for question 3, which is skipped unless given"
    )
    parser.add_argument(
        "--larger", help="a larger decoder for question 5, which is skipped unless given"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--pad-to",
        type=int,
        help=f"the fixed width, and where texts are cut (the context, at most {MOST_TOKENS})",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "seven_questions")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="remake the table and the figure of what is there",
    )
    for hidden in ("--one", "--seed", "--folder"):
        parser.add_argument(hidden, type=int if hidden == "--seed" else str, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.report_only:
        from study_report import (
            write_report,  # here, since its libraries would be in the way of the memory of the runs
        )

        return write_report(options.out)
    if options.train is None:
        parser.error("there is no --train, expected a file with a text and a label in each row.")
    if options.one:
        found = measure(EXPERIMENTS[options.one], options, f"{options.folder}/run")
        (Path(options.folder) / "found.json").write_text(json.dumps(found))
        return None
    study, bases = (
        study_settings(options),
        {name: shown_base(getattr(options, name)) for name in ("model", "encoder", "larger")},
    )
    results = options.out.with_suffix(".json")
    results.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for e in EXPERIMENTS.values():
            kept = json.loads(results.read_text()) if results.is_file() else {"runs": {}}
            kept = {"study": study, "bases": bases, "runs": kept["runs"]}
            settings = {
                **study,
                "experiment": dataclasses.asdict(e),
                "base": bases[e.base],
                "seed": seed,
            }
            name = f"{e.name} seed {seed}"
            before = kept["runs"].get(name, {})
            if bases[e.base] is None or (e.baseline and seed != options.seeds[0]):
                continue
            if before.get("settings") != settings or "failed" in before:
                kept["runs"][name] = found = {
                    **run(e, seed),
                    "settings": settings,
                    "machine": machine(),
                }
                if "failed" in found and e.name == next(iter(EXPERIMENTS)):
                    sys.exit(found["failed"])  # nothing else can be compared with it
                shown = {
                    key: round(value, 1)
                    for key, value in found.items()
                    if key.endswith(("accuracy", "seconds", "mib"))
                }
                print(time.strftime("%H:%M:%S"), name, found.get("failed", shown), flush=True)
            beside = results.with_suffix(".json.new")
            beside.write_text(json.dumps(kept, indent=1) + "\n")
            os.replace(beside, results)
        subprocess.run(
            [sys.executable, __file__, "--report-only", "--out", str(options.out)], check=True
        )
    return None


if __name__ == "__main__":
    main()

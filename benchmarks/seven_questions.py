r"""Seven questions about turning a GPT into a classifier, answered for a table and model of yours.

    python benchmarks/seven_questions.py --train train.csv
    python benchmarks/seven_questions.py --train train.csv --valid valid.csv --test test.csv \
        --model openai-community/gpt2 --larger openai-community/gpt2-medium \
        --encoder google-bert/bert-base-uncased --seeds 0 1 2 --epochs 5 --out results/mine

Which layers to train, which token to read, encoder or decoder, causal mask or none, model size,
LoRA or full training, and how to pad. An experiment differs from the default (last block and head,
last token, causal mask, batches of 16 padded to the longest of a micro-batch) only in what it says;
what several questions ask is run once. A run is a process of its own, so that its peak memory is
its own. It trains for all epochs and no rows choose the best, so validation and test rows are
equally unseen. Results go to OUT.json after every run, and what is there with the same settings is
not run again. The table, the answers and the figure (pip install matplotlib) go to OUT.md and
OUT.png after every seed, or by --report-only.
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
from pathlib import Path
from typing import Any

from real_data import versions
from study_run import EXPERIMENTS, MAX_TOKENS, Experiment, measure

HERE = Path(__file__).parent
BASES = ("model", "encoder", "larger")


def shown_base(name: str | None) -> str | None:
    """A model's name; of a folder the end of its path, since results do not say where files are."""
    if name and Path(name).is_dir():
        return "/".join(Path(name).resolve().parts[-2:])
    return name


def study_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a study share: the data by name and content, and the epochs."""
    data = {part: describe_source(getattr(options, part)) for part in ("train", "valid", "test")}
    return {
        "data": data,
        "text": options.text,
        "label": options.label,
        "epochs": options.epochs,
        "pad_to": options.pad_to,
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }


def describe_source(source: str | None) -> dict[str, Any]:
    """The name of a file and a checksum of its content; the name only of anything else."""
    if not source or not Path(source).is_file():
        return {"file": source}
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return {"file": Path(source).name, "sha256": digest[:12]}


def machine() -> dict[str, str]:
    """What a run is computed with; the commit may change while a study lasts."""
    ended = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "commit": ended.stdout.strip(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **versions("torch", "transformers", "peft", "accelerate"),
    }


def run(e: Experiment, seed: int) -> dict[str, Any]:
    """One run in a process of its own; if it fails, {"failed": the last line of its errors}."""
    with tempfile.TemporaryDirectory() as out:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": f"{out}/cache",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, __file__, *sys.argv[1:], "--one", e.name]
        command += ["--seed", str(seed), "--folder", out]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            message = ended.stderr.strip() or f"it ended with {ended.returncode}"
            return {"failed": message.splitlines()[-1]}
        found: dict[str, Any] = json.loads((Path(out) / "found.json").read_text())
        return found


def run_study(options: argparse.Namespace) -> None:
    """Run every experiment that the results do not hold yet, and write the report."""
    study = study_settings(options)
    bases = {name: shown_base(getattr(options, name)) for name in BASES}
    for seed in options.seeds:
        for e in EXPERIMENTS.values():
            is_skipped_baseline = e.baseline and seed != options.seeds[0]
            if bases[e.base] is not None and not is_skipped_baseline:
                run_experiment(e, seed, study, bases, options.out.with_suffix(".json"))
        command = [sys.executable, __file__, "--report-only", "--out", str(options.out)]
        subprocess.run(command, check=True)


def run_experiment(
    e: Experiment, seed: int, study: dict[str, Any], bases: dict[str, Any], results: Path
) -> None:
    """Run an experiment with one seed, unless the results hold it with the same settings."""
    results.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(results.read_text())["runs"] if results.is_file() else {}
    settings = {
        **study,
        "experiment": dataclasses.asdict(e),
        "base": bases[e.base],
        "seed": seed,
    }
    name = f"{e.name} seed {seed}"
    before = runs.get(name, {})
    if before.get("settings") != settings or "failed" in before:
        found = run(e, seed)
        # Nothing else can be compared if the default fails.
        if "failed" in found and e.name == next(iter(EXPERIMENTS)):
            sys.exit(found["failed"])
        runs[name] = {**found, "settings": settings, "machine": machine()}
        print(time.strftime("%H:%M:%S"), name, found.get("failed", rounded(found)), flush=True)
    temporary = results.with_suffix(".json.new")
    kept = {"study": study, "bases": bases, "runs": runs}
    temporary.write_text(json.dumps(kept, indent=1) + "\n")
    os.replace(temporary, results)


def rounded(found: dict[str, Any]) -> dict[str, float]:
    """The measures that are printed."""
    shown = {}
    for name, value in found.items():
        if name.endswith(("accuracy", "seconds", "mib")):
            shown[name] = round(value, 1)
    return shown


def parse_options() -> argparse.Namespace:
    """The command line."""
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
        help=f"the fixed width, and where texts are cut (the context, at most {MAX_TOKENS})",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "seven_questions")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="make the table and the figure of the results again",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is None and not options.report_only:
        parser.error("there is no --train, expected a file with a text and a label in each row.")
    return options


def main() -> None:
    """The study, one run of it, or its report."""
    options = parse_options()
    if options.report_only:
        # Imported here, as its libraries would count in the memory of the runs.
        from study_report import write_report

        write_report(options.out)
    elif options.one:
        found = measure(EXPERIMENTS[options.one], options, f"{options.folder}/run")
        (Path(options.folder) / "found.json").write_text(json.dumps(found))
    else:
        run_study(options)


if __name__ == "__main__":
    main()

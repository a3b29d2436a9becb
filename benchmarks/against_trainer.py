"""LoRA on sentence pairs, trained by peftcls and by transformers' own Trainer with PEFT: scores, seconds and memory.

    OMP_NUM_THREADS=1 python benchmarks/against_trainer.py --data DATA --seeds 0 1 2 --epochs 3 --learning-rate 1e-3

DATA holds the folders mrpc and sts_b, which are not part of the project. Both systems get the same base, rows, adapter, batch size,
rate, warmup, schedule, decay, standardised numbers and seed, are judged on the validation rows after each epoch, and keep the best.
Trainer groups rows by length, which takes a third off its time. All else is as each has it by default; above all, Trainer leaves the
frozen base's dropout on and peftcls turns it off (trainer_dropout_off is Trainer with dropout in the adapter and before the head
alone). A run is a process of its own, the systems take turns at going first, and a run that results/ holds is not repeated.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from real_data import minilm_folder
from scipy import stats

HERE, PAIR = Path(__file__).parent, ("sentence1", "sentence2")
TARGET, MONITOR = {"mrpc": "label", "sts_b": "score"}, {"mrpc": "accuracy", "sts_b": "pearson"}
SHARED = {
    "base": "MiniLM-L6",
    "batch_size": 16,
    "warmup": 0.06,
    "weight_decay": 0.01,
    "max_length": 128,
    "rank": 8,
    "alpha": 16,
    "dropout": 0.05,
    "targets": ["query", "value"],
    "trainer_sampling": "group_by_length",
}
MEASURES = (
    "accuracy",
    "f1",
    "pearson",
    "spearman",
    "seconds",
    "cpu_seconds",
    "rows_per_second",
    "peak_rss_mb",
)
Rows = list[dict[str, str]]


def read_table(data: Path, task: str, split: str, rows: int | None = None) -> Rows:
    """The sentence pairs of one file and their target; of the training rows, `rows` drawn once for all runs."""
    with (data / task / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        table = [
            {name: row[name] for name in (*PAIR, TARGET[task])} for row in csv.DictReader(file)
        ]
    return random.Random(0).sample(table, rows) if rows and rows < len(table) else table


def with_peftcls(s: dict[str, Any], train: Rows, valid: Rows, out: str) -> dict[str, Any]:
    """Train with peftcls; its answers to the validation rows."""
    from peftcls import Classification, Regression, TrainConfig, Trainer, attach_lora, load_base

    kind, target = (Classification, "label") if s["task"] == "mrpc" else (Regression, "target")
    task = kind(text=PAIR, max_length=s["max_length"], **{target: TARGET[s["task"]]}).learn(train)
    base, tokenizer = load_base(s["base"], task, seed=s["seed"])
    model = attach_lora(
        base,
        task,
        rank=s["rank"],
        alpha=s["alpha"],
        dropout=s["dropout"],
        targets=s["targets"],
        seed=s["seed"],
    )
    config = TrainConfig(
        out,
        epochs=s["epochs"],
        batch_size=s["batch_size"],
        learning_rate=s["learning_rate"],
        warmup=s["warmup"],
        weight_decay=s["weight_decay"],
        monitor=MONITOR[s["task"]],
        seed=s["seed"],
    )
    clocks = time.perf_counter(), time.process_time()
    with Trainer(model, task, tokenizer, config) as trainer:
        trainer.fit(train, valid)
        spent = costs(*clocks)
        answers = [
            float(a.label) if a.label is not None else a.value for a in trainer.predict(valid)
        ]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        **spent,
        "answers": answers,
        "log": trainer.progress.history,
        "trained_parameters": trained,
    }


def with_trainer(s: dict[str, Any], train: Rows, valid: Rows, out: str) -> dict[str, Any]:
    """Train with transformers' Trainer and PEFT; its answers to the validation rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    labels, target, monitor = s["task"] == "mrpc", TARGET[s["task"]], MONITOR[s["task"]]
    mean, deviation = (float(of([float(row[target]) for row in train])) for of in (np.mean, np.std))
    torch.manual_seed(s["seed"])
    tokenizer = AutoTokenizer.from_pretrained(s["base"])
    off = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": s["dropout"],
    }
    base = AutoModelForSequenceClassification.from_pretrained(
        s["base"],
        num_labels=2 if labels else 1,
        dtype=torch.float32,
        **(off if s["system"] == "trainer_dropout_off" else {}),
    )
    adapter = LoraConfig(
        task_type="SEQ_CLS",
        r=s["rank"],
        lora_alpha=s["alpha"],
        lora_dropout=s["dropout"],
        target_modules=s["targets"],
    )
    model = get_peft_model(base, adapter)

    def judge(found: Any) -> dict[str, float]:
        outputs, gold = found.predictions, found.label_ids
        return {
            monitor: float(
                (outputs.argmax(1) == gold).mean()
                if labels
                else np.corrcoef(outputs[:, 0], gold)[0, 1]
            )
        }

    arguments = TrainingArguments(
        out,
        num_train_epochs=s["epochs"],
        per_device_train_batch_size=s["batch_size"],
        per_device_eval_batch_size=s["batch_size"],
        learning_rate=s["learning_rate"],
        warmup_steps=s["warmup"],
        lr_scheduler_type="linear",
        weight_decay=s["weight_decay"],
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=monitor,
        train_sampling_strategy=s["trainer_sampling"],
        seed=s["seed"],
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
    )
    clocks = time.perf_counter(), time.process_time()
    tables: Any = [
        [
            {
                **tokenizer(
                    *(row[name] for name in PAIR), truncation=True, max_length=s["max_length"]
                ),
                "labels": int(row[target]) if labels else (float(row[target]) - mean) / deviation,
            }
            for row in rows
        ]
        for rows in (train, valid)
    ]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=tables[0],
        eval_dataset=tables[1],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=judge,
    )
    trainer.train()
    trainer.save_model(out)
    spent = costs(*clocks)
    trainer.args.train_sampling_strategy = (
        "random"  # predict would group its rows too, and answer in another order
    )
    outputs: Any = trainer.predict(tables[1]).predictions
    answers = outputs.argmax(1).tolist() if labels else (outputs[:, 0] * deviation + mean).tolist()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        **spent,
        "answers": answers,
        "log": trainer.state.log_history,
        "trained_parameters": trained,
    }


def costs(started: float, worked: float) -> dict[str, float]:
    """What this process spent from rows in memory to a saved adapter, and the most memory that it ever held."""
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def scores(task: str, gold: list[float], answers: list[float]) -> dict[str, float]:
    """Accuracy and F1 of the label 1, or the two correlations, times 100."""
    truth, found = np.array(gold), np.array(answers)
    if task == "mrpc":
        return {
            "accuracy": 100 * float((truth == found).mean()),
            "f1": 200 * float((truth * found).sum() / (truth.sum() + found.sum())),
        }
    return {
        name: 100 * float(of(truth, found).statistic)
        for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr))
    }


def measure(s: dict[str, Any], data: Path) -> dict[str, Any]:
    """One run in a process of its own, with nothing kept from others."""
    with tempfile.TemporaryDirectory() as out:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": f"{out}/cache",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [
            sys.executable,
            __file__,
            "--data",
            str(data),
            "--one",
            json.dumps({**s, "base": minilm_folder(), "out": out}),
        ]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            sys.exit(ended.stderr)
        found = json.loads((Path(out) / "found.json").read_text())
    gold = [float(row[TARGET[s["task"]]]) for row in read_table(data, s["task"], "validation")]
    reached, monitor = scores(s["task"], gold, found.pop("answers")), MONITOR[s["task"]]
    by_epoch = [
        100 * score
        for entry in found.pop("log")
        for name, score in entry.items()
        if name.endswith(f"_{monitor}")
    ]
    if abs(max(by_epoch) - reached[monitor]) > 0.5:  # a row or two may move by rounding
        sys.exit(
            f"{s}: the model that was kept scores {reached}, expected the best of its epochs, {by_epoch}."
        )
    found |= (
        {"all_positive": scores("mrpc", gold, [1.0] * len(gold))} if s["task"] == "mrpc" else {}
    )
    return {
        **reached,
        "by_epoch": by_epoch,
        **found,
        "settings": s,
        "rows_per_second": s["epochs"]
        * len(read_table(data, s["task"], "train", s["rows"]))
        / found["seconds"],
    }


def keep(results: Path, new: dict[str, Any]) -> dict[str, Any]:
    """What the file of results holds with these runs in it; others may have written to it since it was read."""
    kept = json.loads(results.read_text()) if results.is_file() else {"runs": {}}
    kept["runs"].update(new)
    kept["summary"] = summary(list(kept["runs"].values()))
    results.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By task, measure and system the mean over seeds with its 95 % t-interval, and of peftcls less the other, by pairs of a seed."""
    table: dict[str, Any] = {}
    for task, name, system in itertools.product(TARGET, MEASURES, SYSTEMS):
        ours, own = (
            {
                run["settings"]["seed"]: run[name]
                for run in runs
                if name in run
                and run["settings"]["task"] == task
                and run["settings"]["system"] == which
            }
            for which in ("peftcls", system)
        )
        if own:
            table[f"{task} {name} {system}"] = described(own)
        if gaps := {
            seed: ours[seed] - own[seed] for seed in own if seed in ours and system != "peftcls"
        }:
            table[f"{task} {name} peftcls less {system}"] = described(gaps)
    positive = [run["all_positive"].items() for run in runs if "all_positive" in run][:1]
    return table | {
        f"mrpc {name} all rows positive": {"mean": score, "interval": None}
        for found in positive
        for name, score in found
    }


def described(by_seed: dict[int, float]) -> dict[str, Any]:
    """Mean and 95 % t-interval; no interval of a single value."""
    values, mean = list(by_seed.values()), float(np.mean(list(by_seed.values())))
    half = (
        float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else 0.0
    )
    return {
        "mean": mean,
        "interval": [mean - half, mean + half] if len(values) > 1 else None,
        "by_seed": by_seed,
    }


SYSTEMS = {"peftcls": with_peftcls, "trainer": with_trainer, "trainer_dropout_off": with_trainer}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", choices=sorted(TARGET), default=["mrpc", "sts_b"])
    parser.add_argument(
        "--systems", nargs="*", choices=sorted(SYSTEMS), default=["peftcls", "trainer"]
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, help="training rows; all unless given")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "against_trainer.json")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (one := options.one) is not None:
        tables = (
            read_table(options.data, one["task"], "train", one["rows"]),
            read_table(options.data, one["task"], "validation"),
        )
        answered = SYSTEMS[one["system"]](one, *tables, f"{one['out']}/run")
        sys.exit(not (Path(one["out"]) / "found.json").write_text(json.dumps(answered)))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    machine = {
        "commit": commit,
        "processor": platform.processor() or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
    }
    chosen = {name: vars(options)[name] for name in ("epochs", "learning_rate", "rows")}
    for task, seed in itertools.product(options.tasks, options.seeds):
        for system in options.systems[:: -1 if seed % 2 else 1]:
            settings, name = (
                {"task": task, "system": system, "seed": seed, **chosen, **SHARED},
                f"{task} {system} seed {seed}",
            )
            if keep(options.results, {})["runs"].get(name, {}).get("settings") != settings:
                run = {**measure(settings, options.data), **machine}
                print(
                    name,
                    {key: round(run[key], 2) for key in MEASURES if key in run},
                    run["by_epoch"],
                    flush=True,
                )
                keep(options.results, {name: run})
    for name, line in keep(options.results, {})["summary"].items():
        print(
            f"{name:>52} {line['mean']:10.2f}   "
            + " to ".join(f"{end:.2f}" for end in line["interval"] or [])
        )

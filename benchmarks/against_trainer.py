"""LoRA on sentence pairs by peftcls and by transformers' Trainer with PEFT: scores and costs.

    OMP_NUM_THREADS=1 python benchmarks/against_trainer.py --data DATA --seeds 0 1 2 --epochs 3

DATA holds the folders mrpc and sts_b, which are not part of the project. Both systems get the same
base, rows, adapter, batch size, rate, warmup, schedule, decay, standardised numbers and seed, are
evaluated on the validation rows after each epoch, and keep the best. Trainer groups rows by length,
which takes a third off its time. All else is the default of each system. Above all, Trainer leaves
the frozen base's dropout on and peftcls turns it off (trainer_dropout_off is Trainer with dropout
only in the adapter and before the head). A run is a process of its own, the systems take turns at
going first, and a run that results/ holds is not repeated.
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
from pathlib import Path
from typing import Any

import numpy as np
from real_data import commit, minilm_folder, versions
from scipy import stats

HERE = Path(__file__).parent
PAIR = ("sentence1", "sentence2")
TARGET = {"mrpc": "label", "sts_b": "score"}
MONITOR = {"mrpc": "accuracy", "sts_b": "pearson"}
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
# A row or two may move by rounding.
MAX_SCORE_DIFFERENCE = 0.5
Rows = list[dict[str, str]]


def read_table(data: Path, task: str, split: str, rows: int | None = None) -> Rows:
    """The sentence pairs of a file and their targets; `rows` of them, drawn once for all runs."""
    columns = (*PAIR, TARGET[task])
    with (data / task / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        table = [{name: row[name] for name in columns} for row in csv.DictReader(file)]
    if rows and rows < len(table):
        return random.Random(0).sample(table, rows)
    return table


def with_peftcls(s: dict[str, Any], train: Rows, valid: Rows, out: str) -> dict[str, Any]:
    """Train with peftcls; its answers to the validation rows."""
    from peftcls import Classification, Regression, TrainConfig, Trainer, attach_lora, load_base

    untrained: Any
    if s["task"] == "mrpc":
        untrained = Classification(text=PAIR, label="label", max_length=s["max_length"])
    else:
        untrained = Regression(text=PAIR, target="score", max_length=s["max_length"])
    task = untrained.learn(train)
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
    clocks = (time.perf_counter(), time.process_time())
    with Trainer(model, task, tokenizer, config) as trainer:
        trainer.fit(train, valid)
        spent = costs(*clocks)
        answers = []
        for answer in trainer.predict(valid):
            answers.append(answer.value if answer.label is None else float(answer.label))
    return {
        **spent,
        "answers": answers,
        "log": trainer.progress.history,
        "trained_parameters": trained_parameters(model),
    }


def with_trainer(s: dict[str, Any], train: Rows, valid: Rows, out: str) -> dict[str, Any]:
    """Train with transformers' Trainer and PEFT; its answers to the validation rows."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer

    is_classification = s["task"] == "mrpc"
    target = TARGET[s["task"]]
    numbers = [float(row[target]) for row in train]
    mean = float(np.mean(numbers))
    deviation = float(np.std(numbers))
    model = peft_model(s)
    tokenizer = AutoTokenizer.from_pretrained(s["base"])

    def encode(rows: Rows) -> Any:
        table = []
        for row in rows:
            texts = [row[name] for name in PAIR]
            encoded = tokenizer(*texts, truncation=True, max_length=s["max_length"])
            if is_classification:
                label: float = int(row[target])
            else:
                label = (float(row[target]) - mean) / deviation
            table.append({**encoded, "labels": label})
        return table

    def judge(prediction: Any) -> dict[str, float]:
        outputs = prediction.predictions
        gold = prediction.label_ids
        if is_classification:
            return {MONITOR[s["task"]]: float((outputs.argmax(1) == gold).mean())}
        return {MONITOR[s["task"]]: float(np.corrcoef(outputs[:, 0], gold)[0, 1])}

    clocks = (time.perf_counter(), time.process_time())
    train_table = encode(train)
    valid_table = encode(valid)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(s, out),
        train_dataset=train_table,
        eval_dataset=valid_table,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=judge,
    )
    trainer.train()
    trainer.save_model(out)
    spent = costs(*clocks)
    # Otherwise predict would group its rows too, and answer in another order.
    trainer.args.train_sampling_strategy = "random"
    outputs: Any = trainer.predict(valid_table).predictions
    if is_classification:
        answers = outputs.argmax(1).tolist()
    else:
        answers = (outputs[:, 0] * deviation + mean).tolist()
    return {
        **spent,
        "answers": answers,
        "log": trainer.state.log_history,
        "trained_parameters": trained_parameters(model),
    }


def peft_model(s: dict[str, Any]) -> Any:
    """The base with a head and LoRA by PEFT; without the base's dropout if the system says so."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(s["seed"])
    dropout = {}
    if s["system"] == "trainer_dropout_off":
        dropout = {
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": s["dropout"],
        }
    base = AutoModelForSequenceClassification.from_pretrained(
        s["base"],
        num_labels=2 if s["task"] == "mrpc" else 1,
        dtype=torch.float32,
        **dropout,
    )
    adapter = LoraConfig(
        task_type="SEQ_CLS",
        r=s["rank"],
        lora_alpha=s["alpha"],
        lora_dropout=s["dropout"],
        target_modules=s["targets"],
    )
    return get_peft_model(base, adapter)


def trainer_arguments(s: dict[str, Any], out: str) -> Any:
    """The settings of transformers' Trainer."""
    from transformers import TrainingArguments

    return TrainingArguments(
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
        metric_for_best_model=MONITOR[s["task"]],
        train_sampling_strategy=s["trainer_sampling"],
        seed=s["seed"],
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
    )


def trained_parameters(model: Any) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def costs(started: float, worked: float) -> dict[str, float]:
    """Seconds from rows in memory to a saved adapter, and this process's peak memory."""
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def scores(task: str, gold: list[float], answers: list[float]) -> dict[str, float]:
    """Accuracy and F1 of the label 1, or the two correlations, times 100."""
    truth = np.array(gold)
    found = np.array(answers)
    if task == "mrpc":
        both = (truth * found).sum()
        return {
            "accuracy": 100 * float((truth == found).mean()),
            "f1": 200 * float(both / (truth.sum() + found.sum())),
        }
    return {
        "pearson": 100 * float(stats.pearsonr(truth, found).statistic),
        "spearman": 100 * float(stats.spearmanr(truth, found).statistic),
    }


def measure(s: dict[str, Any], data: Path) -> dict[str, Any]:
    """One run in a process of its own, with nothing kept from others."""
    task = s["task"]
    monitor = MONITOR[task]
    found = run_in_process(s, data)
    gold = [float(row[TARGET[task]]) for row in read_table(data, task, "validation")]
    reached = scores(task, gold, found.pop("answers"))
    by_epoch = []
    for entry in found.pop("log"):
        values = [value for name, value in entry.items() if name.endswith(f"_{monitor}")]
        by_epoch += [100 * value for value in values]
    if abs(max(by_epoch) - reached[monitor]) > MAX_SCORE_DIFFERENCE:
        sys.exit(
            f"{s}: the model that was kept scores {reached}, "
            f"expected the best of its epochs, {by_epoch}."
        )
    if task == "mrpc":
        found["all_positive"] = scores(task, gold, [1.0] * len(gold))
    rows = s["epochs"] * len(read_table(data, task, "train", s["rows"]))
    return {
        **reached,
        "by_epoch": by_epoch,
        **found,
        "settings": s,
        "rows_per_second": rows / found["seconds"],
    }


def run_in_process(s: dict[str, Any], data: Path) -> dict[str, Any]:
    """What a system returned in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": f"{out}/cache",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        one = json.dumps({**s, "base": minilm_folder(), "out": out})
        command = [sys.executable, __file__, "--data", str(data), "--one", one]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            sys.exit(ended.stderr)
        found: dict[str, Any] = json.loads((Path(out) / "found.json").read_text())
        return found


def run_one(s: dict[str, Any], data: Path) -> None:
    """Run a system in this process and leave what it returns in a file."""
    train = read_table(data, s["task"], "train", s["rows"])
    valid = read_table(data, s["task"], "validation")
    found = SYSTEMS[s["system"]](s, train, valid, f"{s['out']}/run")
    (Path(s["out"]) / "found.json").write_text(json.dumps(found))


def keep(results: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Add runs to the file of results, which others may have written to, and return all of it."""
    kept = json.loads(results.read_text()) if results.is_file() else {"runs": {}}
    kept["runs"].update(new)
    kept["summary"] = summary(list(kept["runs"].values()))
    results.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By task, measure and system: the mean over seeds with its 95 % t-interval.

    Also of the difference between peftcls and each other system, by pairs of the same seed.
    """
    table: dict[str, Any] = {}
    for task, name, system in itertools.product(TARGET, MEASURES, SYSTEMS):
        ours = by_seed(runs, task, "peftcls", name)
        theirs = by_seed(runs, task, system, name)
        if theirs:
            table[f"{task} {name} {system}"] = described(theirs)
        if system == "peftcls":
            continue
        differences = {seed: ours[seed] - theirs[seed] for seed in theirs if seed in ours}
        if differences:
            table[f"{task} {name} peftcls less {system}"] = described(differences)
    all_positive = [run["all_positive"] for run in runs if "all_positive" in run]
    if all_positive:
        for name, score in all_positive[0].items():
            table[f"mrpc {name} all rows positive"] = {"mean": score, "interval": None}
    return table


def by_seed(runs: list[dict[str, Any]], task: str, system: str, measure: str) -> dict[int, float]:
    """A measure of a system's runs of a task, by their seeds."""
    values = {}
    for run in runs:
        settings = run["settings"]
        if measure in run and settings["task"] == task and settings["system"] == system:
            values[settings["seed"]] = run[measure]
    return values


def described(by_seed: dict[int, float]) -> dict[str, Any]:
    """Mean and 95 % t-interval; no interval of a single value."""
    values = list(by_seed.values())
    mean = float(np.mean(values))
    interval = None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "by_seed": by_seed}


SYSTEMS = {"peftcls": with_peftcls, "trainer": with_trainer, "trainer_dropout_off": with_trainer}


def run_all(options: argparse.Namespace) -> None:
    """Run what the file of results does not hold yet, and print the summary."""
    machine = {
        "commit": commit(),
        "processor": platform.processor() or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **versions("torch", "transformers", "peft", "accelerate"),
    }
    chosen = {name: vars(options)[name] for name in ("epochs", "learning_rate", "rows")}
    for task, seed in itertools.product(options.tasks, options.seeds):
        direction = -1 if seed % 2 else 1
        for system in options.systems[::direction]:
            settings = {"task": task, "system": system, "seed": seed, **chosen, **SHARED}
            name = f"{task} {system} seed {seed}"
            runs = keep(options.results, {})["runs"]
            if runs.get(name, {}).get("settings") == settings:
                continue
            run = {**measure(settings, options.data), **machine}
            rounded = {key: round(run[key], 2) for key in MEASURES if key in run}
            print(name, rounded, run["by_epoch"], flush=True)
            keep(options.results, {name: run})
    for name, line in keep(options.results, {})["summary"].items():
        interval = " to ".join(f"{end:.2f}" for end in line["interval"] or [])
        print(f"{name:>52} {line['mean']:10.2f}   {interval}")


def main() -> None:
    """Run one system in this process, or all in turn."""
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
    if options.one is None:
        run_all(options)
    else:
        run_one(options.one, options.data)


if __name__ == "__main__":
    main()

"""Extractive question answering beside transformers' Trainer + PEFT: the same base, rows, epochs, batches and LoRA.

    python benchmarks/squad_against_trainer.py --data DATA --rows 1200 --test-rows 400 --epochs 2 --seeds 0

DATA holds the folder squad, which is not part of the project. The other side is prepared as the library's own examples
do it: windows with a stride, each a training row of its own, ends on the first token where a window lacks the answer,
and the best pair of ends over all windows at the end. Each run is a process of its own; results go to
benchmarks/results/squad_against_trainer.json, and a run that is there with the same settings is not run again.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from real_data import minilm_folder
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import peftcls
from peftcls.metrics import interval, span_f1, span_scores

RESULTS = Path(__file__).parent / "results" / "squad_against_trainer.json"
SETTINGS: dict[str, Any] = {
    "max_length": 256,
    "stride": 64,
    "rank": 8,
    "alpha": 16,
    "dropout": 0.05,
    "targets": ["query", "value"],
    "learning_rate": 2e-3,
    "batch_size": 16,
    "warmup": 0.06,
    "weight_decay": 0.01,
    "max_answer_tokens": 30,
}
N_BEST = 20


def with_peftcls(train: Any, test: Any, epochs: int, seed: int) -> tuple[list[str], float]:
    """The answers of peftcls, and the processor seconds of its training."""
    s = SETTINGS
    task = peftcls.ExtractiveQA(
        max_length=s["max_length"], stride=s["stride"], max_answer_tokens=s["max_answer_tokens"]
    ).learn(train)
    model, tokenizer = peftcls.load_base(minilm_folder(), task, seed=seed)
    model = peftcls.attach_lora(
        model,
        task,
        rank=s["rank"],
        alpha=s["alpha"],
        dropout=s["dropout"],
        targets=s["targets"],
        seed=seed,
    )
    config = peftcls.TrainConfig(
        tempfile.mkdtemp(),
        epochs=epochs,
        batch_size=s["batch_size"],
        learning_rate=s["learning_rate"],
        warmup=s["warmup"],
        weight_decay=s["weight_decay"],
        seed=seed,
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    started = time.process_time()
    trainer.fit(train)
    seconds = time.process_time() - started
    return [answer.text or "" for answer in trainer.predict(test)], seconds


def with_trainer(train: Any, test: Any, epochs: int, seed: int) -> tuple[list[str], float]:
    """The answers of transformers' Trainer + PEFT, and the processor seconds of its training."""
    s = SETTINGS
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModelForQuestionAnswering.from_pretrained(minilm_folder())
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="QUESTION_ANS",
            r=s["rank"],
            lora_alpha=s["alpha"],
            lora_dropout=s["dropout"],
            target_modules=s["targets"],
        ),
    )

    def windows(rows: dict[str, list]) -> dict[str, list]:
        found = tokenizer(
            [q.strip() for q in rows["question"]],
            rows["context"],
            truncation="only_second",
            max_length=s["max_length"],
            stride=s["stride"],
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length",
        )
        found["start_positions"], found["end_positions"] = [], []
        for line, row in enumerate(found["overflow_to_sample_mapping"]):
            answers, parts, offsets = (
                rows["answers"][row],
                found.sequence_ids(line),
                found["offset_mapping"][line],
            )
            start = answers["answer_start"][0]
            end = start + len(answers["text"][0])
            own = [i for i, part in enumerate(parts) if part == 1]
            first = next((i for i in own if offsets[i][0] <= start < offsets[i][1]), 0)
            last = next((i for i in own if offsets[i][0] < end <= offsets[i][1]), 0)
            found["start_positions"].append(first if first and last else 0)
            found["end_positions"].append(last if first and last else 0)
        found["row"] = found.pop("overflow_to_sample_mapping")
        found["offset_mapping"] = [
            [
                o if part == 1 else None
                for o, part in zip(offsets, found.sequence_ids(line), strict=True)
            ]
            for line, offsets in enumerate(found["offset_mapping"])
        ]
        return dict(found)

    encoded = train.map(windows, batched=True, remove_columns=train.column_names)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=s["batch_size"],
        seed=seed,
        learning_rate=s["learning_rate"],
        weight_decay=s["weight_decay"],
        warmup_steps=s["warmup"],
        lr_scheduler_type="linear",
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        logging_steps=50,
    )
    rows = encoded.remove_columns(["row", "offset_mapping"])
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=default_data_collator)
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    held = test.map(windows, batched=True, batch_size=len(test), remove_columns=test.column_names)
    starts, ends = trainer.predict(
        held.remove_columns(["row", "offset_mapping", "start_positions", "end_positions"])
    ).predictions
    best = [("", -np.inf)] * len(test)
    for line in range(len(held)):
        row, offsets = held[line]["row"], held[line]["offset_mapping"]
        for a in np.argsort(starts[line])[::-1][:N_BEST]:
            for b in np.argsort(ends[line])[::-1][:N_BEST]:
                legal = (
                    offsets[a] is not None
                    and offsets[b] is not None
                    and a <= b < a + s["max_answer_tokens"]
                )
                if legal and (score := starts[line][a] + ends[line][b]) > best[row][1]:
                    best[row] = (test[row]["context"][offsets[a][0] : offsets[b][1]], score)
    return [text for text, _ in best], seconds


SYSTEMS = {"peftcls": with_peftcls, "trainer": with_trainer}


def one_run(
    data: Path, system: str, rows: int, test_rows: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Scores of one system with their intervals, its seconds and its memory."""
    random = np.random.default_rng(seed)
    train, test = (
        peftcls.read_rows(data / "squad" / f"{part}.json") for part in ("train", "validation")
    )
    train = train.select(random.permutation(len(train))[:rows])
    test = test.select(np.random.default_rng(0).permutation(len(test))[:test_rows])
    answers, seconds = SYSTEMS[system](train, test, epochs, seed)
    gold = [row["answers"]["text"] for row in test]
    by_row = {
        "f1": [span_f1(text, right) for text, right in zip(answers, gold, strict=True)],
        "exact_match": [
            span_scores([right], [text])["exact_match"]
            for text, right in zip(answers, gold, strict=True)
        ],
    }
    return {
        "scores": span_scores(gold, answers),
        "by_row": by_row,
        "train_cpu_seconds": round(seconds, 1),
        "intervals": {
            name: interval(lambda x: float(np.mean(x)), values) for name, values in by_row.items()
        },
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--one", choices=sorted(SYSTEMS), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if not (o.data / "squad").is_dir():
        sys.exit(f"there is no folder {o.data / 'squad'}; give --data the folder that holds squad.")
    if o.one:
        print(json.dumps(one_run(o.data, o.one, o.rows, o.test_rows, o.epochs, o.seeds[0])))
        sys.exit()
    settings = {
        **SETTINGS,
        "rows": o.rows,
        "test_rows": o.test_rows,
        "epochs": o.epochs,
        "base": "MiniLM-L6",
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }
    for seed in o.seeds:
        for system in sorted(SYSTEMS, reverse=bool(seed % 2)):
            results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            if results.get(key := f"{system} seed {seed}", {}).get("settings") == settings:
                continue
            command = [
                sys.executable,
                __file__,
                "--data",
                str(o.data),
                "--rows",
                str(o.rows),
                "--test-rows",
                str(o.test_rows),
                "--epochs",
                str(o.epochs),
                "--seeds",
                str(seed),
                "--one",
                system,
            ]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                sys.exit(ended.stderr)
            results[key] = {**json.loads(ended.stdout.splitlines()[-1]), "settings": settings}
            one, two = (results.get(f"{name} seed {seed}") for name in ("peftcls", "trainer"))
            if one and two:
                pairs = list(zip(one["by_row"]["f1"], two["by_row"]["f1"], strict=True))
                results[f"f1 of peftcls minus trainer, seed {seed}"] = [
                    one["scores"]["f1"] - two["scores"]["f1"],
                    *interval(lambda p: float(np.mean([a - b for a, b in p])), pairs),
                ]
            RESULTS.write_text(json.dumps(results) + "\n")
            print(
                key,
                results[key]["scores"],
                results[key]["intervals"],
                results[key]["train_cpu_seconds"],
                flush=True,
            )

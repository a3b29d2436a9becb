"""Extractive question answering by peftcls and by transformers' Trainer + PEFT.

    python benchmarks/squad_against_trainer.py --data DATA --rows 1200 --test-rows 400 --seeds 0

DATA holds the folder squad, which is not part of the project. Both have the same base, rows,
epochs, batches and LoRA. The other side is prepared as the library's own examples do it: windows
with a stride, each a training row of its own, ends on the first token where a window lacks the
answer, and the best pair of ends over all windows at the end. Each run is a process of its own;
results go to benchmarks/results/squad_against_trainer.json, and a run that is there with the same
settings is not run again.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from real_data import minilm_folder, versions
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
    base = AutoModelForQuestionAnswering.from_pretrained(minilm_folder())
    adapter = LoraConfig(
        task_type="QUESTION_ANS",
        r=s["rank"],
        lora_alpha=s["alpha"],
        lora_dropout=s["dropout"],
        target_modules=s["targets"],
    )
    model = get_peft_model(base, adapter)

    def windows(rows: dict[str, list]) -> dict[str, list]:
        return encode_windows(tokenizer, rows)

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
    test_windows = test.map(
        windows, batched=True, batch_size=len(test), remove_columns=test.column_names
    )
    return best_texts(trainer, test_windows, test), seconds


def encode_windows(tokenizer: Any, rows: dict[str, list]) -> dict[str, list]:
    """Questions with windows of their contexts, and the tokens where the answers begin and end."""
    encoded = tokenizer(
        [question.strip() for question in rows["question"]],
        rows["context"],
        truncation="only_second",
        max_length=SETTINGS["max_length"],
        stride=SETTINGS["stride"],
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
    )
    encoded["start_positions"] = []
    encoded["end_positions"] = []
    context_offsets = []
    row_numbers = encoded.pop("overflow_to_sample_mapping")
    for window, row in enumerate(row_numbers):
        parts = encoded.sequence_ids(window)
        # None outside of the context.
        offsets = [
            pair if part == 1 else None
            for pair, part in zip(encoded["offset_mapping"][window], parts, strict=True)
        ]
        first, last = answer_tokens(rows["answers"][row], offsets)
        encoded["start_positions"].append(first)
        encoded["end_positions"].append(last)
        context_offsets.append(offsets)
    encoded["row"] = row_numbers
    encoded["offset_mapping"] = context_offsets
    return dict(encoded)


def answer_tokens(answers: dict[str, list], offsets: list[Any]) -> tuple[int, int]:
    """The first and last token of the first answer; (0, 0) where the window lacks one of them."""
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = 0
    last = 0
    for token, pair in enumerate(offsets):
        if pair is None:
            continue
        if not first and pair[0] <= start < pair[1]:
            first = token
        if not last and pair[0] < end <= pair[1]:
            last = token
    return (first, last) if first and last else (0, 0)


def best_texts(trainer: Trainer, windows: Any, test: Any) -> list[str]:
    """For each row, the span with the highest sum of start and end logits over all its windows."""
    removed = ["row", "offset_mapping", "start_positions", "end_positions"]
    starts, ends = trainer.predict(windows.remove_columns(removed)).predictions
    texts = [""] * len(test)
    scores = [-np.inf] * len(test)
    for window, encoded in enumerate(windows):
        row = encoded["row"]
        offsets = encoded["offset_mapping"]
        for first in np.argsort(starts[window])[::-1][:N_BEST]:
            for last in np.argsort(ends[window])[::-1][:N_BEST]:
                if not is_span(offsets, first, last):
                    continue
                score = starts[window][first] + ends[window][last]
                if score > scores[row]:
                    scores[row] = score
                    texts[row] = test[row]["context"][offsets[first][0] : offsets[last][1]]
    return texts


def is_span(offsets: list[Any], first: int, last: int) -> bool:
    """Whether two tokens are in the context, in their order, and not too far apart."""
    if offsets[first] is None or offsets[last] is None:
        return False
    return first <= last < first + SETTINGS["max_answer_tokens"]


SYSTEMS = {"peftcls": with_peftcls, "trainer": with_trainer}


def one_run(
    data: Path, system: str, rows: int, test_rows: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Scores of one system with their intervals, its seconds and its memory."""
    random = np.random.default_rng(seed)
    train = peftcls.read_rows(data / "squad" / "train.json")
    test = peftcls.read_rows(data / "squad" / "validation.json")
    train = train.select(random.permutation(len(train))[:rows])
    test = test.select(np.random.default_rng(0).permutation(len(test))[:test_rows])
    answers, seconds = SYSTEMS[system](train, test, epochs, seed)
    gold = [row["answers"]["text"] for row in test]
    pairs = list(zip(answers, gold, strict=True))
    by_row = {
        "f1": [span_f1(text, right) for text, right in pairs],
        "exact_match": [span_scores([right], [text])["exact_match"] for text, right in pairs],
    }
    intervals = {}
    for name, values in by_row.items():
        intervals[name] = interval(lambda sample: float(np.mean(sample)), values)
    return {
        "scores": span_scores(gold, answers),
        "by_row": by_row,
        "train_cpu_seconds": round(seconds, 1),
        "intervals": intervals,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def add_difference(results: dict[str, Any], seed: int) -> None:
    """Add the difference in F1 of the two systems with its interval, if both runs are there."""
    ours = results.get(f"peftcls seed {seed}")
    theirs = results.get(f"trainer seed {seed}")
    if not ours or not theirs:
        return
    pairs = list(zip(ours["by_row"]["f1"], theirs["by_row"]["f1"], strict=True))

    def mean_difference(sample: Any) -> float:
        return float(np.mean([a - b for a, b in sample]))

    results[f"f1 of peftcls minus trainer, seed {seed}"] = [
        ours["scores"]["f1"] - theirs["scores"]["f1"],
        *interval(mean_difference, pairs),
    ]


def run_all(options: argparse.Namespace) -> None:
    """Run what the file of results does not hold yet, each in a process of its own."""
    settings = {
        **SETTINGS,
        "rows": options.rows,
        "test_rows": options.test_rows,
        "epochs": options.epochs,
        "base": "MiniLM-L6",
        **versions("torch", "transformers", "peft"),
    }
    for seed in options.seeds:
        for system in sorted(SYSTEMS, reverse=bool(seed % 2)):
            key = f"{system} seed {seed}"
            results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            if results.get(key, {}).get("settings") == settings:
                continue
            command = [sys.executable, __file__, "--one", system, "--data", str(options.data)]
            command += ["--rows", str(options.rows), "--test-rows", str(options.test_rows)]
            command += ["--epochs", str(options.epochs), "--seeds", str(seed)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                sys.exit(ended.stderr)
            result = {**json.loads(ended.stdout.splitlines()[-1]), "settings": settings}
            results[key] = result
            add_difference(results, seed)
            RESULTS.write_text(json.dumps(results) + "\n")
            print(key, result["scores"], result["intervals"], flush=True)
            print(f"{result['train_cpu_seconds']} processor seconds", flush=True)


def main() -> None:
    """Run one system in this process, or all in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--one", choices=sorted(SYSTEMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    squad = options.data / "squad"
    if not squad.is_dir():
        sys.exit(f"there is no folder {squad}; give --data the folder that holds squad.")
    if not options.one:
        run_all(options)
        return
    found = one_run(
        options.data,
        options.one,
        options.rows,
        options.test_rows,
        options.epochs,
        options.seeds[0],
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

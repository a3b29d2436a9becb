"""What windows, balanced training, fitted thresholds and a fitted temperature each give.

    python benchmarks/decisions_and_windows.py --data DATA --only windows rare_label --seeds 0 1 2

DATA holds the folders imdb and sms_spam; they are not part of the project. The multi-label table is
generated here, with known noise. Results go to benchmarks/results/decisions_and_windows.json, a run
by its name and seed, and are not run again while they are there.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from real_data import commit, minilm_folder

from peftcls import (
    Classification,
    TrainConfig,
    Trainer,
    attach_lora,
    compare_answers,
    evaluate_answers,
    load_base,
    read_rows,
)
from peftcls.data.reading import as_dataset
from peftcls.tasks.base import Answer, Task

RESULTS = Path(__file__).parent / "results" / "decisions_and_windows.json"
IMDB_ROWS = 600
IMDB_VALID_ROWS = 400
SPAM_SHARE = 0.05
TRAIN_ROWS = 400
TEST_ROWS = 1200
TOPICS = {
    "cardiology": "heart valve artery pulse pacemaker",
    "oncology": "tumour biopsy cancer metastasis chemotherapy",
    "imaging": "scan radiograph contrast tomography lesion",
    "nutrition": "diet vitamin calorie meal obesity",
    "ethics": "consent privacy autonomy committee duty",
    "statistics": "cohort regression sample variance trial",
}
RATES = {
    "cardiology": 0.3,
    "oncology": 0.25,
    "imaging": 0.2,
    "nutrition": 0.15,
    "ethics": 0.1,
    "statistics": 0.2,
}
FILLERS = ["the", "of", "and", "with", "was", "for", "patients"]
# The share of all label decisions that are wrong, so no system can be perfect.
FLIPPED_SHARE = 0.05


def trained(
    task: Task,
    train: datasets.Dataset,
    valid: datasets.Dataset | None,
    base: str,
    *,
    epochs: int,
    rate: float,
    seed: int,
) -> Trainer:
    """A trainer that has finished; its folder is gone with the process."""
    model, tokenizer = load_base(base, task, seed=seed)
    model = attach_lora(model, task, rank=8, alpha=16, dropout=0.05, seed=seed)
    config = TrainConfig(
        tempfile.mkdtemp(), epochs=epochs, batch_size=16, learning_rate=rate, seed=seed
    )
    trainer = Trainer(model, task, tokenizer, config)
    trainer.fit(train, valid)
    return trainer


def measured(task: Task, answers: list[Answer], rows: datasets.Dataset) -> dict[str, Any]:
    """Scores and their 95 % intervals."""
    evaluation = evaluate_answers(task, answers, rows)
    return {"scores": evaluation.scores, "intervals": evaluation.intervals}


def windows(data: Path, seed: int) -> dict[str, Any]:
    """IMDB reviews cut at 128 tokens against the same reviews in windows of 128."""
    random = np.random.default_rng(seed)
    train = read_rows(data / "imdb" / "train.csv")
    valid = read_rows(data / "imdb" / "validation.csv")
    train = train.select(random.permutation(len(train))[:IMDB_ROWS])
    valid = valid.select(np.random.default_rng(0).permutation(len(valid))[:IMDB_VALID_ROWS])
    answers = {}
    out = {}
    for long_text in ("truncate", "windows"):
        task = Classification(max_length=128, long_text=long_text).learn(train)
        started = time.perf_counter()
        trainer = trained(task, train, None, minilm_folder(), epochs=3, rate=2e-3, seed=seed)
        answers[long_text] = trainer.predict(valid)
        scores = measured(task, answers[long_text], valid)
        out[long_text] = {**scores, "seconds": time.perf_counter() - started}
    paired = compare_answers(task, answers["windows"], answers["truncate"], valid, score="accuracy")
    return {**out, "windows minus truncate": [paired.difference, *paired.interval]}


def rare_label(data: Path, seed: int) -> dict[str, Any]:
    """SMS spam with one spam in twenty: plain, with balanced weights, with balanced sampling."""
    train, test = rare_spam(data, seed)
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "class_weight": {"class_weight": "balanced"},
        "sampling": {"sampling": "balanced"},
    }
    answers = {}
    out = {}
    for name, setting in settings.items():
        task = Classification(max_length=128, **setting).learn(train)
        trainer = trained(task, train, None, "demo", epochs=4, rate=1e-3, seed=seed)
        answers[name] = trainer.predict(test)
        out[name] = measured(task, answers[name], test)
    for name in ("class_weight", "sampling"):
        paired = compare_answers(task, answers[name], answers["plain"], test)
        out[f"{name} minus plain"] = [paired.difference, *paired.interval]
    return out


def rare_spam(data: Path, seed: int) -> list[datasets.Dataset]:
    """Training and test rows of different messages, with one spam in twenty."""
    file = data / "sms_spam" / "SMSSpamCollection.tsv"
    by_label: dict[str, set[str]] = {"ham": set(), "spam": set()}
    for line in file.read_text(encoding="utf-8").splitlines():
        label, text = line.split("\t", 1)
        if text.strip():
            by_label[label].add(text)
    random = np.random.default_rng(seed)
    texts = {label: random.permutation(sorted(by_label[label])).tolist() for label in by_label}
    tables = []
    for rows in (TRAIN_ROWS, TEST_ROWS):
        spam_rows = round(SPAM_SHARE * rows)
        chosen = []
        for label, count in (("spam", spam_rows), ("ham", rows - spam_rows)):
            chosen += [{"text": text, "label": label} for text in texts[label][:count]]
            texts[label] = texts[label][count:]
        tables.append(as_dataset(chosen))
    return tables


def several_labels(rows: int, random: np.random.Generator) -> datasets.Dataset:
    """Texts that mix words of their topics among others, with a known share of wrong labels."""
    topic_words = " ".join(TOPICS.values()).split()
    table = []
    for _ in range(rows):
        topics = [name for name, rate in RATES.items() if random.random() < rate]
        words = []
        for name in topics:
            words += random.choice(TOPICS[name].split(), 2).tolist()
        words += random.choice(topic_words, 2).tolist()
        words += random.choice(FILLERS, 8).tolist()
        labels = [name for name in RATES if (name in topics) != (random.random() < FLIPPED_SHARE)]
        table.append({"text": " ".join(random.permutation(words)), "label": labels})
    return as_dataset(table)


def thresholds(data: Path, seed: int) -> dict[str, Any]:
    """Thresholds fitted on validation rows against 0.5 for every label."""
    random = np.random.default_rng(seed)
    train = several_labels(400, random)
    valid = several_labels(400, random)
    test = several_labels(1000, random)
    task = Classification(multi_label=True, labels=tuple(RATES), max_length=64)
    trainer = trained(task, train, None, "demo", epochs=8, rate=2e-3, seed=seed)
    plain = trainer.predict(test)
    trainer.calibrate(valid)
    fitted = trainer.predict(test)
    paired = compare_answers(task, fitted, plain, test)
    return {
        "0.5": measured(task, plain, test),
        "fitted": measured(task, fitted, test),
        "thresholds": dict(trainer.task.decisions.thresholds or {}),
        "fitted minus 0.5": [paired.difference, *paired.interval],
    }


def temperature(data: Path, seed: int) -> dict[str, Any]:
    """Expected calibration error before and after a temperature is fitted on validation rows."""
    train = read_rows(data / "sms_spam" / "train.csv")
    valid = read_rows(data / "sms_spam" / "validation.csv")
    test = read_rows(data / "sms_spam" / "test.csv")
    task = Classification(text="Text", label="Label", max_length=128).learn(train)
    trainer = trained(task, train, None, "demo", epochs=6, rate=2e-3, seed=seed)
    test_before = trainer.evaluate(test)
    before, after = trainer.calibrate(valid)
    return {
        "validation": {"before": before, "after": after},
        "test": {"before": test_before, "after": trainer.evaluate(test)},
        "temperature": trainer.task.decisions.temperature,
    }


STUDIES = {
    "windows": windows,
    "rare_label": rare_label,
    "thresholds": thresholds,
    "temperature": temperature,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=sorted(STUDIES), default=sorted(STUDIES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(
            f"there is no folder {options.data}; give --data a folder with imdb and sms_spam in it."
        )
    for seed in options.seeds:
        for name in options.only:
            results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            key = f"{name} seed {seed}"
            if key in results:
                continue
            found = {**STUDIES[name](options.data, seed), "commit": commit()}
            # Read again: another process may have written since.
            results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            results[key] = found
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(key, json.dumps(found, indent=1))

"""What windows, balanced training, fitted thresholds and a fitted temperature give, each against training without it.

    python benchmarks/decisions_and_windows.py --data DATA --only windows rare_label thresholds temperature --seeds 0 1 2

DATA holds the folders imdb and sms_spam; they are not part of the project. The multi-label table is generated here, with
known noise. Results go to benchmarks/results/decisions_and_windows.json, a run by its name and seed, and are not run
again while they are there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from real_data import minilm_folder

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
IMDB_ROWS, IMDB_VALID_ROWS = 600, 400
SPAM_SHARE = 0.05
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
FLIPPED = 0.05  # of all label decisions are wrong, so no system can be perfect


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
    folder = tempfile.mkdtemp()
    trainer = Trainer(
        model,
        task,
        tokenizer,
        TrainConfig(folder, epochs=epochs, batch_size=16, learning_rate=rate, seed=seed),
    )
    trainer.fit(train, valid)
    return trainer


def measured(task: Task, answers: list[Answer], rows: datasets.Dataset) -> dict[str, Any]:
    """Scores and their 95 % intervals."""
    found = evaluate_answers(task, answers, rows)
    return {"scores": found.scores, "intervals": found.intervals}


def windows(data: Path, seed: int) -> dict[str, Any]:
    """IMDB reviews cut at 128 tokens against the same reviews in windows of 128."""
    random = np.random.default_rng(seed)
    train, valid = (read_rows(data / "imdb" / f"{part}.csv") for part in ("train", "validation"))
    train = train.select(random.permutation(len(train))[:IMDB_ROWS])
    valid = valid.select(np.random.default_rng(0).permutation(len(valid))[:IMDB_VALID_ROWS])
    answers, out = {}, {}
    for how in ("truncate", "windows"):
        task = Classification(max_length=128, long_text=how).learn(train)
        started = time.perf_counter()
        trainer = trained(task, train, None, minilm_folder(), epochs=3, rate=2e-3, seed=seed)
        answers[how] = trainer.predict(valid)
        out[how] = {**measured(task, answers[how], valid), "seconds": time.perf_counter() - started}
    paired = compare_answers(task, answers["windows"], answers["truncate"], valid, score="accuracy")
    return {**out, "windows minus truncate": [paired.difference, *paired.interval]}


def rare_label(data: Path, seed: int) -> dict[str, Any]:
    """SMS spam with one spam in twenty, trained plain, with balanced weights, and with balanced sampling."""
    table = [
        line.split("\t", 1)
        for line in (data / "sms_spam" / "SMSSpamCollection.tsv")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    random = np.random.default_rng(seed)
    texts = {
        label: random.permutation(
            sorted({t for name, t in table if name == label and t.strip()})
        ).tolist()
        for label in ("ham", "spam")
    }
    parts, start = {}, {"ham": 0, "spam": 0}
    for part, rows in (("train", 400), ("test", 1200)):
        chosen = []
        for label, count in (
            ("spam", round(SPAM_SHARE * rows)),
            ("ham", rows - round(SPAM_SHARE * rows)),
        ):
            chosen += [
                {"text": text, "label": label}
                for text in texts[label][start[label] : start[label] + count]
            ]
            start[label] += count
        parts[part] = as_dataset(chosen)
    answers, out = {}, {}
    for how, setting in (
        ("plain", {}),
        ("class_weight", {"class_weight": "balanced"}),
        ("sampling", {"sampling": "balanced"}),
    ):
        task = Classification(max_length=128, **setting).learn(parts["train"])
        answers[how] = trained(
            task, parts["train"], None, "demo", epochs=4, rate=1e-3, seed=seed
        ).predict(parts["test"])
        out[how] = measured(task, answers[how], parts["test"])
    for how in ("class_weight", "sampling"):
        paired = compare_answers(task, answers[how], answers["plain"], parts["test"])
        out[f"{how} minus plain"] = [paired.difference, *paired.interval]
    return out


def several_labels(rows: int, random: np.random.Generator) -> datasets.Dataset:
    """Texts that mix words of their topics among others, with a known share of wrong labels."""
    found = []
    for _ in range(rows):
        topics = [name for name, rate in RATES.items() if random.random() < rate]
        words = [word for name in topics for word in random.choice(TOPICS[name].split(), 2)]
        words += (
            random.choice(" ".join(TOPICS.values()).split(), 2).tolist()
            + random.choice(FILLERS, 8).tolist()
        )
        given = [name for name in RATES if (name in topics) != (random.random() < FLIPPED)]
        found.append({"text": " ".join(random.permutation(words)), "label": given})
    return as_dataset(found)


def thresholds(data: Path, seed: int) -> dict[str, Any]:
    """Thresholds fitted on validation rows against 0.5 for every label."""
    random = np.random.default_rng(seed)
    train, valid, test = (several_labels(rows, random) for rows in (400, 400, 1000))
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
    train, valid, test = (
        read_rows(data / "sms_spam" / f"{part}.csv") for part in ("train", "validation", "test")
    )
    task = Classification(text="Text", label="Label", max_length=128).learn(train)
    trainer = trained(task, train, None, "demo", epochs=6, rate=2e-3, seed=seed)
    held = trainer.evaluate(test)
    before, after = trainer.calibrate(valid)
    return {
        "validation": {"before": before, "after": after},
        "test": {"before": held, "after": trainer.evaluate(test)},
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
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    for seed in options.seeds:
        for name in options.only:
            results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            if (key := f"{name} seed {seed}") in results:
                continue
            found = {**STUDIES[name](options.data, seed), "commit": commit}
            results = (
                json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            )  # another run may have written since
            results[key] = found
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(key, json.dumps(found, indent=1))

"""How much is forgotten when an adapter learns new labels, with and without a share of its old rows.

    python benchmarks/learning_on.py --data DATA --seeds 0 1 2
    python benchmarks/learning_on.py --data DATA --seeds 1 --rows 400

DATA holds the folder open_text (one text a line, a file a source), which is not part of the project. The task is to tell
from a passage which source it is from: two sources are learnt first, the other two afterwards, from the saved folder, for each
of the three ways to halve four sources. Beside it stands what learning all four at once, from the start, gives: telling four
sources apart is harder than telling two. Results go to benchmarks/results/learning_on.json; what is there is not run again.
"""

import argparse
import gzip
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from peftcls import (
    Classification,
    TrainConfig,
    Trainer,
    attach_lora,
    compare_answers,
    learn_on,
    load_base,
    side_by_side,
    with_replay,
)
from peftcls.data.reading import as_dataset
from peftcls.metrics import interval

RESULTS = Path(__file__).parent / "results" / "learning_on.json"
SOURCES = ("biomedical_sentences", "covid_papers", "paper_titles", "wikipedia_paragraphs")
TEST_ROWS, WORDS = 400, 60
SHARE = 0.5


def passages(data: Path, sources: tuple[str, ...], count: int, seed: int) -> tuple[Any, Any]:
    """Training and test rows of some sources, cut at a number of words so that length tells little."""
    random, train, test = np.random.default_rng(seed), [], []
    for source in sources:
        with gzip.open(data / "open_text" / f"{source}.txt.gz", "rt", encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
        chosen = random.permutation(len(lines))[: count + TEST_ROWS]
        rows = [{"text": " ".join(lines[i].split()[:WORDS]), "label": source} for i in chosen]
        train, test = [*train, *rows[:count]], [*test, *rows[count:]]
    return as_dataset(train, "train"), as_dataset(test, "test")


def from_the_start(rows: Any, folder: Path, seed: int) -> Trainer:
    """Train an adapter for the bundled base on some rows."""
    task = Classification(max_length=128).learn(rows)
    model, tokenizer = load_base("demo", task, seed=seed)
    model = attach_lora(model, task, rank=8, alpha=16, dropout=0.05, seed=seed)
    trainer = Trainer(
        model, task, tokenizer, TrainConfig(folder, epochs=4, learning_rate=1e-3, seed=seed)
    )
    trainer.fit(rows)
    return trainer


def measure(data: Path, old: tuple[str, ...], count: int, seed: int) -> dict[str, Any]:
    """Accuracy on the old and new sources before and after the second run, with and without replay."""
    new = tuple(source for source in SOURCES if source not in old)
    (old_train, old_test), (new_train, new_test) = (
        passages(data, sources, count, seed) for sources in (old, new)
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        mixed = with_replay(new_train, old_train, share=SHARE, seed=seed)
        at_once = from_the_start(mixed, Path(folder) / "at once", seed)
        found["all at once"] = {
            "old": at_once.evaluate(old_test)["accuracy"],
            "new": at_once.evaluate(new_test)["accuracy"],
        }
        start = from_the_start(old_train, Path(folder) / "first", seed).predict(old_test)
        for how, rows in (("without replay", new_train), ("with replay", mixed)):
            model, task, tokenizer = learn_on(Path(folder) / "first", new_train)
            trainer = Trainer(
                model,
                task,
                tokenizer,
                TrainConfig(Path(folder) / how, epochs=4, learning_rate=1e-3, seed=seed),
            )
            before = {
                "old sources": trainer.evaluate(old_test),
                "new sources": trainer.evaluate(new_test),
            }
            trainer.fit(rows)
            answers = trainer.predict(old_test)
            after = {
                "old sources": trainer.task.score(answers, old_test),
                "new sources": trainer.evaluate(new_test),
            }
            print(how, side_by_side(before, after, scores=["accuracy"]), sep="\n")
            paired = compare_answers(trainer.task, answers, start, old_test, score="accuracy")
            right = [
                float(a.label == label) for a, label in zip(answers, old_test["label"], strict=True)
            ]
            found[how] = {
                "old before": before["old sources"]["accuracy"],
                "old after": after["old sources"]["accuracy"],
                "old after, interval": interval(lambda x: float(np.mean(x)), right),
                "old change": [paired.difference, *paired.interval],
                "new after": after["new sources"]["accuracy"],
            }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--rows", nargs="*", type=int, default=[150], help="training rows a source (150)"
    )
    options = parser.parse_args()
    if not (options.data / "open_text").is_dir():
        sys.exit(
            f"there is no folder {options.data / 'open_text'}; give --data the folder that holds open_text."
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    for count, seed, other in itertools.product(options.rows, options.seeds, SOURCES[:-1]):
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        runs = results.setdefault(
            f"{SOURCES[-1]} and {other} first, {count} training rows a source", {}
        )
        if f"seed {seed}" not in runs:
            found = measure(options.data, (SOURCES[-1], other), count, seed)
            runs[f"seed {seed}"] = {**found, "share of old rows": SHARE, "commit": commit}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")

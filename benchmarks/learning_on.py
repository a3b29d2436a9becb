"""How much is forgotten when an adapter learns new labels, with and without a share of old rows.

    python benchmarks/learning_on.py --data DATA --seeds 0 1 2
    python benchmarks/learning_on.py --data DATA --seeds 1 --rows 400

DATA holds the folder open_text (one text a line, a file a source), which is not part of the
project. The task is to tell from a passage which source it is from. Two sources are learnt first,
the other two afterwards, from the saved folder, for each of the three ways to halve four sources.
Beside it stands what learning all four at once, from the start, gives: four sources are harder to
tell apart than two. Results go to benchmarks/results/learning_on.json; a run that it holds is not
repeated.
"""

import argparse
import gzip
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from real_data import commit

from peftcls import (
    Classification,
    TrainConfig,
    Trainer,
    attach_lora,
    compare_answers,
    compare_scores,
    learn_on,
    load_base,
    with_replay,
)
from peftcls.data.reading import as_dataset
from peftcls.metrics import interval

RESULTS = Path(__file__).parent / "results" / "learning_on.json"
SOURCES = ("biomedical_sentences", "covid_papers", "paper_titles", "wikipedia_paragraphs")
TEST_ROWS = 400
# Passages are cut at a number of words, so that their length says little.
MAX_WORDS = 60
SHARE = 0.5


def passages(data: Path, sources: tuple[str, ...], count: int, seed: int) -> tuple[Any, Any]:
    """Training and test rows of some sources."""
    random = np.random.default_rng(seed)
    train = []
    test = []
    for source in sources:
        with gzip.open(data / "open_text" / f"{source}.txt.gz", "rt", encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
        rows = []
        for i in random.permutation(len(lines))[: count + TEST_ROWS]:
            text = " ".join(lines[i].split()[:MAX_WORDS])
            rows.append({"text": text, "label": source})
        train += rows[:count]
        test += rows[count:]
    return as_dataset(train, "train"), as_dataset(test, "test")


def train_config(folder: Path, seed: int) -> TrainConfig:
    """The settings of every run."""
    return TrainConfig(folder, epochs=4, learning_rate=1e-3, seed=seed)


def from_the_start(rows: Any, folder: Path, seed: int) -> Trainer:
    """Train an adapter for the bundled base on some rows."""
    task = Classification(max_length=128).learn(rows)
    model, tokenizer = load_base("demo", task, seed=seed)
    model = attach_lora(model, task, rank=8, alpha=16, dropout=0.05, seed=seed)
    trainer = Trainer(model, task, tokenizer, train_config(folder, seed))
    trainer.fit(rows)
    return trainer


def measure(data: Path, old: tuple[str, ...], count: int, seed: int) -> dict[str, Any]:
    """Accuracy on old and new sources before and after the second run, with and without replay."""
    new = tuple(source for source in SOURCES if source not in old)
    old_train, old_test = passages(data, old, count, seed)
    new_train, new_test = passages(data, new, count, seed)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mixed = with_replay(new_train, old_train, share=SHARE, seed=seed)
        at_once = from_the_start(mixed, folder / "at once", seed)
        found["all at once"] = {
            "old": at_once.evaluate(old_test)["accuracy"],
            "new": at_once.evaluate(new_test)["accuracy"],
        }
        first = from_the_start(old_train, folder / "first", seed)
        first_answers = first.predict(old_test)
        for name, rows in (("without replay", new_train), ("with replay", mixed)):
            model, task, tokenizer = learn_on(folder / "first", new_train)
            trainer = Trainer(model, task, tokenizer, train_config(folder / name, seed))
            print(name)
            found[name] = _continue(trainer, rows, old_test, new_test, first_answers)
    return found


def _continue(
    trainer: Trainer, rows: Any, old_test: Any, new_test: Any, first_answers: Any
) -> dict[str, Any]:
    """Accuracy before and after training on more rows, and its change on the old sources."""
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
    print(compare_scores(before, after, scores=["accuracy"]))
    change = compare_answers(trainer.task, answers, first_answers, old_test, score="accuracy")
    labels = old_test["label"]
    right = [float(a.label == label) for a, label in zip(answers, labels, strict=True)]
    return {
        "old before": before["old sources"]["accuracy"],
        "old after": after["old sources"]["accuracy"],
        "old after, interval": interval(lambda values: float(np.mean(values)), right),
        "old change": [change.difference, *change.interval],
        "new after": after["new sources"]["accuracy"],
    }


def main() -> None:
    """Run what the options name and the file of results does not hold yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--rows", nargs="*", type=int, default=[150], help="training rows a source (150)"
    )
    options = parser.parse_args()
    texts = options.data / "open_text"
    if not texts.is_dir():
        sys.exit(f"there is no folder {texts}; give --data the folder that holds open_text.")
    for count, seed, other in itertools.product(options.rows, options.seeds, SOURCES[:-1]):
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        key = f"{SOURCES[-1]} and {other} first, {count} training rows a source"
        runs = results.setdefault(key, {})
        if f"seed {seed}" not in runs:
            found = measure(options.data, (SOURCES[-1], other), count, seed)
            runs[f"seed {seed}"] = {**found, "share of old rows": SHARE, "commit": commit()}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

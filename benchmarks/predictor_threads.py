"""Threads that ask one predictor at the same time, beside one thread that asks it all.

    python benchmarks/predictor_threads.py --out benchmarks/results/predictor_threads.json

An adapter with two labels on MiniLM-L6 answers the sample messages, in calls of one text and of
sixteen. Every round asks the same calls with each number of threads, in another order, and in the
main thread of the program. Labels are compared with those of one call with all texts. Rates are
those of all rounds together; ratios are of one round to the same round of one thread.
"""

import argparse
import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from many_adapters import SIZES, write_folders
from real_data import commit, spread, versions

import peftcls
from peftcls.demo import sample

CALL_SIZES = (1, 16)
MAIN = 0
"""Stands for the main thread in the place of a number of threads."""


def ask(predictor: peftcls.Predictor, calls: list[list[str]], threads: int) -> tuple[float, list]:
    """The seconds of all calls, and their labels in order."""
    started = time.perf_counter()
    if threads == MAIN:
        answers = [predictor.predict(call) for call in calls]
    else:
        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(predictor.predict, calls))
    seconds = time.perf_counter() - started
    return seconds, [answer.label for call in answers for answer in call]


def measure(
    predictor: peftcls.Predictor, texts: list[str], size: int, options: argparse.Namespace
) -> dict[str, object]:
    """Ask with every number of threads in turn, in calls of one size."""
    calls = [texts[first : first + size] for first in range(0, len(texts), size)]
    right = [answer.label for answer in predictor.predict(texts)]
    ask(predictor, calls[:8], 1)
    seconds: dict[int, list[float]] = {threads: [] for threads in options.threads}
    wrong = dict.fromkeys(options.threads, 0)
    for turn in range(options.rounds):
        for threads in random.Random(turn).sample(options.threads, len(options.threads)):
            took, labels = ask(predictor, calls, threads)
            seconds[threads].append(took)
            wrong[threads] += sum(a != b for a, b in zip(labels, right, strict=True))
    found: dict[str, object] = {}
    for threads in options.threads:
        ratios = [a / b for a, b in zip(seconds[1], seconds[threads], strict=True)]
        name = "the main thread" if threads == MAIN else f"{threads} threads"
        found[name] = {
            "texts_a_second": round(options.rounds * len(texts) / sum(seconds[threads]), 1),
            "rate_in_units_of_one_thread": spread(ratios),
            "wrong_labels": wrong[threads],
        }
        print(size, "texts a call,", name, found[name], flush=True)
    return found


def main(options: argparse.Namespace) -> None:
    """Measure calls of each size, and write the results."""
    rows = peftcls.read_rows(sample("messages_train.csv"))
    texts = [row["text"] for row in rows][: options.texts]
    with tempfile.TemporaryDirectory() as temporary:
        write_folders(Path(temporary))
        predictor = peftcls.load_predictor(Path(temporary) / next(iter(SIZES)))
        found = {f"{size} a call": measure(predictor, texts, size, options) for size in CALL_SIZES}
    if options.out:
        settings = {
            "texts": len(texts),
            "rounds": options.rounds,
            "threads_of_a_pass": torch.get_num_threads(),
            "commit": commit(),
            **versions("torch", "transformers"),
        }
        options.out.write_text(json.dumps({"calls": found, **settings}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[MAIN, 1, 2, 4, 8])
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    main(parser.parse_args())

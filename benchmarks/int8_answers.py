"""Answers in 8-bit integers beside those of the same folder in its own precision.

    python benchmarks/int8_answers.py runs/spam labelled.csv --out benchmarks/results/int8.json

Both answer the same labelled rows in turn, all in one call and one row a call. Rates are of
processor time, so that other programs on the machine matter less; a ratio is of one round.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from real_data import commit, spread, versions

import peftcls

SINGLE_ROWS = 60


def seconds_of(predictor: peftcls.Predictor, tables: list[datasets.Dataset]) -> float:
    """The processor time of a call for each table."""
    started = time.process_time()
    for table in tables:
        predictor.predict(table)
    return time.process_time() - started


def rates(
    predictors: dict[str, peftcls.Predictor], tables: list[datasets.Dataset], rounds: int
) -> dict[str, Any]:
    """Rows a second of processor time, and the ratios of rounds to the first predictor."""
    first = next(iter(predictors))
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for turn in range(rounds + 1):
        for name, predictor in predictors.items():
            took = seconds_of(predictor, tables)
            if turn:  # the first round of all builds kernels
                seconds[name].append(took)
    rows = sum(map(len, tables))
    return {
        name: {
            "rows_a_second": round(rows / statistics.median(took), 1),
            f"rate_in_units_of_{first}": spread(
                [a / b for a, b in zip(seconds[first], took, strict=True)]
            ),
        }
        for name, took in seconds.items()
    }


def main(options: argparse.Namespace) -> None:
    """Score and time both, print what was found, and write it."""
    torch.set_num_threads(options.threads)
    rows = peftcls.read_rows(options.file)
    usual = peftcls.load_predictor(options.folder, device="cpu")
    dtype = str(next(usual.model.parameters()).dtype).removeprefix("torch.")
    predictors = {
        dtype: usual,
        "int8": peftcls.load_predictor(options.folder, int8=True),
    }
    answers = {name: predictor.predict(rows) for name, predictor in predictors.items()}
    found: dict[str, Any] = {
        "scores": {
            name: peftcls.evaluate_answers(usual.task, each, rows).scores
            for name, each in answers.items()
        },
        "same_label": sum(
            one.label == other.label for one, other in zip(*answers.values(), strict=True)
        ),
        "rows": len(rows),
        "one call": rates(predictors, [rows], options.rounds),
        "one row a call": rates(
            predictors,
            [rows.select([n]) for n in range(min(SINGLE_ROWS, len(rows)))],
            options.rounds,
        ),
        "threads": options.threads,
        "rounds": options.rounds,
        "data": options.file.name,
        "commit": commit(),
        **versions("torch", "transformers"),
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    main(parser.parse_args())

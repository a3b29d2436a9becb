"""All numbers of a report, as the JSON values that the page, the figures and `metrics.json` are made of."""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from peftcls.data.reading import source_name
from peftcls.evaluation import Comparison, Evaluation, compare_answers
from peftcls.metrics import calibration_bins
from peftcls.report.run import Run
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.regression import Regression

FORMAT = 1
MOST_POINTS = 2000  # of a scatter, and texts whose length is taken
LENGTH_BINS = 30
Numbers = dict[str, Any]


def gather_numbers(
    task: Task,
    tables: Mapping[str, datasets.Dataset],
    answers: Mapping[str, Sequence[Answer]],
    evaluations: Mapping[str, Evaluation],
    run: Run,
    *,
    count_tokens: Callable[[str], int] | None,
    resamples: int,
) -> Numbers:
    """Everything that a report tells in numbers.

    Args:
        task: whose scores are meant.
        tables: the rows by their part: "training", "validation", "test"; the test rows are those that were answered.
        answers: of each system to the test rows, the run's own first.
        evaluations: of the same systems.
        run: how the model was trained.
        count_tokens: the length of a text; without it words are counted.
        resamples: of the bootstrap that compares the run with the strongest other system.
    """
    test, own = tables["test"], next(iter(answers))
    evaluation = evaluations[own]
    gold = [task.gold_of(row) for row in test]
    found: Numbers = {
        "format": FORMAT,
        "task": task.to_json(),
        "score": task.monitor,
        "headline_scores": list(_headline(task)),
        "headline": _headline_numbers(task, test, answers, evaluations, own, resamples),
        "systems": {
            name: {score: [value, *e.intervals[score]] for score, value in e.scores.items()}
            for name, e in evaluations.items()
        },
        "rows": {
            part: {
                "source": source_name(rows),
                "rows": len(rows),
                "fingerprint": fingerprint_rows(rows),
            }
            for part, rows in tables.items()
        },
        "labels": [],
        "confusion": None,
        "calibration": _calibration(answers[own], gold, evaluation),
        "points": [],
        "lengths": _lengths(task, tables, count_tokens),
        "run": dataclasses.asdict(run),
    }
    if evaluation.labels is not None:
        learnt = Counter(label for row in tables["training"] for label in task.gold_of(row))
        found["labels"] = [
            {
                "label": str(name),
                **{str(k): float(v) for k, v in row.items() if k != "rows"},
                "rows": int(row["rows"]),
                "training rows": learnt[str(name)],
            }
            for name, row in evaluation.labels.iterrows()
        ]
    if (confusion := evaluation.confusion) is not None:
        found["confusion"] = {
            "right": confusion.index.tolist(),
            "given": confusion.columns.tolist(),
            "rows": confusion.to_numpy().tolist(),
        }
    if isinstance(task, Regression):
        chosen = _spread(len(test), MOST_POINTS)
        found["points"] = [[float(gold[i][0]), answers[own][i].value] for i in chosen]
    return _plain(found)


def _headline(task: Task) -> tuple[str, ...]:
    """The score that decides, and one beside it."""
    return tuple(dict.fromkeys((task.monitor, *task.score_names)))[:2]


def _headline_numbers(
    task: Task,
    test: datasets.Dataset,
    answers: Mapping[str, Sequence[Answer]],
    evaluations: Mapping[str, Evaluation],
    own: str,
    resamples: int,
) -> Numbers:
    score = task.monitor
    others = {name: e.scores[score] for name, e in evaluations.items() if name != own}
    if not others:
        return {"system": own, "against": None, "verdict": None}
    strongest = max(others, key=lambda name: others[name])
    found: Comparison = compare_answers(
        task, answers[own], answers[strongest], test, score=score, resamples=resamples
    )
    low, high = found.interval
    return {
        "system": own,
        "against": strongest,
        "difference": found.difference,
        "from": low,
        "to": high,
        "verdict": "ahead" if low > 0 else "behind" if high < 0 else "level",
    }


def _calibration(
    answers: Sequence[Answer], gold: Sequence[Sequence[str]], evaluation: Evaluation
) -> Numbers | None:
    if "ece" not in evaluation.scores:
        return None
    if answers[0].labels is not None:
        asked = [
            (p, name in right)
            for a, right in zip(answers, gold, strict=True)
            for name, p in (a.probabilities or {}).items()
        ]
        bins = calibration_bins(
            [max(p, 1 - p) for p, _ in asked], [(p >= 0.5) == yes for p, yes in asked]
        )
    else:
        likeliest = [
            max((a.probabilities or {}).items(), key=lambda pair: pair[1]) for a in answers
        ]
        bins = calibration_bins(
            [p for _, p in likeliest],
            [name in right for (name, _), right in zip(likeliest, gold, strict=True)],
        )
    return {
        "ece": evaluation.scores["ece"],
        "bins": bins,
        "of": "answers" if answers[0].labels is None else "yes-or-no questions",
    }


def _lengths(
    task: Task, tables: Mapping[str, datasets.Dataset], count_tokens: Callable[[str], int] | None
) -> Numbers:
    """Of each part how many texts are how long; of many rows an even sample."""
    count = count_tokens or (lambda text: len(text.split()))
    lengths = {
        part: [count(task.text_of(rows[i])) for i in _spread(len(rows), MOST_POINTS)]
        for part, rows in tables.items()
        if part != "validation"
    }
    every = [length for own in lengths.values() for length in own]
    width = max(1, math.ceil((max(every) - min(every) + 1) / LENGTH_BINS))
    edges = list(range(min(every) // width * width, max(every) + width + 1, width))
    limit = getattr(task, "max_length", None) if count_tokens else None
    return {
        "unit": "tokens" if count_tokens else "words",
        "limit": limit,
        "edges": edges,
        "parts": {
            part: {
                "median": float(np.median(own)),
                "longest": max(own),
                "counted": len(own),
                "over_limit": sum(n > limit for n in own) if limit else None,
                "rows": np.histogram(own, bins=edges)[0].tolist(),
            }
            for part, own in lengths.items()
        },
    }


def _spread(rows: int, most: int) -> list[int]:
    """All row numbers, or `most` of them evenly from first to last."""
    return (
        list(range(rows))
        if rows <= most
        else np.linspace(0, rows - 1, most).round().astype(int).tolist()
    )


def fingerprint_rows(rows: datasets.Dataset) -> str:
    """The SHA-256 of the rows' content in their order: the same for the same table, whatever file it came from."""
    found = hashlib.sha256()
    for row in rows:
        found.update(
            json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n"
        )
    return found.hexdigest()


def _plain(value: Any) -> Any:
    """JSON values alone; a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)

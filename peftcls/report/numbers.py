"""All numbers of a report, as JSON values: page, figures and `metrics.json` are made from them."""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd

from peftcls.data.reading import source_name
from peftcls.evaluation import Evaluation, compare_answers
from peftcls.metrics import MAJORITY, MEAN, NUMBER_ERROR, calibration_bins
from peftcls.report.run import Run
from peftcls.report.verdict import MAX_SEEN_SHARE, verdict_of
from peftcls.tasks.base import Answer, Task
from peftcls.tasks.splitting import same_text_key

FORMAT = 1
# Of a scatter plot, and of the texts of a table whose length is counted.
MAX_POINTS = 2000
LENGTH_BINS = 30
Numbers = dict[str, Any]
CountTokens = Callable[[str], int]


def gather_numbers(
    task: Task,
    tables: Mapping[str, datasets.Dataset],
    answers: Mapping[str, Sequence[Answer]],
    evaluations: Mapping[str, Evaluation],
    run: Run,
    *,
    count_tokens: CountTokens | None,
    resamples: int,
    crossed: bool,
) -> Numbers:
    """Gather everything that a report shows as numbers.

    Args:
        task: whose scores are meant.
        tables: the rows by their part: "training", "validation", "test"; the test rows are those
            that were answered.
        answers: of each system to the test rows, the run's own first.
        evaluations: of the same systems.
        run: how the model was trained.
        count_tokens: the length of a text; without it words are counted.
        resamples: of the bootstrap that compares the run with the strongest other system.
        crossed: whether each test row is a training row, answered by a model that did not see it.
    """
    test = tables["test"]
    own_system = next(iter(answers))
    own_answers = answers[own_system]
    evaluation = evaluations[own_system]
    gold = [task.gold_of(row) for row in test]
    numbers: Numbers = {
        "format": FORMAT,
        "task": task.to_json(),
        "score": task.monitor,
        "headline_scores": _headline_scores(task),
        "headline": _headline(task, tables, answers, evaluations, resamples, crossed=crossed),
        "systems": {name: _scores_with_intervals(e) for name, e in evaluations.items()},
        "rows": {part: _describe_rows(rows) for part, rows in tables.items()},
        "labels": _label_table(task, tables["training"], evaluation.labels),
        "confusion": _confusion(evaluation.confusion),
        "calibration": _calibration(task, own_answers, gold, evaluation),
        "points": [],
        "lengths": _lengths(task, tables, count_tokens),
        "run": dataclasses.asdict(run),
    }
    if task.answer_kind == "number":
        numbers["points"] = [
            [float(gold[i][0]), own_answers[i].value] for i in _spread(len(test), MAX_POINTS)
        ]
    return _to_json(numbers)


def _headline_scores(task: Task) -> list[str]:
    """The score that decides, and one beside it: of numbers the error, which sees their scale."""
    names = [name for name in task.score_names if name != task.monitor]
    if NUMBER_ERROR in names:
        names = [NUMBER_ERROR]
    return [task.monitor, *names[:1]]


def _headline(
    task: Task,
    tables: Mapping[str, datasets.Dataset],
    answers: Mapping[str, Sequence[Answer]],
    evaluations: Mapping[str, Evaluation],
    resamples: int,
    *,
    crossed: bool,
) -> Numbers:
    """The comparison with the best other system, and the verdict on the run."""
    test = tables["test"]
    headline = _compare_with_strongest(task, test, answers, evaluations, resamples)
    if headline["verdict"] is None:
        return headline
    seen = 0 if crossed else _count_seen(task, tables["training"], test)
    if seen > MAX_SEEN_SHARE * len(test):
        return {**headline, "verdict": "seen", "seen": seen}
    for blind in (MAJORITY, MEAN):
        if blind in evaluations and _is_no_better(task, test, answers, evaluations, blind):
            return {**headline, "verdict": "nothing", "blind": blind}
    return headline


def _count_seen(task: Task, train: datasets.Dataset, test: datasets.Dataset) -> int:
    """How many test rows have a text that was trained on, apart from case and spaces."""
    trained = {same_text_key(task.text_of(row)) for row in train}
    return sum(same_text_key(task.text_of(row)) in trained for row in test)


def _is_no_better(
    task: Task,
    test: datasets.Dataset,
    answers: Mapping[str, Sequence[Answer]],
    evaluations: Mapping[str, Evaluation],
    blind: str,
) -> bool:
    """Whether a run is no better than a system that does not read the texts."""
    own = next(iter(answers))
    if task.answer_kind == "number":
        return (
            evaluations[own].intervals[task.monitor][0] <= evaluations[blind].scores[task.monitor]
        )
    if evaluations[own].scores["accuracy"] > evaluations[blind].scores["accuracy"]:
        return False
    # Where labels are rare, a good run may have fewer answers right than the commonest label has.
    gold = [task.gold_of(row)[0] for row in test]
    return _is_chance(gold, [answer.label for answer in answers[own]])


def _is_chance(gold: Sequence[str], given: Sequence[str | None]) -> bool:
    """Whether the same answers, dealt to the rows at random, could be right as often.

    The right answers that are expected then are those of Cohen's kappa (Cohen 1960, "A Coefficient
    of Agreement for Nominal Scales").
    """
    rows = len(gold)
    right = sum(label == answer for label, answer in zip(gold, given, strict=True))
    counts = Counter(given)
    share = sum(count * counts[label] for label, count in Counter(gold).items()) / rows**2
    return right <= rows * share + 2 * math.sqrt(rows * share * (1 - share))


def _compare_with_strongest(
    task: Task,
    test: datasets.Dataset,
    answers: Mapping[str, Sequence[Answer]],
    evaluations: Mapping[str, Evaluation],
    resamples: int,
) -> Numbers:
    """Compare the run with the best other system; the verdict is a key of `verdict.TITLES`."""
    own_system = next(iter(answers))
    score = task.monitor
    other_scores = {
        name: evaluation.scores[score]
        for name, evaluation in evaluations.items()
        if name != own_system
    }
    if not other_scores:
        return {"system": own_system, "against": None, "verdict": None}
    strongest = max(other_scores, key=lambda name: other_scores[name])
    comparison = compare_answers(
        task, answers[own_system], answers[strongest], test, score=score, resamples=resamples
    )
    low, high = comparison.interval
    return {
        "system": own_system,
        "against": strongest,
        "difference": comparison.difference,
        "from": low,
        "to": high,
        "verdict": verdict_of(low, high, len(test)),
    }


def _scores_with_intervals(evaluation: Evaluation) -> Numbers:
    """Each score as value, low and high."""
    return {
        score: [value, *evaluation.intervals[score]] for score, value in evaluation.scores.items()
    }


def _describe_rows(rows: datasets.Dataset) -> Numbers:
    return {
        "source": source_name(rows),
        "rows": len(rows),
        "fingerprint": fingerprint_rows(rows),
    }


def _label_table(task: Task, train: datasets.Dataset, labels: pd.DataFrame | None) -> list[Numbers]:
    """Scores of each label, with its number of test rows and training rows."""
    if labels is None:
        return []
    training_rows: Counter[str] = Counter()
    for row in train:
        training_rows.update(task.gold_of(row))
    table = []
    for name, scores in labels.iterrows():
        entry: Numbers = {"label": str(name)}
        for score, value in scores.items():
            if score != "rows":
                entry[str(score)] = float(value)
        entry["rows"] = int(scores["rows"])
        entry["training rows"] = training_rows[str(name)]
        table.append(entry)
    return table


def _confusion(confusion: pd.DataFrame | None) -> Numbers | None:
    if confusion is None:
        return None
    return {
        "right": confusion.index.tolist(),
        "given": confusion.columns.tolist(),
        "rows": confusion.to_numpy().tolist(),
    }


def _calibration(
    task: Task,
    answers: Sequence[Answer],
    gold: Sequence[Sequence[str]],
    evaluation: Evaluation,
) -> Numbers | None:
    """The bins of a reliability diagram; None where the task has no calibration error."""
    if "ece" not in evaluation.scores:
        return None
    counted = "answers"
    if task.answer_kind == "label_set":
        counted = "yes-or-no questions"
    confidence: list[float] = []
    is_right: list[bool] = []
    for answer, right in zip(answers, gold, strict=True):
        probabilities = answer.probabilities or {}
        if task.answer_kind == "label_set":
            # Each label is a question of its own, answered with yes from 0.5 on.
            for name, probability in probabilities.items():
                confidence.append(max(probability, 1 - probability))
                is_right.append((probability >= 0.5) == (name in right))
        else:
            likeliest = max(probabilities, key=lambda name: probabilities[name])
            confidence.append(probabilities[likeliest])
            is_right.append(likeliest in right)
    return {
        "ece": evaluation.scores["ece"],
        "bins": calibration_bins(confidence, is_right),
        "of": counted,
    }


def _lengths(
    task: Task, tables: Mapping[str, datasets.Dataset], count_tokens: CountTokens | None
) -> Numbers:
    """A histogram of text lengths for training and test rows; of many rows, an even sample."""
    count: CountTokens = _count_words
    unit = "words"
    limit = None
    if count_tokens is not None:
        count = count_tokens
        unit = "tokens"
        limit = task.max_length or None
    lengths: dict[str, list[int]] = {}
    for part, rows in tables.items():
        if part != "validation":
            sample = _spread(len(rows), MAX_POINTS)
            lengths[part] = [count(task.text_of(rows[i])) for i in sample]
    shortest = min(min(of_part) for of_part in lengths.values())
    longest = max(max(of_part) for of_part in lengths.values())
    width = max(1, math.ceil((longest - shortest + 1) / LENGTH_BINS))
    edges = list(range(shortest // width * width, longest + width + 1, width))
    return {
        "unit": unit,
        "limit": limit,
        "edges": edges,
        "parts": {
            part: _describe_lengths(of_part, edges, limit) for part, of_part in lengths.items()
        },
    }


def _describe_lengths(lengths: Sequence[int], edges: Sequence[int], limit: int | None) -> Numbers:
    over_limit = None
    if limit is not None:
        over_limit = sum(length > limit for length in lengths)
    return {
        "median": float(np.median(lengths)),
        "longest": max(lengths),
        "counted": len(lengths),
        "over_limit": over_limit,
        "rows": np.histogram(lengths, bins=edges)[0].tolist(),
    }


def _count_words(text: str) -> int:
    return len(text.split())


def _spread(rows: int, most: int) -> list[int]:
    """All row numbers, or `most` of them evenly from first to last."""
    if rows <= most:
        return list(range(rows))
    return np.linspace(0, rows - 1, most).round().astype(int).tolist()


def fingerprint_rows(rows: datasets.Dataset) -> str:
    """The SHA-256 of the rows' content in their order, whatever file they came from."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=True, default=str)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _to_json(value: Any) -> Any:
    """Turn a value into one that JSON knows; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)

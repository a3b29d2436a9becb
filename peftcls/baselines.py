"""Systems without a transformer, that every score should be seen beside."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from peftcls.tasks.base import Answer, Task
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.regression import Regression
from peftcls.tasks.spans import sentence_spans
from peftcls.tasks.text_encoding import text_columns

KEYWORDS = 5


def baselines(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    """Answers of systems that need no transformer, by name; empty where the task has none.

    For labels the commonest label, and logistic regression on TF-IDF; for numbers their mean, and ridge regression on
    TF-IDF, of a pair the cosine of its TF-IDF; for spans the sentence that is nearest to the question; for lists of
    keywords the commonest of the training rows, and the terms of the highest TF-IDF in each text.
    """
    if isinstance(task, Regression):
        return _numbers(task, train, test)
    if isinstance(task, ExtractiveQA):
        return {"nearest sentence by TF-IDF": _nearest_sentences(task, train, test)}
    if getattr(task, "separator", None) is not None:
        return _keywords(task, train, test)
    if not (labels := getattr(task, "labels", None)):
        return {}
    return (_label_sets if getattr(task, "multi_label", False) else _labels)(
        task, labels, train, test
    )


def pair_similarity(
    task: Task, columns: Sequence[str], train: datasets.Dataset, test: datasets.Dataset
) -> list[Answer]:
    """For pairs of texts: logistic regression on how alike the two are, by the cosine of TF-IDF and by shared words."""
    split = TfidfVectorizer().build_analyzer()

    def alike(rows: datasets.Dataset) -> np.ndarray:
        words = [[set(split(str(row[name]))) for name in columns] for row in rows]
        shared = [len(one & two) / max(len(one | two), 1) for one, two in words]
        return np.column_stack([_cosines(columns, train, rows), shared])

    fitted = LogisticRegression(C=10, max_iter=2000).fit(
        alike(train), [task.gold_of(row)[0] for row in train]
    )
    return [
        _answer(dict(zip(fitted.classes_, row, strict=True)))
        for row in fitted.predict_proba(alike(test))
    ]


def _cosines(columns: Sequence[str], train: datasets.Dataset, rows: datasets.Dataset) -> np.ndarray:
    """The cosine of the TF-IDF of each row's two texts, as the training rows weigh words."""
    terms = TfidfVectorizer(sublinear_tf=True).fit(
        [str(row[name]) for row in train for name in columns]
    )
    first, second = (terms.transform([str(row[name]) for row in rows]) for name in columns)
    return np.asarray(first.multiply(second).sum(1)).ravel()


def _labels(
    task: Task, labels: Sequence[str], train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    texts, unseen = _texts(task, train, test)
    names = [label for (label,) in (task.gold_of(row) for row in train)]
    shares = {label: names.count(label) / len(names) for label in labels}
    majority = {"majority": [_answer(shares)] * len(test)}
    regression = make_pipeline(
        TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    try:
        regression.fit(texts, names)
    except ValueError:  # texts without a word (signs and emoji alone) have no TF-IDF
        return majority
    scored = [
        {**dict.fromkeys(shares, 0.0), **dict(zip(regression.classes_, row, strict=True))}
        for row in regression.predict_proba(unseen)
    ]
    return {"TF-IDF + logistic regression": [_answer(p) for p in scored], **majority}


def _label_sets(
    task: Task, labels: Sequence[str], train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    texts, unseen = _texts(task, train, test)
    truth = np.array([[label in task.gold_of(row) for label in labels] for row in train], dtype=int)
    asked = np.flatnonzero(
        (truth.min(0) == 0) & (truth.max(0) == 1)
    )  # a label that all rows have, or none, needs no model
    table = np.tile(truth.mean(0), (len(test), 1))
    common = [_answer_set(labels, row) for row in table]
    if not len(asked):
        return {"commonest labels": common}
    regression = make_pipeline(
        TfidfVectorizer(sublinear_tf=True),
        OneVsRestClassifier(LogisticRegression(C=10, max_iter=2000)),
    )
    try:
        regression.fit(texts, truth[:, asked] if len(asked) > 1 else truth[:, asked[0]])
    except ValueError:
        return {"commonest labels": common}
    found = regression.predict_proba(unseen)
    table[:, asked] = found if len(asked) > 1 else found[:, 1:]
    return {
        "TF-IDF + logistic regression": [_answer_set(labels, row) for row in table],
        "commonest labels": common,
    }


def _numbers(
    task: Regression, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    texts, unseen = _texts(task, train, test)
    numbers = [float(row[task.target]) for row in train]
    found: dict[str, list[Answer]] = {"mean": [Answer(value=float(np.mean(numbers)))] * len(test)}
    columns = text_columns(task.text)
    try:
        if len(columns) == 2:
            found = {
                "TF-IDF cosine": [Answer(value=float(v)) for v in _cosines(columns, train, test)],
                **found,
            }
        else:
            ridge = make_pipeline(TfidfVectorizer(sublinear_tf=True), Ridge()).fit(texts, numbers)
            found = {
                "TF-IDF + ridge regression": [
                    Answer(value=float(v)) for v in ridge.predict(unseen)
                ],
                **found,
            }
    except ValueError:
        pass
    return found


def _nearest_sentences(
    task: ExtractiveQA, train: datasets.Dataset, test: datasets.Dataset
) -> list[Answer]:
    terms = TfidfVectorizer(sublinear_tf=True).fit(
        [*train[task.context], *test[task.context], *test[task.question]]
    )
    found = []
    for row in test:
        context = row[task.context]
        spans = [(a, b) for a, b in sentence_spans(context) if context[a:b].strip()]
        near = (
            terms.transform([context[a:b] for a, b in spans])
            @ terms.transform([row[task.question]]).T
        )
        a, b = spans[int(near.toarray().argmax())]
        found.append(Answer(text=context[a:b].strip(), start=a, end=b))
    return found


def _keywords(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    texts, unseen = _texts(task, train, test)
    common = tuple(
        k for k, _ in Counter(k for row in train for k in task.gold_of(row)).most_common(KEYWORDS)
    )
    terms = TfidfVectorizer(stop_words="english", ngram_range=(1, 3), sublinear_tf=True).fit(texts)
    names, table = terms.get_feature_names_out(), terms.transform(unseen)
    best = [tuple(names[i] for i in row.toarray()[0].argsort()[::-1][:KEYWORDS]) for row in table]
    return {
        "commonest keywords": [Answer(labels=common)] * len(test),
        "highest TF-IDF": [Answer(labels=b) for b in best],
    }


def _texts(task: Task, *tables: datasets.Dataset) -> list[list[str]]:
    return [[task.text_of(row) for row in rows] for rows in tables]


def _answer(probabilities: Mapping[Any, float]) -> Answer:
    shares = {str(name): float(p) for name, p in probabilities.items()}
    return Answer(label=max(shares, key=lambda name: shares[name]), probabilities=shares)


def _answer_set(labels: Sequence[str], row: np.ndarray) -> Answer:
    return Answer(
        labels=tuple(name for name, p in zip(labels, row, strict=True) if p >= 0.5),
        probabilities=dict(zip(labels, map(float, row), strict=True)),
    )

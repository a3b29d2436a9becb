"""Baselines without a transformer: majority class, TF-IDF with regression, nearest sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from peftcls.metrics import MAJORITY, MEAN, label_table
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.tasks.spans import sentence_spans

KEYWORDS_PER_ROW = 5
MAX_TRAIN_ROWS = 100_000
"""Of a longer table so many rows are drawn at random: their texts and words are in memory."""


def baselines(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    """The answers of baselines to the test rows, by name; empty if the task has no baseline.

    For labels: the most common label, and logistic regression on TF-IDF. For numbers: their mean,
    and ridge regression on TF-IDF, or for a pair of texts the cosine of their TF-IDF. For spans:
    the sentence that is nearest to the question. For keywords: the most common ones of the
    training rows, and the terms with the highest TF-IDF in each text.

    Args:
        task: what the rows mean.
        train: the rows to fit on; of more than 100,000, so many are drawn at random.
        test: the rows to answer.
    """
    train = _at_most(MAX_TRAIN_ROWS, train)
    needs_labels = task.answer_kind in ("label", "label_set")
    if needs_labels and not task.labels:
        return {}
    match task.answer_kind:
        case "label":
            return _label_baselines(task, train, test)
        case "label_set":
            return _label_set_baselines(task, train, test)
        case "number":
            return _number_baselines(task, train, test)
        case "span":
            return {"nearest sentence by TF-IDF": _nearest_sentences(task, train, test)}
        case "keywords":
            return _keyword_baselines(task, train, test)
        case "text":
            return {}


def _at_most(rows: int, table: datasets.Dataset) -> datasets.Dataset:
    """A table, or so many of its rows, in their order."""
    if len(table) <= rows:
        return table
    drawn = np.random.default_rng(0).choice(len(table), rows, replace=False)
    return table.select(np.sort(drawn))


# Labels


def _label_baselines(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    labels = task.labels or ()
    gold = [task.gold_of(row)[0] for row in train]
    shares = {label: gold.count(label) / len(gold) for label in labels}
    majority = {MAJORITY: [_label_answer(shares)] * len(test)}
    regression = _on_tfidf(LogisticRegression(C=10, max_iter=2000))
    try:
        regression.fit(_texts(task, train), gold)
    except ValueError:
        # Texts without a word (only signs or emoji) have no TF-IDF.
        return majority
    answers = []
    for probabilities in regression.predict_proba(_texts(task, test)):
        by_label = dict.fromkeys(labels, 0.0)
        by_label |= zip(regression.classes_, probabilities, strict=True)
        answers.append(_label_answer(by_label))
    return {"TF-IDF + logistic regression": answers, **majority}


def _label_set_baselines(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    labels = task.labels or ()
    truth = label_table([task.gold_of(row) for row in train], labels)
    # Of shape (test rows, labels): the share of each label in the training rows.
    table = np.tile(truth.mean(0), (len(test), 1))
    common = [_label_set_answer(labels, row) for row in table]
    # A label that all rows have, or none, needs no model.
    varied = np.flatnonzero((truth.min(0) == 0) & (truth.max(0) == 1))
    if not len(varied):
        return {"commonest labels": common}
    is_single = len(varied) == 1
    targets = truth[:, varied[0]] if is_single else truth[:, varied]
    regression = _on_tfidf(OneVsRestClassifier(LogisticRegression(C=10, max_iter=2000)))
    try:
        regression.fit(_texts(task, train), targets)
    except ValueError:
        return {"commonest labels": common}
    probabilities = regression.predict_proba(_texts(task, test))
    # For a single label the columns are "no" and "yes".
    table[:, varied] = probabilities[:, 1:] if is_single else probabilities
    answers = [_label_set_answer(labels, row) for row in table]
    return {"TF-IDF + logistic regression": answers, "commonest labels": common}


def pair_similarity(
    task: Task, columns: Sequence[str], train: datasets.Dataset, test: datasets.Dataset
) -> list[Answer]:
    """Answers for pairs of texts: logistic regression on how similar the two texts are.

    Similarity is the cosine of their TF-IDF, and the share of words that both have.

    Args:
        task: with one label a row.
        columns: of the two texts.
        train: the rows to fit on.
        test: the rows to answer.
    """
    gold = [task.gold_of(row)[0] for row in train]
    fitted = LogisticRegression(C=10, max_iter=2000)
    fitted.fit(_pair_features(columns, train, train), gold)
    answers = []
    for probabilities in fitted.predict_proba(_pair_features(columns, train, test)):
        answers.append(_label_answer(dict(zip(fitted.classes_, probabilities, strict=True))))
    return answers


def _pair_features(
    columns: Sequence[str], train: datasets.Dataset, rows: datasets.Dataset
) -> np.ndarray:
    """The similarity of each row's two texts: an array of shape (rows, 2)."""
    words_of = TfidfVectorizer().build_analyzer()
    shared = []
    for row in rows:
        first, second = (set(words_of(str(row[name]))) for name in columns)
        shared.append(len(first & second) / max(len(first | second), 1))
    return np.column_stack([_cosines(columns, train, rows), shared])


def _cosines(columns: Sequence[str], train: datasets.Dataset, rows: datasets.Dataset) -> np.ndarray:
    """The cosine of the TF-IDF of each row's two texts; the training rows give the weights."""
    texts = []
    for row in train:
        texts += [str(row[name]) for name in columns]
    terms = TfidfVectorizer(sublinear_tf=True).fit(texts)
    first, second = (terms.transform([str(row[name]) for row in rows]) for name in columns)
    return np.asarray(first.multiply(second).sum(1)).ravel()


# Numbers


def _number_baselines(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    numbers = [float(task.gold_of(row)[0]) for row in train]
    mean = {MEAN: [Answer(value=float(np.mean(numbers)))] * len(test)}
    columns = task.text_columns()
    try:
        if len(columns) == 2:
            name = "TF-IDF cosine"
            values = _cosines(columns, train, test)
        else:
            name = "TF-IDF + ridge regression"
            ridge = _on_tfidf(Ridge()).fit(_texts(task, train), numbers)
            values = ridge.predict(_texts(task, test))
    except ValueError:
        # Texts without a word have no TF-IDF.
        return mean
    return {name: [Answer(value=float(value)) for value in values], **mean}


# Spans and keywords


def _nearest_sentences(task: Task, train: datasets.Dataset, test: datasets.Dataset) -> list[Answer]:
    """Of each context the sentence that is nearest to the question, by the cosine of TF-IDF."""
    question_column, context_column = task.text_columns()
    terms = TfidfVectorizer(sublinear_tf=True)
    terms.fit([*train[context_column], *test[context_column], *test[question_column]])
    answers = []
    for row in test:
        context = row[context_column]
        spans = [
            (start, end) for start, end in sentence_spans(context) if context[start:end].strip()
        ]
        sentences = terms.transform([context[start:end] for start, end in spans])
        question = terms.transform([row[question_column]])
        similarity = sentences @ question.T
        start, end = spans[int(similarity.toarray().argmax())]
        answers.append(Answer(text=context[start:end].strip(), start=start, end=end))
    return answers


def _keyword_baselines(
    task: Task, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, list[Answer]]:
    counts: Counter[str] = Counter()
    for row in train:
        counts.update(task.gold_of(row))
    common = tuple(keyword for keyword, _ in counts.most_common(KEYWORDS_PER_ROW))
    terms = TfidfVectorizer(stop_words="english", ngram_range=(1, 3), sublinear_tf=True)
    terms.fit(_texts(task, train))
    names = terms.get_feature_names_out()
    answers = []
    for row in terms.transform(_texts(task, test)):
        descending = row.toarray()[0].argsort()[::-1]
        answers.append(Answer(labels=tuple(names[i] for i in descending[:KEYWORDS_PER_ROW])))
    return {
        "commonest keywords": [Answer(labels=common)] * len(test),
        "highest TF-IDF": answers,
    }


# Shared by all


def _on_tfidf(model: Any) -> Pipeline:
    """A scikit-learn model that reads the TF-IDF of texts."""
    return make_pipeline(TfidfVectorizer(sublinear_tf=True), model)


def _texts(task: Task, rows: datasets.Dataset) -> list[str]:
    return [task.text_of(row) for row in rows]


def _label_answer(probabilities: Mapping[Any, float]) -> Answer:
    by_label = {str(name): float(p) for name, p in probabilities.items()}
    return Answer(label=max(by_label, key=by_label.__getitem__), probabilities=by_label)


def _label_set_answer(labels: Sequence[str], probabilities: np.ndarray) -> Answer:
    by_label = {name: float(p) for name, p in zip(labels, probabilities, strict=True)}
    given = tuple(name for name, p in by_label.items() if p >= 0.5)
    return Answer(labels=given, probabilities=by_label)

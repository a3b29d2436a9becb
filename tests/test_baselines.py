"""Baselines on tables that are longer than what they hold in memory."""

import pytest

from peftcls import Classification, baselines
from peftcls.data.reading import as_dataset

LABELS = ("ham", "spam")


def rows(count):
    return as_dataset(
        [{"text": f"word{n} {LABELS[n % 2]}", "label": LABELS[n % 2]} for n in range(count)]
    )


@pytest.mark.parametrize(("limit", "words"), [(10, 10), (40, 40), (100, 40)])
def test_a_long_table_is_learnt_from_rows_that_are_drawn_from_all_of_it(limit, words, monkeypatch):
    read = []
    monkeypatch.setattr(baselines, "MAX_TRAIN_ROWS", limit)
    monkeypatch.setattr(
        Classification, "text_of", lambda self, row: read.append(row["text"]) or row["text"]
    )
    answers = baselines.baselines(Classification(labels=LABELS), rows(40), rows(6))
    learnt_from = {text.split()[0] for text in read[:-6]}
    assert len(learnt_from) == words
    assert max(int(word.removeprefix("word")) for word in learnt_from) >= 20
    found = [answer.label for answer in answers["TF-IDF + logistic regression"]]
    assert found == ["ham", "spam"] * 3

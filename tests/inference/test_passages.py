"""A question to many passages: BM25 ranks them, the model reads the best."""

import math

import numpy as np
import pytest
from saved_adapters import saved

from peftcls import Classification, ExtractiveQA, Passages, RowError, load_predictor

PAGES = [
    "The clinic opens at eight and closes at five.",
    "Bring your meter to every visit. The meter is read by a nurse.",
    "Feet are checked once a year.",
    "Blood is taken in the morning, before you eat.",
]


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("When does the clinic open, at eight?", 0),
        ("Who reads my METER?", 1),
        ("How often are my feet checked?", 2),
        ("Blood in the morning?", 3),
    ],
)
def test_the_most_relevant_passage_is_found(question, page):
    assert Passages(PAGES).relevance(question).argmax() == page


def test_relevance_is_bm25():
    """Against the formula of Robertson and Zaragoza, word by word."""
    texts = ["a a b", "b c c c d", "d"]
    k1, b, mean_length = 1.2, 0.75, 3.0
    rarity = {"a": math.log1p(2.5 / 1.5), "b": math.log1p(1.5 / 2.5)}
    expected = []
    for text in texts:
        words = text.split()
        room = k1 * (1 - b + b * len(words) / mean_length)
        expected.append(
            sum(rarity[w] * words.count(w) * (k1 + 1) / (words.count(w) + room) for w in "ab")
        )
    np.testing.assert_allclose(Passages(texts).relevance("A b?"), expected)


def test_scripts_without_spaces_are_searched():
    passages = Passages(["门诊八点开门", "每年检查一次脚", "请带血糖仪"])
    assert passages.relevance("什么时候检查脚").argmax() == 1


def test_answers_are_cut_from_the_passages_that_were_read(bert, tmp_path):
    rows = [{"question": "who?", "context": PAGES[0], "answers": "eight"}]
    task = ExtractiveQA(max_length=64, stride=8).learn(rows)
    predictor = load_predictor(saved(bert, tmp_path / "qa", task))
    passages = Passages([*PAGES, PAGES[0]])
    assert len(passages) == len(PAGES)
    question = "When does the clinic open?"
    found = passages.ask(predictor, question, read=2)
    best = passages.relevance(question).argsort()[::-1][:2]
    assert {each.passage for each in found} == set(best)
    assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
    for each in found:
        answer = each.answer
        assert passages.texts[each.passage][answer.start : answer.end] == answer.text
        (alone,) = predictor.predict([(question, passages.texts[each.passage])])
        assert alone.text == answer.text
        assert 0 < each.score < answer.probability


def test_what_cannot_be_asked_is_refused(bert, tmp_path):
    with pytest.raises(RowError, match="put it into a list"):
        Passages("one text")
    with pytest.raises(RowError, match="passage 1 is NoneType"):
        Passages(["a page", None])
    for texts in ([], [" ", "..."]):
        with pytest.raises(RowError, match="no passage has a word"):
            Passages(texts)
    task = Classification().learn([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    predictor = load_predictor(saved(bert, tmp_path / "labels", task))
    with pytest.raises(ValueError, match="trained for Classification"):
        Passages(PAGES).ask(predictor, "When?")


@pytest.mark.parametrize(
    ("question", "read", "message"), [(" ", 1, "question is empty"), ("When?", 0, "read=0")]
)
def test_a_question_and_a_number_are_needed(bert, tmp_path, question, read, message):
    task = ExtractiveQA(max_length=64, stride=8, unanswerable=False)
    predictor = load_predictor(saved(bert, tmp_path / "qa", task))
    with pytest.raises(ValueError, match=message):
        Passages(PAGES).ask(predictor, question, read=read)

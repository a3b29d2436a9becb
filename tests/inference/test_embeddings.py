"""`Predictor.embed`: the states that a head reads, or the mean of the last layer."""

import numpy as np
import pytest
import torch
from saved_adapters import TEXTS, saved

from peftcls import Classification, ExtractiveQA, Instruction, Regression, load_predictor
from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.head_inputs import head_layer
from peftcls.engine.model_state import unwrapped

LABELS = Classification(labels=("a", "b", "c"))
LONG = Classification(labels=("a", "b"), max_length=8, long_text="windows")
PAIRS = Classification(text=("a", "b"), labels=("a", "b"))
NUMBERS = Regression(mean=3.0, deviation=2.0)
ASKED = Instruction(template="{input}\nAnswer: ", input="text", labels=("yes", "no"))
WRITTEN = Instruction(template="{input}\nAnswer: ", input="text", max_new_tokens=4)
QA = ExtractiveQA(unanswerable=False)
QUESTIONS = [("who recovered?", text) for text in TEXTS]

HEADS = [
    pytest.param("bert", LABELS, TEXTS, id="labels"),
    pytest.param("bert", NUMBERS, TEXTS, id="numbers"),
    pytest.param("bert", LONG, TEXTS, id="windows"),
    pytest.param("bert", PAIRS, QUESTIONS, id="pairs"),
    pytest.param("gpt2", LABELS, TEXTS, id="labels, decoder"),
]
MEANS = [
    pytest.param("llama", ASKED, TEXTS, id="closed labels"),
    pytest.param("gpt2", WRITTEN, TEXTS, id="texts"),
    pytest.param("bert", QA, QUESTIONS, id="answers"),
]


@pytest.fixture
def load(request, tmp_path):
    def loaded(base, task, **settings):
        folder = tmp_path / "one"
        if not folder.exists():
            saved(request.getfixturevalue(base), folder, task, dtype=torch.float32)
        return load_predictor(folder, **settings)

    return loaded


@pytest.mark.parametrize(("base", "task", "texts"), [*HEADS, *MEANS])
def test_a_row_has_the_same_vector_alone_and_in_a_batch(base, task, texts, load):
    predictor = load(base, task)
    together = predictor.embed(texts)
    assert (together.dtype, together.shape) == (np.float32, (len(texts), 128))
    alone = np.concatenate([predictor.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, predictor.embed(texts, batch_size=2), atol=1e-5)
    plain = load(base, task, fast_paths=FastPaths(packing=False, last_layer=False))
    np.testing.assert_allclose(together, plain.embed(texts), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


@pytest.mark.parametrize(("base", "task", "texts"), HEADS)
def test_the_head_gives_its_answers_from_the_vectors(base, task, texts, load):
    predictor = load(base, task)
    vectors = torch.from_numpy(predictor.embed(texts))
    with torch.inference_mode():
        answers = predictor.task.answers_of(head_layer(predictor.model)(vectors))
    for found, expected in zip(answers, predictor.predict(texts), strict=True):
        assert found.value == pytest.approx(expected.value, abs=1e-4)
        assert (found.probabilities or {}) == pytest.approx(expected.probabilities or {}, abs=1e-5)


def test_without_a_head_the_vector_is_the_mean_of_the_last_layer(load):
    predictor = load("llama", ASKED)
    feature = predictor.task.encode({"text": TEXTS[0]}, predictor.tokenizer, with_target=False)
    ids = torch.tensor([feature["input_ids"]])
    with torch.inference_mode():
        states = unwrapped(predictor.model).base_model(ids).last_hidden_state
    np.testing.assert_allclose(predictor.embed(TEXTS)[0], states[0].mean(0), atol=1e-5)


def test_the_vectors_are_those_of_the_adapter(load, bert, tmp_path):
    other = saved(bert, tmp_path / "other", LABELS, seed=2, dtype=torch.float32)
    difference = load("bert", LABELS).embed(TEXTS) - load_predictor(other).embed(TEXTS)
    assert np.abs(difference).max() > 1e-2


def test_no_rows_have_no_vectors(load):
    assert load("bert", LABELS).embed([]).shape == (0, 128)


def test_a_wrong_row_is_refused(load):
    with pytest.raises(ValueError, match=r"row 2 of rows has no text in column 'text'"):
        load("bert", LABELS).embed(["a", " "])


def test_answers_are_the_same_after_the_vectors_were_read(load):
    predictor = load("bert", LABELS)
    before = predictor.predict(TEXTS)
    predictor.embed(TEXTS)
    assert predictor.predict(TEXTS) == before

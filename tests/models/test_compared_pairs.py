"""A head that compares two texts: each is read alone, and both together."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import peftcls
from peftcls.engine.model_state import base_facts
from peftcls.engine.pair_features import compare_texts, importance
from peftcls.models.adapter_manifest import seal
from peftcls.training.linear_probe import Examples, fit_probe

PAIRS = [
    ("the patient recovered", "the patient was given a new drug and recovered"),
    ("stock prices fell after lunch", "a galaxy far away emits radio waves"),
    ("yes", "see you at lunch"),
    ("free prize, call now!", "yes"),
]
ROWS = [
    {"first": first, "second": second, "label": label, "score": score}
    for (first, second), label, score in zip(
        PAIRS * 4, ("same", "other", "other", "same") * 4, (4.0, 1.0, 0.5, 3.5) * 4, strict=True
    )
]
COLUMNS = ("first", "second")


def pair_task(**settings):
    return peftcls.Classification(text=COLUMNS, max_length=32, **settings)


def trained(base, folder, task, **settings):
    """Train an adapter for a moment; return its trainer."""
    learnt = task.learn(ROWS)
    model, tokenizer = peftcls.load_base(base, learnt)
    model = peftcls.attach_lora(model, learnt, rank=4)
    config = peftcls.TrainConfig(
        folder, epochs=1, batch_size=8, learning_rate=1e-3, objective="answers", **settings
    )
    trainer = peftcls.Trainer(model, learnt, tokenizer, config)
    trainer.fit(ROWS)
    return trainer


def assert_same(answers, others, tolerance=1e-5):
    for one, other in zip(answers, others, strict=True):
        if one.probabilities is None:
            assert one.value == pytest.approx(other.value, abs=tolerance)
        else:
            assert one.probabilities == pytest.approx(other.probabilities, abs=tolerance)


def test_the_head_reads_both_texts_together_and_each_alone(sentence_bert):
    task = pair_task().learn(ROWS)
    model, tokenizer = peftcls.load_base(sentence_bert, task, dtype=torch.float32)
    head = model.get_submodule(base_facts(model).heads[0])
    compared = task.on_base(base_facts(model))
    predictor = peftcls.Predictor(model, compared, tokenizer)

    def mean_state(*texts):
        return model.base_model(**tokenizer(*texts, return_tensors="pt")).last_hidden_state.mean(1)

    for first, second in PAIRS:
        with torch.no_grad():
            u, v = F.normalize(mean_state(first)), F.normalize(mean_state(second))
            width = u.shape[1]
            features = torch.cat(
                [
                    mean_state(first, second),
                    width**0.5 * (u - v).abs(),
                    width * u * v,
                    width**0.5 * (1 - (u * v).sum(1, keepdim=True)),
                ],
                dim=1,
            )
            expected = head(features).softmax(1)[0]
        (answer,) = predictor.predict([(first, second)])
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    alone = [predictor.predict([pair])[0] for pair in PAIRS]
    assert_same(predictor.predict(PAIRS), alone)
    assert predictor.embed(PAIRS).shape == (len(PAIRS), 3 * width + 1)


@pytest.mark.parametrize(
    ("second", "expected"), [("a short text", "compare"), (40 * "long ", "mean")]
)
def test_texts_of_unlike_lengths_are_read_together_unless_the_task_says_so(
    sentence_bert, second, expected
):
    rows = [{**row, "first": "a title here", "second": second} for row in ROWS]
    for task in (pair_task(), peftcls.Regression(text=COLUMNS, target="score")):
        learnt = task.learn(rows)
        assert learnt.text_lengths == (12.0, len(second))
        model, _ = peftcls.load_base(sentence_bert, learnt)
        assert base_facts(model).pooling == expected
    asked = pair_task(pooling="compare").learn(rows)
    assert base_facts(peftcls.load_base(sentence_bert, asked)[0]).pooling == "compare"
    assert peftcls.Classification(text="first").learn(rows).text_lengths is None


def test_it_is_the_default_for_pairs_on_a_base_that_was_trained_on_means(sentence_bert, bert):
    settings = [
        (sentence_bert, {}, "compare"),
        (sentence_bert, {"pooling": "mean"}, "mean"),
        (sentence_bert, {"pooling": "cls"}, None),
        (sentence_bert, {"long_text": "windows"}, "mean"),
        (sentence_bert, {"text": "first"}, "mean"),
        (bert, {}, None),
        (bert, {"pooling": "compare"}, "compare"),
    ]
    for base, given, expected in settings:
        task = peftcls.Classification(**{"text": COLUMNS, "labels": ("a", "b"), **given})
        model, _ = peftcls.load_base(base, task)
        assert base_facts(model).pooling == expected


@pytest.mark.parametrize(
    "task",
    [pair_task(), peftcls.Regression(text=COLUMNS, target="score", max_length=32)],
    ids=["labels", "numbers"],
)
def test_a_folder_answers_as_the_trained_model_did(sentence_bert, tmp_path, task):
    trainer = trained(sentence_bert, tmp_path / "out", task)
    assert trainer.task.pooling == "compare"
    answers = trainer.predict(ROWS)
    # What the folder says decides, whatever the base's folder says later.
    shutil.rmtree(sentence_bert / "1_Pooling")
    loaded = peftcls.load_predictor(tmp_path / "out")
    assert loaded.task.pooling == "compare"
    assert_same(loaded.predict(ROWS), answers)
    model, continued, _ = peftcls.learn_on(tmp_path / "out", ROWS)
    assert base_facts(model).pooling == continued.pooling == "compare"


def test_a_folder_from_before_there_was_such_a_head_reads_the_mean(sentence_bert, tmp_path):
    trainer = trained(sentence_bert, tmp_path / "out", pair_task(pooling="mean"))
    answers = trainer.predict(ROWS)
    file = tmp_path / "out" / "peftcls.json"
    settings = json.loads(file.read_text())
    settings["task"]["pooling"] = None
    file.write_text(json.dumps(seal(settings)))
    loaded = peftcls.load_predictor(tmp_path / "out")
    assert_same(loaded.predict(ROWS), answers)


def test_the_size_of_micro_batches_changes_nothing(sentence_bert, tmp_path, monkeypatch):
    one = trained(sentence_bert, tmp_path / "one", pair_task())
    whole = trained(sentence_bert, tmp_path / "whole", pair_task(), micro_batch_tokens=4096)
    parts = trained(sentence_bert, tmp_path / "parts", pair_task(), micro_batch_tokens=40)
    for name, parameter in whole.parameters.items():
        for other in (one, parts):
            assert torch.allclose(parameter, other.parameters[name], atol=2e-3), name


def test_the_head_alone_learns_the_same_with_and_without_the_cache(sentence_bert, tmp_path):
    found = []
    for cached in (True, False):
        task = pair_task().learn(ROWS)
        model, tokenizer = peftcls.load_base(sentence_bert, task, dtype=torch.float32)
        model = peftcls.train_only(model, task, "head")
        config = peftcls.TrainConfig(
            tmp_path / str(cached),
            epochs=2,
            batch_size=8,
            fast_paths=peftcls.FastPaths(frozen_cache=cached),
        )
        trainer = peftcls.Trainer(model, task, tokenizer, config)
        trainer.fit(ROWS)
        found.append(dict(trainer.parameters))
    for name, parameter in found[0].items():
        assert torch.allclose(parameter, found[1][name], atol=1e-4), name


def test_what_cannot_hold_such_a_head_says_so(sentence_bert, gpt2, tmp_path):
    trained(sentence_bert, tmp_path / "one", pair_task())
    trained(sentence_bert, tmp_path / "two", pair_task())
    with pytest.raises(ValueError, match=r"compares two texts.*trained with pooling='cls'"):
        peftcls.merge_adapter(tmp_path / "one", tmp_path / "merged")
    with pytest.raises(ValueError, match=r"compares two texts, and reads three sequences"):
        peftcls.export_onnx(tmp_path / "one", tmp_path / "onnx")
    with pytest.raises(ValueError, match="a head that compares two texts is asked by itself"):
        peftcls.load_predictor([tmp_path / "one", tmp_path / "two"])
    card = (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert "Plain PEFT cannot use it: the head compares two texts" in card
    with pytest.raises(ValueError, match=r"pooling='compare'.*give two columns"):
        peftcls.Classification(pooling="compare")
    with pytest.raises(ValueError, match=r"pooling='compare'.*long_text='truncate'"):
        peftcls.Regression(text=COLUMNS, pooling="compare", long_text="windows")
    with pytest.raises(ValueError, match="only the means of an encoder's tokens"):
        peftcls.load_base(gpt2, pair_task(pooling="compare", labels=("a", "b")))


@pytest.mark.parametrize(("loaded", "given"), [("mean", "compare"), (None, "mean")])
def test_a_task_with_another_pooling_than_the_models_is_refused(
    sentence_bert, tmp_path, loaded, given
):
    task = pair_task(pooling=loaded).learn(ROWS)
    model, tokenizer = peftcls.load_base(sentence_bert, task)
    model = peftcls.attach_lora(model, task, rank=4)
    other = pair_task(pooling=given).learn(ROWS)
    with pytest.raises(ValueError, match="the model was loaded for a task with pooling="):
        peftcls.Trainer(model, other, tokenizer, peftcls.TrainConfig(tmp_path / "out"))


def test_the_distance_counts_as_much_as_all_dimensions_together():
    random = torch.Generator().manual_seed(0)
    states = torch.randn(3 * 400, 32, generator=random)
    # Of each row, the second text is near the first one, or anywhere.
    rows = states.view(400, 3, 32)
    near = torch.arange(400) % 2
    rows[near == 1, 2] = rows[near == 1, 1] + 1.5 * rows[near == 1, 2]
    features = compare_texts(rows.reshape(-1, 32)).double()
    assert features.shape == (400, 97)
    known, held_out = slice(0, 40), slice(40, None)

    def share_right(sizes):
        examples = Examples(features[known], {"target": near[known]}, near[known], sizes)
        probe = fit_probe(
            examples,
            lambda logits, targets: F.cross_entropy(logits, targets["target"], reduction="sum"),
            2,
            has_bias=True,
            seed=0,
        )
        found = probe.logits(features[held_out]).argmax(1)
        return float((found == near[held_out]).double().mean())

    assert share_right(importance(97)) > share_right(None) + 0.02

"""A new head starts from a linear probe, and so do a closed set's labels in the output layer."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from small_runs import build, interrupt, weights
from torch.nn import functional as F

import peftcls
from peftcls.engine.head_inputs import head_layer
from peftcls.models.trainable import copy_tensors, put_tensors
from peftcls.training import head_start
from peftcls.training.judgement import answers_at_start
from peftcls.training.linear_probe import Examples, LinearProbe, fit_probe


def rows_of_blobs(rows: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States of three overlapping classes, in dimensions of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(rows) % 3
    centres = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, 20, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-2, 2, 20, dtype=torch.float64)
    return (centres[classes] + 1.5 * noise) * scale + 3 * scale, classes


def cross_entropy(logits, targets):
    return F.cross_entropy(logits, targets["target"], reduction="sum")


def test_the_probe_is_the_logistic_regression_of_scikit_learn():
    states, classes = rows_of_blobs(300)
    probe = fit_probe(
        Examples(states, {"target": classes}, classes), cross_entropy, 3, has_bias=True, seed=0
    )
    scaler = StandardScaler().fit(states.numpy())
    # Its strength counts rows, ours is for their mean.
    theirs = LogisticRegression(C=1 / (probe.penalty * len(states)), max_iter=5000, tol=1e-8)
    theirs.fit(scaler.transform(states.numpy()), classes.numpy())
    expected = theirs.predict_proba(scaler.transform(states.numpy()))
    assert probe.logits(states).softmax(1).numpy() == pytest.approx(expected, abs=2e-3)


def test_a_layer_without_biases_is_as_good_where_states_are_far_from_zero():
    states, classes = rows_of_blobs(300)
    held_out, held_out_classes = rows_of_blobs(1500)
    examples = Examples(states, {"target": classes}, classes)
    scores = {}
    for has_bias in (True, False):
        probe = fit_probe(examples, cross_entropy, 3, has_bias=has_bias, seed=0)
        assert (probe.bias is None) != has_bias
        right = probe.logits(held_out).argmax(1) == held_out_classes
        scores[has_bias] = float(right.float().mean())
    assert scores[False] > scores[True] - 0.02


def test_the_probe_of_a_long_table_reads_a_sample_of_its_rows(
    bert, text_rows, tmp_path, monkeypatch
):
    trainer = build(bert, tmp_path, text_rows, epochs=1, head_init="probe")
    width = head_layer(trainer.model).in_features
    read = []
    collate = type(trainer.task).collate

    def counted(task, features, tokenizer):
        read.append(len(features))
        return collate(task, features, tokenizer)

    table = trainer._prepare(text_rows, None).train
    assert head_start.rows_to_read(table, width, 0) is None
    monkeypatch.setattr(head_start, "MAX_VALUES", 10 * width)
    rows = head_start.rows_to_read(table, width, 0)
    assert len(set(rows)) == 10
    assert rows == sorted(rows) == head_start.rows_to_read(table, width, 0)
    monkeypatch.setattr(type(trainer.task), "collate", counted)
    assert trainer._fit_head(trainer._prepare(text_rows, None))
    assert sum(read) == 10


def test_numbers_are_fitted_as_by_ridge_regression():
    states, _ = rows_of_blobs(200)
    scaled = (states - states.mean(0)) / states.std(0, correction=0)
    numbers = scaled[:, :2].sum(1, keepdim=True)

    def squares(values, targets):
        return ((values - targets["target"]) ** 2).sum()

    probe = fit_probe(Examples(states, {"target": numbers}), squares, 1, has_bias=True, seed=0)
    # Half of the penalty is on half of the squares.
    ridge = Ridge(alpha=probe.penalty * len(states) / 2).fit(scaled.numpy(), numbers.numpy())
    expected = ridge.predict(scaled.numpy()).reshape(-1, 1)
    assert probe.logits(states).numpy() == pytest.approx(expected, abs=1e-3)


def test_noise_gets_the_strongest_penalty_and_signal_a_weaker_one():
    states, classes = rows_of_blobs(150)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(classes.numpy()))
    penalties = [
        fit_probe(Examples(states, {"target": c}, c), cross_entropy, 3, has_bias=True, seed=0)
        for c in (classes, shuffled)
    ]
    assert penalties[0].penalty < penalties[1].penalty


def test_two_rows_are_enough_and_a_label_without_rows_stays_finite():
    states, _ = rows_of_blobs(3)
    for labels in ([0, 1, 1], [2, 2, 2]):
        target = torch.tensor(labels)
        examples = Examples(states, {"target": target}, target)
        probe = fit_probe(examples, cross_entropy, 3, has_bias=True, seed=0)
        assert isinstance(probe, LinearProbe)
        assert bool(probe.weight.isfinite().all())


# In training


@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("instruction", [False, True])
def test_step_0_is_the_probe_and_the_first_candidate(
    base, instruction, text_rows, tmp_path, request
):
    if base == "bert" and instruction:
        pytest.skip("an encoder does not generate")
    trainer = build(
        request.getfixturevalue(base),
        tmp_path,
        text_rows,
        instruction=instruction,
        head_init="probe",
        learning_rate=1e-9,
    )
    before = trainer.evaluate(text_rows)["loss"]
    trainer.fit(text_rows, text_rows)
    first = trainer.progress.history[0]
    assert first["step"] == 0
    assert first["valid_accuracy"] > 0.8
    assert first["valid_loss"] < before
    assert trainer.progress.best_scores["accuracy"] >= first["valid_accuracy"]


@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_training_begins_in_the_probe_s_direction_with_the_size_of_random_weights(
    base, text_rows, tmp_path, request
):
    folder = request.getfixturevalue(base)
    trainer = build(folder, tmp_path, text_rows, head_init="probe", learning_rate=1e-9)
    trainer.fit(text_rows)
    small = head_layer(trainer.model).weight.detach().clone()
    put_tensors(trainer.parameters, trainer.start)
    probe = head_layer(trainer.model).weight.detach()
    assert probe.norm() > 2 * small.norm()
    expected = trainer.model.config.initializer_range * probe.shape[1] ** 0.5
    assert float(small.norm(dim=1).mean()) == pytest.approx(expected, rel=1e-4)
    assert torch.nn.functional.cosine_similarity(small, probe).min() > 0.9999


def test_a_head_that_is_trained_alone_keeps_the_size_of_the_probe(bert, text_rows, tmp_path):
    task = peftcls.Classification().learn(text_rows)
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.train_only(model, task, "head")
    config = peftcls.TrainConfig(tmp_path, epochs=1, learning_rate=1e-9)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(text_rows)
    trained = copy_tensors(trainer.parameters)
    for name, tensor in trainer.start.items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("labels", "is_small"), [(16, True), (17, False)])
def test_a_head_for_many_labels_keeps_the_size_of_the_probe(bert, tmp_path, labels, is_small):
    words = "no yes the patient has a tumour galaxy star paper heart lung blood cell sun moon far"
    rows = [{"text": word, "label": word} for word in words.split()[:labels] for _ in range(2)]
    task = peftcls.Classification().learn(rows)
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task)
    config = peftcls.TrainConfig(tmp_path, epochs=1, batch_size=34, learning_rate=1e-9)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(rows)
    trained = head_layer(model).weight.detach().clone()
    put_tensors(trainer.parameters, trainer.start)
    probe = head_layer(model).weight.detach()
    assert bool(trained.norm() < 0.9 * probe.norm()) == is_small


def test_few_validation_rows_decide_by_their_loss(text_rows, tmp_path):
    labels = peftcls.Classification().learn(text_rows)
    config = peftcls.TrainConfig(tmp_path)
    assert config.monitor_for(labels, 19) == "loss"
    assert config.monitor_for(labels, 20) == "f1_macro"
    assert config.monitor_for(peftcls.Regression(), 5) == "rmse"
    assert config.monitor_for(peftcls.Regression(), 500) == "rmse"
    chosen = peftcls.TrainConfig(tmp_path, monitor="accuracy")
    assert chosen.monitor_for(labels, 5) == "accuracy"


def test_a_random_start_is_judged_after_the_first_epoch(bert, text_rows, tmp_path):
    trainer = build(bert, tmp_path, text_rows, head_init="random")
    trainer.fit(text_rows, text_rows)
    assert min(entry["step"] for entry in trainer.progress.history) > 0


def test_an_interrupted_run_goes_on_bit_for_bit(bert, text_rows, tmp_path, monkeypatch):
    settings = {"head_init": "probe", "eval_every": 2, "dropout": 0.2}
    build(bert, tmp_path / "whole", text_rows, **settings).fit(text_rows)
    interrupt(build(bert, tmp_path / "cut", text_rows, **settings), text_rows, monkeypatch)
    build(bert, tmp_path / "cut", text_rows, **settings).fit(text_rows, resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_resumed_run_knows_the_probe_that_it_began_with(bert, text_rows, tmp_path, monkeypatch):
    settings = {"head_init": "probe", "eval_every": 2}
    whole = build(bert, tmp_path / "whole", text_rows, **settings)
    whole.fit(text_rows, text_rows)
    cut = build(bert, tmp_path / "cut", text_rows, **settings)
    interrupt(cut, text_rows, monkeypatch, at=5, valid=text_rows)
    again = build(bert, tmp_path / "cut", text_rows, **settings)
    again.fit(text_rows, text_rows, resume=True)
    assert again.history == whole.history
    assert again.history[0]["step"] == 0
    assert answers_at_start(whole, text_rows) == answers_at_start(again, text_rows)
    without = build(bert, tmp_path / "random", text_rows, eval_every=2)
    interrupt(without, text_rows, monkeypatch, at=3)
    without = build(bert, tmp_path / "random", text_rows, eval_every=2)
    without.fit(text_rows, resume=True)
    assert answers_at_start(without, text_rows) is None


def test_a_head_that_was_trained_before_is_not_replaced(bert, text_rows, tmp_path):
    build(bert, tmp_path / "first", text_rows).fit(text_rows)
    model, task, tokenizer = peftcls.learn_on(tmp_path / "first", text_rows)
    config = peftcls.TrainConfig(tmp_path / "second", epochs=1, learning_rate=1e-9)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    before = trainer.evaluate(text_rows)["loss"]
    trainer.fit(text_rows, text_rows)
    assert trainer.start is None
    first = trainer.progress.history[0]
    assert (first["step"], first["valid_loss"]) == (0, pytest.approx(before, abs=1e-4))
    assert trainer.evaluate(text_rows)["loss"] == pytest.approx(before, abs=1e-4)


def test_windows_and_several_labels_start_from_it_too(bert, tmp_path):
    rows = [
        {"text": "the patient was given a new drug " * 6, "label": ["yes", "drug"]},
        {"text": "stock prices fell after the bank raised rates " * 5, "label": []},
        {"text": "see you at lunch", "label": ["lunch"]},
    ] * 4
    task = peftcls.Classification(multi_label=True, max_length=24, long_text="windows").learn(rows)
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task, rank=4)
    config = peftcls.TrainConfig(tmp_path, epochs=1, learning_rate=1e-9)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(rows, rows)
    assert trainer.progress.history[0]["valid_f1_micro"] == 1.0


def test_a_wrong_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="head_init='prob': expected 'probe' or 'random'"):
        peftcls.TrainConfig(tmp_path, head_init="prob")


# Labels in the output layer


def test_the_adapter_of_the_labels_is_plain_peft_and_is_merged_into_an_untied_layer(
    llama, text_rows, tmp_path
):
    trainer = build(llama, tmp_path / "adapter", text_rows, instruction=True, head_init="probe")
    trainer.fit(text_rows)
    tensors = weights(tmp_path / "adapter")
    (up,) = (tensor for name, tensor in tensors.items() if "lm_head.lora_B" in name)
    assert up.shape == (500, 2)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        peftcls.merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert ["must be written as" in str(remarks[0].message), len(remarks)] == [True, 2]
    task = trainer.task
    merged, tokenizer = peftcls.load_base(tmp_path / "merged", task, dtype=torch.float32)
    embeddings = merged.get_input_embeddings().weight
    assert not torch.equal(embeddings, merged.get_output_embeddings().weight)
    answers = peftcls.Predictor(merged, task, tokenizer).predict(text_rows)
    assert [a.label for a in answers] == [a.label for a in trainer.predict(text_rows)]


@pytest.mark.parametrize("labels", [("yes", "yes please"), ("yes maybe", "yes no", "no")])
def test_labels_that_no_single_token_tells_apart_start_without_it(
    llama, text_rows, tmp_path, labels
):
    rows = [{**row, "label": labels[n % len(labels)]} for n, row in enumerate(text_rows)]
    task = peftcls.Instruction(
        template="{input}\nAnswer: ", input="text", output="label", labels=labels, max_new_tokens=16
    )
    model, tokenizer = peftcls.load_base(llama, task)
    model = peftcls.attach_lora(model, task, rank=4)
    trainer = peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig(tmp_path, epochs=1))
    trainer.fit(rows, rows)
    assert min(entry["step"] for entry in trainer.progress.history) > 0


@pytest.mark.parametrize("method", ["rslora", "dora", "pissa", "adalora", "ia3"])
def test_other_methods_leave_the_output_layer_alone(llama, text_rows, tmp_path, method):
    task = peftcls.Instruction(input="text", output="label", labels=("no", "yes"))
    model, _ = peftcls.load_base(llama, task)
    model = peftcls.attach_lora(model, task, rank=4, method=method)
    assert not [
        name for name, p in model.named_parameters() if "lm_head" in name and "lora" in name
    ]


def test_free_answers_leave_it_alone_too(llama):
    model, _ = peftcls.load_base(llama, peftcls.Instruction())
    model = peftcls.attach_lora(model, peftcls.Instruction())
    assert not [name for name, _ in model.named_parameters() if "lm_head.lora" in name]

"""Weights of rows: the loss of a step is their weighted mean, however it is computed."""

import pytest
import torch

import peftcls
from peftcls import Classification, Instruction, Regression, RowError, TrainConfig
from peftcls.data.reading import as_dataset, name_source
from peftcls.tasks.row_checks import check_rows
from peftcls.training.contrast import can_contrast
from peftcls.training.defaults import has_few_rows
from peftcls.training.linear_probe import Examples, fit_probe

HEAD = Classification(max_length=16, weight="w")


def number_rows(rows):
    return [{**row, "score": float(n % 5)} for n, row in enumerate(rows)]


def weighted(rows, weights):
    return [{**row, "w": weight} for row, weight in zip(rows, weights, strict=True)]


def trainer_of(base, out, task, rows, **config):
    """A trainer in float64, whose head starts at random."""
    task = task.learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=2).double()
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "head_init": "random"}
    return peftcls.Trainer(model, task, tokenizer, TrainConfig(out, **{**settings, **config}))


def trained(base, out, task, rows, **config):
    trainer = trainer_of(base, out, task, rows, **config)
    trainer.fit(rows)
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def same(first, second):
    return all(torch.allclose(first[name], second[name], atol=1e-9, rtol=0) for name in first)


@pytest.mark.parametrize(
    "task", [HEAD, Regression(max_length=16, weight="w", mean=2.0, deviation=1.5)]
)
def test_a_weight_of_two_is_the_row_twice_and_a_weight_of_zero_no_row(
    task, bert, tmp_path, text_rows
):
    rows = number_rows(text_rows)[:10]
    weights = [2, 1, 0, 1, 1, 2, 1, 1, 0, 1]
    repeated = [row for row, weight in zip(rows, weights, strict=True) for _ in range(weight)]
    by_weight = trained(bert, tmp_path / "weights", task, weighted(rows, weights))
    by_row = trained(bert, tmp_path / "rows", task, weighted(repeated, [1] * 10))
    plain = trained(bert, tmp_path / "plain", task, weighted(rows, [1] * 10))
    assert same(by_weight, by_row)
    assert not same(by_weight, plain)


def test_micro_batches_and_the_scale_of_the_weights_make_no_difference(bert, tmp_path, text_rows):
    weights = [0.5 + n % 4 for n in range(16)]
    rows = weighted(text_rows, weights)
    whole = trained(bert, tmp_path / "whole", HEAD, rows, batch_size=7)
    cut = trained(bert, tmp_path / "cut", HEAD, rows, batch_size=7, micro_batch_size=2)
    tenfold = [str(10 * weight) for weight in weights]  # as a csv file holds them
    scaled = trained(bert, tmp_path / "ten", HEAD, weighted(text_rows, tenfold), batch_size=7)
    assert same(whole, cut)
    assert same(whole, scaled)


def test_a_step_whose_rows_all_weigh_nothing_has_no_loss(bert, tmp_path, text_rows):
    rows = weighted(text_rows, [1, *[0] * 15])
    trainer = trainer_of(bert, tmp_path, HEAD, rows, batch_size=1, epochs=1, log_every=1)
    trainer.fit(rows)
    losses = [entry["loss"] for entry in trainer.history]
    assert len(losses) == 16
    assert sorted(losses)[:15] == [0.0] * 15
    assert max(losses) > 0


def test_weights_of_rows_and_of_labels_multiply(bert, text_rows):
    task = Classification(weight="w", class_weight={"yes": 3.0}).learn(text_rows)
    _, tokenizer = peftcls.load_base(bert, task)
    rows = weighted(text_rows, [0.5] * 16)
    features = list(task.encode_many(rows, tokenizer, with_target=True))
    found = {row["label"]: feature["weight"] for row, feature in zip(rows, features, strict=True)}
    assert found == {"yes": 1.5, "no": 0.5}


def test_the_probe_that_a_head_starts_from_counts_weights():
    torch.manual_seed(0)
    states = torch.randn(60, 4, dtype=torch.float64)
    target = torch.stack([states[:, 0] > 0, states[:, 0] <= 0], 1).double()
    task = Classification(labels=("a", "b"))

    def weight_of(weights):
        targets = {"target": target, "weight": torch.tensor(weights, dtype=torch.float64)}
        examples = Examples(states, targets, target.argmax(1))
        return fit_probe(examples, task.loss_of_logits, 2, has_bias=True, seed=0).weight

    weights = [1.0 + n % 3 for n in range(60)]
    first = weight_of(weights)
    torch.testing.assert_close(weight_of([8 * weight for weight in weights]), first)
    assert not torch.allclose(weight_of([1.0] * 60), first, atol=1e-3)


def test_weighted_rows_are_not_compared_with_one_another(bert, text_rows):
    plain, own = Classification().learn(text_rows), HEAD.learn(text_rows)
    model, _ = peftcls.load_base(bert, plain)
    model = peftcls.attach_lora(model, plain)
    assert has_few_rows(plain, 16)
    assert can_contrast(model, plain)
    assert not has_few_rows(own, 16)
    assert not can_contrast(model, own)
    assert TrainConfig.for_task("out", own, rows=16).objective == "answers"


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0, -0.5], r"^row 2 of t.csv has -0.5 in column 'w', expected a weight of at least 0"),
        ([float("nan"), 1.0], r"^row 1 of t.csv has nan in column 'w'"),
        ([None, float("inf")], r"(?s)^row 1 of t.csv has None .*\nrow 2 of t.csv has inf in"),
        (["1", "heavy"], r"^row 2 of t.csv has 'heavy' in column 'w'"),
        ([0, 0], r"^t.csv has the weight 0 in column 'w' of every row"),
    ],
)
def test_wrong_weights_are_refused_with_their_rows(weights, sentence, bert, tmp_path, text_rows):
    ends = [text_rows[0], text_rows[-1]]
    rows = name_source(as_dataset(weighted(ends, weights)), "t.csv")
    with pytest.raises(RowError, match=sentence):
        check_rows(HEAD.learn(ends), rows, training=True)
    with pytest.raises(RowError, match=sentence):
        trainer_of(bert, tmp_path / "out", HEAD, ends).fit(rows)
    assert not (tmp_path / "out").exists()
    check_rows(HEAD.learn(ends), rows)  # scores have no weights


def test_a_column_of_weights_that_is_not_there_is_refused_with_the_nearest(text_rows):
    task = Classification(weight="Weight").learn(text_rows)
    for name in ("weigth", "weight"):
        rows = as_dataset([{**row, name: 1.0} for row in text_rows])
        with pytest.raises(RowError, match=f"has no column 'Weight'; .* Did you mean '{name}'"):
            check_rows(task, rows, training=True)
    for wrong in ("text", "label"):
        with pytest.raises(ValueError, match=rf"^weight='{wrong}': expected a column of its own"):
            Classification(weight=wrong)
    with pytest.raises(TypeError):
        Instruction(weight="w")


def test_an_adapter_is_trained_on_with_weights_where_new_rows_have_them(text_rows):
    with_weights = as_dataset(weighted(number_rows(text_rows), [1] * 16))
    without = as_dataset(number_rows(text_rows))
    for task in (HEAD, Regression(weight="w")):
        learnt = task.learn(with_weights)
        assert learnt.extended(with_weights).weight == "w"
        assert learnt.extended(without).weight is None

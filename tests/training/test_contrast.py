"""Few rows: rows of one label come together, and the head is a probe of the states."""

import dataclasses

import pytest
import torch

import peftcls
from peftcls.models.trainable import trained_parameters
from peftcls.training.contrast import TEMPERATURE, contrastive_loss
from peftcls.training.defaults import FEW_ROWS, HEAD

ROWS = [
    {"text": f"{word} {place}", "label": label}
    for label, word in (("no", "the bank raised rates"), ("yes", "a patient was given a drug"))
    for place in ("today", "now", "again", "at last", "in the city", "and more")
]


def build(base, folder, rows=ROWS, **settings):
    task = peftcls.Classification(max_length=32, loss=settings.pop("loss", None)).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4)
    chosen = {"objective": "contrast", "epochs": 6, "batch_size": 16, "learning_rate": 5e-3}
    config = peftcls.TrainConfig(folder, **{**chosen, **settings})
    return peftcls.Trainer(model, task, tokenizer, config)


def test_the_loss_is_that_of_the_paper():
    states = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [-3.0, 0.0]])
    classes = torch.tensor([0, 0, 1, 2])
    directions = states / states.norm(dim=1, keepdim=True)
    shares = (directions @ directions.T / TEMPERATURE).exp()
    # Rows 2 and 3 have no other row of their class.
    first = -torch.log(shares[0, 1] / (shares[0].sum() - shares[0, 0]))
    second = -torch.log(shares[1, 0] / (shares[1].sum() - shares[1, 1]))
    assert contrastive_loss(states, classes).item() == pytest.approx(
        float((first + second) / 2), rel=1e-5
    )


def test_a_batch_without_two_rows_of_a_class_has_no_gradient():
    states = torch.randn(3, 4, requires_grad=True)
    contrastive_loss(states, torch.tensor([0, 1, 2])).backward()
    assert states.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [None, "bce"])
def test_states_of_one_label_come_together_and_the_head_reads_them(loss, bert, tmp_path):
    trainer = build(bert, tmp_path / "adapter", loss=loss)
    trainer.fit(ROWS, ROWS)
    losses = [entry["loss"] for entry in trainer.progress.history if "loss" in entry]
    batch = trainer.gradients.collate(
        [trainer.task.encode(row, trainer.tokenizer, with_target=True) for row in ROWS]
    )
    from peftcls.training.contrast import contrastive_loss_of_batch

    with torch.no_grad():
        after = float(contrastive_loss_of_batch(trainer.model, trainer.task, batch))
    assert after < losses[0]
    assert trainer.evaluate(ROWS)["accuracy"] == 1.0
    found = peftcls.load_predictor(tmp_path / "adapter").predict([row["text"] for row in ROWS])
    assert [answer.label for answer in found] == [row["label"] for row in ROWS]


def test_a_cut_run_ends_as_the_uninterrupted_one(bert, tmp_path, monkeypatch):
    whole = build(bert, tmp_path / "whole", eval_every=2)
    whole.fit(ROWS)
    cut = build(bert, tmp_path / "cut", eval_every=2)
    step = cut._train_step
    monkeypatch.setattr(
        cut,
        "_train_step",
        lambda table, number, *rest: (
            (_ for _ in ()).throw(KeyboardInterrupt) if number == 4 else step(table, number, *rest)
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        cut.fit(ROWS)
    again = build(bert, tmp_path / "cut", eval_every=2)
    again.fit(ROWS, resume=True)
    for name, tensor in trained_parameters(whole.model).items():
        assert torch.equal(trained_parameters(again.model)[name], tensor), name


def test_other_kinds_of_work_learn_by_their_answers(bert, tmp_path):
    rows = [{"text": row["text"], "score": float(n)} for n, row in enumerate(ROWS)]
    task = peftcls.Regression(target="score", max_length=32).learn(rows)
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task, rank=4)
    config = peftcls.TrainConfig(tmp_path, objective="contrast")
    assert not peftcls.Trainer(model, task, tokenizer, config).gradients.by_contrast


def test_a_head_that_was_trained_before_is_kept(bert, tmp_path):
    build(bert, tmp_path / "first", epochs=1).fit(ROWS)
    more = [*ROWS, {"text": "a galaxy", "label": "maybe"}, {"text": "far away", "label": "maybe"}]
    model, task, tokenizer = peftcls.learn_on(tmp_path / "first", more)
    config = peftcls.TrainConfig(tmp_path / "next", objective="contrast")
    assert not peftcls.Trainer(model, task, tokenizer, config).gradients.by_contrast


def test_a_task_without_a_probe_learns_by_its_answers(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(peftcls.Classification, "loss_of_logits", peftcls.Task.loss_of_logits)
    assert not build(bert, tmp_path / "adapter").gradients.by_contrast


@pytest.mark.parametrize(("rows", "objective"), [(16, "contrast"), (128, "contrast"), (129, None)])
def test_few_rows_of_each_label_are_learnt_by_contrast(rows, objective):
    task = peftcls.Classification(labels=("no", "yes"))
    config = peftcls.TrainConfig.for_task("runs/x", task, rows=rows)
    assert config.objective == (objective or "answers")
    if objective:
        assert (config.batch_size, config.learning_rate) == (
            FEW_ROWS.batch_size,
            FEW_ROWS.learning_rate,
        )


def test_several_labels_a_row_are_learnt_by_their_answers():
    task = peftcls.Classification(labels=("no", "yes"), multi_label=True)
    assert peftcls.TrainConfig.for_task("runs/x", task, rows=16).objective == "answers"
    chosen = peftcls.TrainConfig.for_task(
        "runs/x", dataclasses.replace(task, multi_label=False), rows=16, objective="answers"
    )
    assert (chosen.objective, chosen.batch_size) == ("answers", HEAD.batch_size)


def test_an_unknown_objective_is_refused(tmp_path):
    sentence = "objective='triplets': expected 'answers' or 'contrast'"
    with pytest.raises(ValueError, match=sentence):
        peftcls.TrainConfig(tmp_path, objective="triplets")

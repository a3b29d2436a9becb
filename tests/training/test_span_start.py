"""A head that finds answers in texts starts from a linear probe too."""

import numpy as np
import pytest
import torch
from small_runs import weights
from torch.nn import functional as F

import peftcls
from peftcls import ExtractiveQA
from peftcls.data.reading import as_dataset
from peftcls.engine.head_inputs import head_layer, recording
from peftcls.engine.model_state import base_facts
from peftcls.tasks.encoding import EncodedTable
from peftcls.training.linear_probe import ROW, Examples
from peftcls.training.prepare import prepare
from peftcls.training.span_start import (
    MAX_VALUES,
    MIN_QUESTIONS,
    questions_to_read,
    span_examples,
    span_loss,
)

CONTEXT = "the patient was given a new drug and recovered. a galaxy emits radio waves."
ROWS = [
    {"question": question, "context": CONTEXT * 2, "answers": {"text": [a], "answer_start": [n]}}
    for question, a, n in [
        ("who recovered?", "the patient", 0),
        ("what was given?", "a new drug", 22),
        ("what emits waves?", "a galaxy", 48),
        ("what is emitted?", "radio waves", 63),
    ]
]
NO_ANSWER = {
    "question": "who sang?",
    "context": CONTEXT,
    "answers": {"text": [], "answer_start": []},
}


def built(base, rows, folder, **settings):
    task = ExtractiveQA(max_length=48, stride=12).learn(rows)
    model, tokenizer = peftcls.load_base(base, task, dtype=torch.float32)
    model = peftcls.attach_lora(model, task, rank=4)
    config = peftcls.TrainConfig(folder, **{"epochs": 1, "batch_size": 4, **settings})
    return peftcls.Trainer(model, task, tokenizer, config)


def read_batch(trainer, rows):
    """The batch of some rows, and what the head reads of it."""
    table = as_dataset(rows)
    prepared = prepare(trainer.task, table, None, trainer.tokenizer, base_facts(trainer.model))
    batch = trainer.task.collate(prepared.train.take(range(len(rows))), trainer.tokenizer)
    layer = head_layer(trainer.model)
    with torch.no_grad(), recording(layer) as recorded:
        trainer.model.eval()
        trainer.task.raw_logits(trainer.model, batch)
    return batch, layer, recorded.inputs


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("rows", [ROWS, [*ROWS, NO_ANSWER]], ids=["answered", "some_unanswered"])
def test_the_loss_of_the_probe_is_that_of_the_task(base, rows, tmp_path, request):
    trainer = built(request.getfixturevalue(base), rows, tmp_path)
    batch, layer, states = read_batch(trainer, rows)
    with torch.no_grad():
        layer.weight.normal_(std=0.5)
        expected = trainer.task.loss_sum(trainer.model, batch)
        chosen, targets = span_examples(states, batch, unanswerable=trainer.task.unanswerable)
        found = span_loss(F.linear(chosen, layer.weight, layer.bias), targets)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("rows", [ROWS * 4, [*ROWS, NO_ANSWER] * 4], ids=["answered", "some_not"])
def test_a_run_begins_with_it(bert, rows, tmp_path):
    trainer = built(bert, rows, tmp_path, learning_rate=1e-9)
    random = loss_of(trainer, rows)
    trainer.fit(rows, rows)
    assert trainer.progress.history[0]["step"] == 0
    assert loss_of(trainer, rows) < 0.3 * random


def loss_of(trainer, rows):
    """The mean loss of some rows. (F1 would depend on which of two near candidates wins.)"""
    batch, _, _ = read_batch(trainer, rows)
    with torch.no_grad():
        return float(trainer.task.loss_sum(trainer.model, batch)) / len(rows)


def test_it_can_be_left_out(bert, tmp_path):
    trainer = built(bert, ROWS, tmp_path, head_init="random")
    trainer.fit(ROWS, ROWS)
    assert trainer.start is None


def test_the_same_run_begins_the_same(bert, tmp_path):
    for name in ("a", "b"):
        built(bert, ROWS, tmp_path / name).fit(ROWS)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rows_with_several_states_are_selected_together():
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    examples = Examples(torch.arange(6.0).unsqueeze(1), {ROW: rows})
    assert examples.rows == 3
    chosen = examples.select(np.array([2, 0]))
    assert chosen.states.flatten().tolist() == [0, 1, 3, 4, 5]
    assert chosen.targets[ROW].tolist() == [0, 0, 1, 1, 1]


def test_as_many_questions_are_read_as_fit_into_memory():
    lengths = np.full(5000, 100)
    table = EncodedTable.__new__(EncodedTable)
    object.__setattr__(table, "lengths", lengths)
    for width in (384, 4096):
        chosen = questions_to_read(table, width, seed=0)
        assert chosen == sorted(set(chosen))
        assert MAX_VALUES - 100 * width <= len(chosen) * 100 * width <= MAX_VALUES
    assert len(questions_to_read(table, MAX_VALUES, seed=0)) == MIN_QUESTIONS

"""What only a GPU shows: CUDA graphs, quantized bases, the same answers on both devices."""

import pytest
import torch

from peftcls import (
    Classification,
    ExtractiveQA,
    Instruction,
    TrainConfig,
    Trainer,
    attach_lora,
    load_base,
    load_predictor,
)
from peftcls.training import gradient_accumulation
from peftcls.training.gradient_accumulation import GradientAccumulator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
QUESTIONS = [
    {
        "id": str(n),
        "question": f"who recovered {n}?",
        "context": f"see you at lunch {n}. the patient was given a new drug",
        "answers": {"text": ["the patient"], "answer_start": [20 if n < 10 else 21]},
    }
    for n in range(16)
]
TASKS = {
    "label": ("bert", Classification(max_length=64)),
    "last token": ("llama", Classification(max_length=64)),
    "windows": ("bert", Classification(max_length=8, long_text="windows")),
    "span": ("bert", ExtractiveQA(max_length=64, stride=8)),
    "one of some labels": (
        "llama",
        Instruction(
            template="{input}\nThe label: ", input="text", output="label", labels=("yes", "no")
        ),
    ),
    "any text": (
        "gpt2",
        Instruction(template="{input}\nThe label: ", input="text", output="label"),
    ),
}


def trained(
    base,
    task,
    rows,
    folder,
    *,
    recorded=True,
    dropout=0.0,
    dtype=torch.float32,
    resume=False,
    **settings,
):
    """A trainer after its training, its losses, and how many shapes it recorded."""
    model, tokenizer = load_base(base, task, dtype=dtype)
    model = attach_lora(model, task, rank=4, dropout=dropout)
    trainer = Trainer(
        model,
        task,
        tokenizer,
        TrainConfig(folder, log_every=1, **{"epochs": 4, "batch_size": 8, **settings}),
    )
    assert trainer.gradients._graphs is not None
    if not recorded:
        trainer.gradients._graphs = None
    found = trainer.gradients._graphs
    trainer.fit(rows, resume=resume)
    return (
        trainer,
        [entry["loss"] for entry in trainer.progress.history if "loss" in entry],
        len(found.graphs) if found else 0,
    )


@pytest.mark.parametrize("kind", TASKS)
def test_a_recorded_training_is_the_training(kind, request, tmp_path, text_rows):
    base, task = TASKS[kind]
    rows = QUESTIONS if kind == "span" else text_rows
    task = task.learn(rows)
    found = [
        trained(
            request.getfixturevalue(base), task, rows, tmp_path / str(recorded), recorded=recorded
        )
        for recorded in (True, False)
    ]
    assert found[0][2] > 0
    assert found[1][2] == 0
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    for name, parameter in found[0][0].parameters.items():
        if kind != "span" or not name.endswith(
            "bias"
        ):  # which moves all logits alike, so that its gradient is rounding alone
            assert torch.allclose(parameter, found[1][0].parameters[name], atol=1e-4), name


def test_dropout_is_drawn_anew_in_every_replay_and_alike_without_recording(
    bert, tmp_path, text_rows
):
    task = Classification(max_length=64).learn(text_rows)
    found = [
        trained(
            bert,
            task,
            text_rows[:8],
            tmp_path / str(recorded),
            recorded=recorded,
            dropout=0.5,
            epochs=6,
            learning_rate=1e-12,
        )[1]
        for recorded in (True, False)
    ]
    assert len({round(loss, 6) for loss in found[0]}) == 6
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(
    bert, tmp_path, text_rows, monkeypatch
):
    task = Classification(max_length=64).learn(text_rows)
    whole = trained(bert, task, text_rows, tmp_path / "whole", dropout=0.1)[0]
    accumulate = GradientAccumulator.accumulate

    def failing(self, table, indices, step, signals):
        if step == 5:
            raise ValueError("stopped")
        return accumulate(self, table, indices, step, signals)

    monkeypatch.setattr(gradient_accumulation.GradientAccumulator, "accumulate", failing)
    with pytest.raises(ValueError, match="stopped"):
        trained(bert, task, text_rows, tmp_path / "halves", dropout=0.1)
    monkeypatch.undo()
    again = trained(bert, task, text_rows, tmp_path / "halves", dropout=0.1, resume=True)[0]
    for name, parameter in whole.parameters.items():
        assert torch.allclose(parameter, again.parameters[name], atol=1e-6), name


def test_what_cannot_be_recorded_is_computed_and_it_says_so(
    bert, tmp_path, text_rows, monkeypatch, caplog
):
    task = Classification(max_length=64).learn(text_rows)
    plain = Classification.loss_sum

    def looking(self, model, batch):
        loss = plain(self, model, batch)
        return loss * float(loss.detach() > 0)

    monkeypatch.setattr(Classification, "loss_sum", looking)
    _, losses, recordings = trained(bert, task, text_rows, tmp_path)
    assert recordings == 0
    assert len(losses) == 8
    assert "CUDA graphs are disabled for the rest of this run" in caplog.text
    assert 0 <= float(torch.rand((), device="cuda")) < 1  # the process is as it was


@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
@pytest.mark.parametrize("kind", ["label", "last token", "one of some labels"])
def test_a_folder_is_learnt_saved_and_loaded_on_a_gpu(kind, quantize, request, tmp_path, text_rows):
    base, task = TASKS[kind]
    task = task.learn(text_rows)
    model, tokenizer = load_base(request.getfixturevalue(base), task, quantize=quantize)
    model = attach_lora(model, task, rank=8)
    with Trainer(
        model,
        task,
        tokenizer,
        TrainConfig(tmp_path / "out", epochs=10, batch_size=8, learning_rate=5e-3),
    ) as trainer:
        trainer.fit(text_rows)
        assert trainer.evaluate(text_rows)["accuracy"] > 0.8
        answers = trainer.predict(text_rows)
    again = load_predictor(tmp_path / "out")
    assert next(again.model.parameters()).device.type == "cuda"
    assert [answer.label for answer in again.predict(text_rows)] == [
        answer.label for answer in answers
    ]
    if quantize is None:
        elsewhere = load_predictor(tmp_path / "out", device="cpu").predict(text_rows)
        for there, here in zip(elsewhere, answers, strict=True):
            assert there.probabilities == pytest.approx(here.probabilities, abs=2e-2)

"""A part of the model, or a random base: the folder holds only what is trained, and loads again."""

import json

import pytest
import torch
from safetensors.torch import load_file

import peftcls
from peftcls import Classification, Instruction, TrainConfig, Trainer
from peftcls.engine.model_state import base_facts
from peftcls.models.trainable import trained_parameters

# What of each base is opened, by the beginnings of names; each has two blocks.
LAST = {
    "bert": ("bert.encoder.layer.1.",),
    "gpt2": ("transformer.h.1.", "transformer.ln_f."),
    "llama": ("model.layers.1.", "model.norm."),
}
BEFORE = {
    "bert": ("bert.encoder.layer.0.",),
    "gpt2": ("transformer.h.0.",),
    "llama": ("model.layers.0.",),
}
HEAD = {"bert": ("classifier.",), "gpt2": ("score.",), "llama": ("score.",)}


def train(base, folder, rows, *, part=None, task=None, **loading):
    task = task or Classification(max_length=32).learn(rows)
    model, tokenizer = peftcls.load_base(base, task, **loading)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model = (
        peftcls.train_only(model, task, part) if part else peftcls.attach_lora(model, task, rank=4)
    )
    trainer = Trainer(
        model, task, tokenizer, TrainConfig(folder, epochs=1, batch_size=8, learning_rate=1e-3)
    )
    trainer.fit(rows)
    return trainer, before


def same_answers(trainer, rows):
    kept, again = trainer.predict(rows), peftcls.load_predictor(trainer.output_dir).predict(rows)
    for one, other in zip(kept, again, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-6)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("part", ["head", "last_block", "last_two_blocks", "all"])
@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
def test_a_part_is_trained_and_saved_alone(base, part, request, tmp_path, text_rows):
    trainer, before = train(request.getfixturevalue(base), tmp_path, text_rows, part=part)
    opened = {
        "head": (),
        "last_block": LAST[base],
        "last_two_blocks": LAST[base] + BEFORE[base],
        "all": ("",),
    }[part] + HEAD[base]
    expected = {name for name in before if name.startswith(opened)}
    saved = load_file(tmp_path / "trained_part.safetensors")
    assert set(trainer.parameters) == saved.keys() == expected
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(saved[name], now[name]) for name in saved)
    assert all(torch.equal(p, before[name]) for name, p in now.items() if name not in expected)
    assert all(
        any(
            name.startswith(start) and not torch.equal(now[name], before[name]) for name in expected
        )
        for start in opened
    )
    assert not (tmp_path / "adapter_model.safetensors").exists()
    same_answers(trainer, text_rows)


@pytest.mark.parametrize("part", ["last_block", "last_two_blocks"])
@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
def test_a_part_of_a_base_in_bfloat16_is_trained_and_merged(
    base, part, request, tmp_path, text_rows
):
    folder = request.getfixturevalue(base)
    trainer, _ = train(folder, tmp_path / "a", text_rows, part=part, dtype=torch.bfloat16)
    same_answers(trainer, text_rows)
    peftcls.merge_adapter(tmp_path / "a", tmp_path / "merged")


def test_a_block_of_a_language_model_is_trained_without_a_head(llama, tmp_path, text_rows):
    task = Instruction(
        template="Text: {input}\nAnswer: ",
        input="text",
        output="label",
        labels=("no", "yes"),
        max_length=64,
        max_new_tokens=16,
    )
    trainer, _ = train(llama, tmp_path, text_rows, part="last_block", task=task)
    assert all(
        name.startswith(LAST["llama"]) for name in load_file(tmp_path / "trained_part.safetensors")
    )
    same_answers(trainer, text_rows)
    with pytest.raises(
        ValueError, match=r"^Instruction has no head of its own; train an adapter or a block\.$"
    ):
        peftcls.train_only(peftcls.load_base(llama, task)[0], task, "head")


def test_a_part_that_there_is_not_is_told(bert):
    task = Classification(labels=("no", "yes"))
    model, _ = peftcls.load_base(bert, task)
    with pytest.raises(
        ValueError,
        match=r"^part='first_block': expected 'head', 'last_block', 'last_two_blocks' or 'all'\.$",
    ):
        peftcls.train_only(model, task, "first_block")
    assert not trained_parameters(model)


# Random weights


@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
def test_a_random_base_is_drawn_again_from_its_seed(base, request, tmp_path, text_rows):
    folder = request.getfixturevalue(base)
    trainer, before = train(folder, tmp_path / "a", text_rows, pretrained=False, seed=3)
    kept = same_answers(trainer, text_rows)
    assert len({round(answer.probabilities["yes"], 6) for answer in kept}) > 1
    task = trainer.task
    again, other = (
        peftcls.load_base(folder, task, pretrained=False, seed=seed)[0] for seed in (3, 4)
    )
    real, _ = peftcls.load_base(folder, task)
    assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())
    drawn = [name for name, p in before.items() if p.ndim > 1]
    for model in (other, real):
        assert not any(torch.equal(model.get_parameter(name), before[name]) for name in drawn)
    facts = json.loads((tmp_path / "a" / "peftcls.json").read_text())["base"]
    assert facts["random_seed"] == 3
    assert len({base_facts(model).fingerprint for model in (again, other, real)}) == 3
    assert all(
        "lora_" in name or name.startswith(tuple(f"base_model.model.{head}" for head in HEAD[base]))
        for name in load_file(tmp_path / "a" / "adapter_model.safetensors")
    )


def test_a_part_of_a_random_base_is_loaded_again(bert, tmp_path, text_rows):
    trainer, _ = train(bert, tmp_path, text_rows, part="last_block", pretrained=False, seed=1)
    same_answers(trainer, text_rows)


def test_drawing_a_base_leaves_the_random_numbers_of_the_program_alone(bert):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    peftcls.load_base(bert, Classification(labels=("no", "yes")), pretrained=False, seed=9)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_random_weights_are_not_quantized(bert, quantize):
    with pytest.raises(
        ValueError,
        match=rf"^quantize='{quantize}' with pretrained=False: random weights are a control, "
        r"in full precision\.$",
    ):
        peftcls.load_base(
            bert, Classification(labels=("no", "yes")), quantize=quantize, pretrained=False
        )


@pytest.mark.parametrize("task", [None, peftcls.Classification])
def test_a_base_is_loaded_for_a_task_and_nothing_else(bert, task):
    with pytest.raises(ValueError, match=r"^task=.*: expected a task, such as Classification"):
        peftcls.load_base(bert, task)

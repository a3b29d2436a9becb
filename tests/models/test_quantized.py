"""A base in 8 or 4 bits: it alone is quantized, is not in the folder, and answers the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file

import peftcls
from peftcls.engine.model_state import unwrapped
from peftcls.models.structure import linear_layers
from peftcls.models.trainable import trained_parameters

LINEAR = {"8bit": bnb.nn.Linear8bitLt, "4bit": bnb.nn.Linear4bit}
TASKS: dict[str, tuple[str, Any]] = {
    "head": ("bert", peftcls.Classification(labels=("no", "yes"), max_length=32)),
    "instruction": (
        "llama",
        peftcls.Instruction(
            template="Text: {input}\nAnswer: ",
            input="text",
            output="label",
            labels=("no", "yes"),
            max_length=64,
            max_new_tokens=8,
        ),
    ),
}
QUANTIZED = ["8bit", "4bit"]


@pytest.fixture(scope="module")
def train(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[..., tuple[Path, peftcls.Trainer, list]]:
    """Train two steps on a quantized base; each kind once."""
    made: dict[tuple[str, str], tuple[Path, peftcls.Trainer, list]] = {}
    rows = [
        {"text": f"{text} {n}", "label": label}
        for n in range(4)
        for text, label in (
            ("the patient recovered", "yes"),
            ("stock prices fell after the bank raised rates", "no"),
        )
    ]

    def trained(kind: str, quantize: Any) -> tuple[Path, peftcls.Trainer, list]:
        if (kind, quantize) not in made:
            name, task = TASKS[kind]
            model, tokenizer = peftcls.load_base(
                request.getfixturevalue(name), task, quantize=quantize
            )
            model = peftcls.attach_lora(model, task, rank=4)
            folder = tmp_path_factory.mktemp("quantized")
            config = peftcls.TrainConfig(
                folder, epochs=1, batch_size=4, learning_rate=1e-2, head_init="random"
            )
            trainer = peftcls.Trainer(model, task, tokenizer, config)
            trainer.fit(rows)
            made[kind, quantize] = folder, trainer, rows
        return made[kind, quantize]

    return trained


@pytest.mark.parametrize("quantize", QUANTIZED)
@pytest.mark.parametrize("kind", TASKS)
def test_a_quantized_base_with_the_trained_folder_answers_the_same(kind, quantize, train):
    folder, trainer, rows = train(kind, quantize)
    assert trainer.progress.step == 2
    kept, loaded = trainer.predict(rows), peftcls.load_predictor(folder)
    again = loaded.predict(rows)
    assert {type(m) for m in loaded.model.modules()} >= {LINEAR[quantize]}
    for one, other in zip(kept, again, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
    assert len({round((answer.probabilities or {})["yes"], 5) for answer in again}) > 1


@pytest.mark.parametrize("quantize", QUANTIZED)
@pytest.mark.parametrize("kind", TASKS)
def test_training_moves_the_adapter_and_the_head_on_a_quantized_base(kind, quantize, train):
    _, trainer, _ = train(kind, quantize)
    assert all(
        float(p.detach().abs().max()) > 0
        for name, p in trainer.parameters.items()
        if "lora_B" in name
    )
    assert any("modules_to_save" in name for name in trainer.parameters) == (kind == "head")
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())


@pytest.mark.parametrize("quantize", QUANTIZED)
@pytest.mark.parametrize("kind", TASKS)
def test_the_linear_layers_of_the_base_are_quantized_and_the_head_is_not(kind, quantize, request):
    name, task = TASKS[kind]
    model, _ = peftcls.load_base(request.getfixturevalue(name), task, quantize=quantize)
    linears = linear_layers(model)
    assert linears
    assert all(type(model.get_submodule(linear)) is LINEAR[quantize] for linear in linears)
    top = unwrapped(model).get_submodule("classifier" if kind == "head" else "lm_head")
    assert type(top) is torch.nn.Linear
    assert top.weight.dtype == torch.float32


@pytest.mark.parametrize("quantize", QUANTIZED)
@pytest.mark.parametrize("kind", TASKS)
def test_no_quantized_tensor_is_in_the_folder(kind, quantize, train):
    folder, trainer, _ = train(kind, quantize)
    assert [file.name for file in folder.rglob("*.safetensors")] == ["adapter_model.safetensors"]
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.is_floating_point() for tensor in saved.values())
    assert all(".lora_" in name or ".classifier." in name for name in saved)
    assert sum(t.numel() for t in saved.values()) == sum(
        p.numel() for p in trainer.parameters.values()
    )


@pytest.mark.parametrize("kind", TASKS)
def test_gradients_go_through_a_4bit_base_as_through_the_same_weights_unpacked(kind, request):
    name, task = TASKS[kind]
    model, tokenizer = peftcls.load_base(request.getfixturevalue(name), task, quantize="4bit")
    model = peftcls.attach_lora(model, task, rank=4)
    with torch.no_grad():
        for number, parameter in enumerate(trained_parameters(model).values()):
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
            )
    peftcls.Predictor(model, task, tokenizer).predict(
        [{"text": "the patient recovered"}]
    )  # bitsandbytes repacks at a prediction
    found = gradients(model, task, tokenizer)
    for path, layer in list(model.named_modules()):
        if type(layer) is bnb.nn.Linear4bit:
            plain = torch.nn.Linear(
                layer.in_features, layer.out_features, bias=layer.bias is not None
            )
            plain.weight = torch.nn.Parameter(
                bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state), False
            )
            plain.bias = layer.bias
            model.set_submodule(path, plain)
    expected = gradients(model, task, tokenizer)
    for parameter in expected:
        assert torch.allclose(found[parameter], expected[parameter], rtol=1e-3, atol=1e-5), (
            parameter
        )


def gradients(model: torch.nn.Module, task: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    row = {"text": "stock prices fell", "label": "no"}
    task.loss_sum(
        model, task.collate([task.encode(row, tokenizer, with_target=True)], tokenizer)
    ).backward()
    return {name: parameter.grad.clone() for name, parameter in trained_parameters(model).items()}


@pytest.mark.parametrize("quantize", QUANTIZED)
@pytest.mark.parametrize("part", ["all", "last_block", "last_two_blocks"])
def test_training_quantized_weights_themselves_is_refused(part, quantize, bert):
    _, task = TASKS["head"]
    model, _ = peftcls.load_base(bert, task, quantize=quantize)
    with pytest.raises(
        ValueError,
        match=rf"train_only\('{part}'\) on a {quantize} base: quantized weights cannot be trained; "
        r"use attach_lora\.",
    ):
        peftcls.train_only(model, task, part)
    assert not trained_parameters(model)


@pytest.mark.parametrize("quantize", QUANTIZED)
def test_the_head_alone_can_be_trained_on_a_quantized_base(quantize, bert, tmp_path, text_rows):
    _, task = TASKS["head"]
    model, tokenizer = peftcls.load_base(bert, task, quantize=quantize)
    model = peftcls.train_only(model, task, "head")
    trainer = peftcls.Trainer(
        model,
        task,
        tokenizer,
        peftcls.TrainConfig(tmp_path, epochs=1, batch_size=8, learning_rate=1e-2),
    )
    trainer.fit(text_rows)
    assert set(load_file(tmp_path / "trained_part.safetensors")) == {
        "classifier.weight",
        "classifier.bias",
    }
    again = peftcls.load_predictor(tmp_path).predict(text_rows)
    for one, other in zip(trainer.predict(text_rows), again, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_an_unknown_width_is_refused_by_name(bert):
    with pytest.raises(ValueError, match=r"quantize='int8': expected None, '8bit' or '4bit'\."):
        peftcls.load_base(bert, TASKS["head"][1], quantize="int8")

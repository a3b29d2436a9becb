"""A head on any base in 8 or 4 bits: one step is trained and saved, and answers the same again."""

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from architectures import ARCHITECTURES, DECODERS
from conftest import byte_level_tokenizer, save_base, word_piece_tokenizer
from safetensors.torch import load_file

import peftcls
from peftcls import Classification
from peftcls.engine.model_state import base_facts
from peftcls.models.structure import linear_layers

LINEAR = {"8bit": bnb.nn.Linear8bitLt, "4bit": bnb.nn.Linear4bit}
NAMES = [
    "bert",
    "bert saved as a masked LM",
    "roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "mpnet",
    "gpt2",
    "opt",
    "llama",
    "qwen2",
    "gemma",
    "phi",
]
ROWS = [
    {"text": f"{text} {n}", "label": label}
    for n in range(2)
    for text, label in (
        ("the patient recovered", "yes"),
        ("stock prices fell after the bank raised rates", "no"),
    )
]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """The folder of a tiny random base, written once."""
    made: dict[str, str] = {}

    def base(name: str) -> str:
        if name not in made:
            tokenizer = byte_level_tokenizer() if name in DECODERS else word_piece_tokenizer()
            if name not in DECODERS:
                tokenizer.eos_token, tokenizer.bos_token = "[SEP]", "[CLS]"
            made[name] = save_base(tmp_path_factory.mktemp("base"), *ARCHITECTURES[name], tokenizer)
        return made[name]

    return base


@pytest.mark.slow
@pytest.mark.parametrize("quantize", LINEAR)
@pytest.mark.parametrize("name", NAMES)
def test_a_head_on_a_quantized_base_is_trained_saved_and_loaded(name, quantize, base_of, tmp_path):
    task = Classification(labels=("no", "yes"), max_length=32)
    model, tokenizer = peftcls.load_base(base_of(name), task, quantize=quantize)
    linears = linear_layers(model)
    assert linears
    kinds = {
        type(model.get_submodule(linear))
        for linear in linears
        if not linear.startswith(tuple(base_facts(model).heads))
    }
    assert kinds == {LINEAR[quantize]}

    model = peftcls.attach_lora(model, task, rank=4)
    config = peftcls.TrainConfig(
        tmp_path, epochs=1, batch_size=4, learning_rate=1e-2, head_init="random"
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    start = {parameter: p.detach().clone() for parameter, p in trainer.parameters.items()}
    trainer.fit(ROWS)
    still = [
        parameter
        for parameter, p in trainer.parameters.items()
        if torch.equal(p, start[parameter]) and "lora_A" not in parameter
    ]
    assert not still, "as drawn B is zero, so the first step moves all but A"
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())

    assert [file.name for file in Path(tmp_path).glob("*.safetensors")] == [
        "adapter_model.safetensors"
    ]
    assert all(
        tensor.is_floating_point()
        for tensor in load_file(tmp_path / "adapter_model.safetensors").values()
    )
    kept, loaded = trainer.predict(ROWS), peftcls.load_predictor(tmp_path)
    assert any(isinstance(module, LINEAR[quantize]) for module in loaded.model.modules())
    for one, other in zip(kept, loaded.predict(ROWS), strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
    assert len({round(answer.probabilities["yes"], 5) for answer in kept}) > 1, (
        "the text makes no difference, so nothing was compared"
    )


@pytest.mark.parametrize("quantize", LINEAR)
def test_a_base_whose_layers_cannot_be_quantized_says_so_and_is_not_held_whole(quantize, base_of):
    try:
        model, _ = peftcls.load_base(
            base_of("falcon"), Classification(labels=("no", "yes")), quantize=quantize
        )
    except ValueError as error:
        assert f"quantize='{quantize}'" in str(error)
    else:
        assert any(isinstance(module, LINEAR[quantize]) for module in model.modules())

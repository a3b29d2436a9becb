"""Answers in 8-bit integers: near those in full precision, the same alone and beside other rows."""

import json
import pickle

import pytest
import torch
from saved_adapters import TEXTS, saved
from transformers.pytorch_utils import Conv1D

import peftcls
from peftcls.cli import main
from peftcls.inference import answer_parts, int8_layers
from peftcls.inference.int8_layers import Int8Linear, is_in_int8

LABELS = peftcls.Classification(labels=("a", "b"), max_length=32)
NEAR = 0.05
"""Of a probability; the adapters of these tests are large."""


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_nearly_the_same(kind, dtype):
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 40) if kind == "linear" else Conv1D(40, 96)
    inputs = torch.randn(2, 5, 96, dtype=dtype)
    # One token is a hundred times as large, and must not round the others away.
    inputs[0, 0] *= 100
    expected = layer(inputs.float())
    found = Int8Linear(layer)(inputs)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    difference = (found.float() - expected).abs().amax(-1)
    assert bool((difference < 0.03 * expected.abs().amax(-1)).all())


def test_nothing_is_divided_by_nothing():
    layer = torch.nn.Linear(8, 4)
    torch.nn.init.zeros_(layer.weight)
    found = Int8Linear(layer)(torch.zeros(3, 8))
    assert torch.equal(found, layer.bias.expand(3, 4))


@pytest.mark.parametrize("part", [None, "last_block"])
@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
def test_answers_are_near_those_in_full_precision(base, part, request, tmp_path, caplog):
    folder = saved(request.getfixturevalue(base), tmp_path / "one", LABELS, part=part)
    plain = peftcls.load_predictor(folder)
    with caplog.at_level("INFO", logger="peftcls"):
        predictor = peftcls.load_predictor(folder, int8=True)
    assert "the logits of 4 short texts move by at most" in caplog.text
    assert is_in_int8(predictor.model)
    assert not is_in_int8(plain.model)
    found, expected = predictor.predict(TEXTS), plain.predict(TEXTS)
    assert found != expected, "8 bits are not 32"
    for text, answer, right in zip(TEXTS, found, expected, strict=True):
        assert answer.probabilities == pytest.approx(right.probabilities, abs=NEAR)
        alone = predictor.predict([text])[0]
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=2e-3)
    copy = pickle.loads(pickle.dumps(predictor))
    assert is_in_int8(copy.model)
    assert copy.predict(TEXTS) == found


def test_every_kind_of_work_can_be_answered(bert, gpt2, tmp_path):
    rows = [{"text": text, "score": float(len(text))} for text in TEXTS]
    numbers = peftcls.Regression(target="score", max_length=32).learn(rows)
    questions = [{"question": "who?", "context": "the patient was given a new drug"}]
    closed, free = (
        peftcls.Instruction(
            template="{input}\nAnswer: ",
            input="text",
            output="label",
            labels=labels,
            max_length=32,
            max_new_tokens=4,
        )
        for labels in (("no", "yes"), None)
    )
    works = {
        "numbers": (bert, numbers, TEXTS, "value"),
        "spans": (bert, peftcls.ExtractiveQA(max_length=32, stride=8), questions, "text"),
        "closed": (gpt2, closed, TEXTS, "label"),
        "free": (gpt2, free, TEXTS[:2], "text"),
    }
    for name, (base, task, asked, field) in works.items():
        folder = saved(base, tmp_path / name, task)
        answers = peftcls.load_predictor(folder, int8=True).predict(asked)
        assert len(answers) == len(asked)
        assert all(getattr(answer, field) is not None for answer in answers), name


def test_a_base_that_was_trained_in_8_bits_is_loaded_in_full_first(llama, tmp_path):
    folder = saved(llama, tmp_path / "one", LABELS, quantize="8bit")
    predictor = peftcls.load_predictor(folder, int8=True)
    assert is_in_int8(predictor.model)
    assert len(predictor.predict(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"quantize": "8bit"}, r"int8=True cannot be used with quantize='8bit'"),
        ({"shard": True}, r"int8=True cannot be used with shard=True"),
        ({"device_map": "auto"}, r"int8=True cannot be used with device_map='auto'"),
        ({"device": "cuda:0"}, r"int8=True, device='cuda:0': 8-bit integers are for processors"),
        ({"int8": "yes"}, r"int8='yes'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings, sentence, bert, tmp_path):
    folder = saved(bert, tmp_path / "one", LABELS)
    with pytest.raises(ValueError, match=sentence):
        peftcls.load_predictor(folder, **{"int8": True, **settings})
    with pytest.raises(ValueError, match="int8=True takes one folder"):
        peftcls.load_predictor([folder], int8=True)


def test_a_processor_that_cuts_off_sums_is_found(bert, tmp_path, monkeypatch):
    folder = saved(bert, tmp_path / "one", LABELS)
    exact = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *both: exact(*both).clamp(-(2**15), 2**15 - 1))
    with pytest.raises(ValueError, match="cuts off sums of 8-bit products"):
        peftcls.load_predictor(folder, int8=True)
    monkeypatch.undo()
    int8_layers.check_processor()


def test_the_command_has_it_and_does_not_go_on_without_it(bert, tmp_path, capsys, monkeypatch):
    folder = saved(bert, tmp_path / "one", LABELS)
    file, out = tmp_path / "rows.jsonl", tmp_path / "answers.csv"
    rows = [{"text": f"{text} {n}", "label": "ab"[n % 2]} for n in range(3) for text in TEXTS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", str(folder), str(file), "--int8", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["scores"]["accuracy"] <= 1
    whole = peftcls.Predictor.answer_part

    def answer_part(self, table, start, end, **settings):
        if start == 16:
            raise OSError("a disk that is full")
        return whole(self, table, start, end, **settings)

    predict = ["predict", str(folder), str(file), "--out", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr(answer_parts, "CHUNK_ROWS", 8)
        patched.setattr(peftcls.Predictor, "answer_part", answer_part)
        assert main([*predict, "--int8"]) == 1
        assert (tmp_path / "answers.csv.part").is_dir()
        assert main([*predict, "--resume"]) == 1
        assert "another adapter or other settings" in capsys.readouterr().err
        patched.setattr(peftcls.Predictor, "answer_part", whole)
        assert main([*predict, "--int8", "--resume"]) == 0
    assert len(out.read_text().splitlines()) == len(rows) + 1

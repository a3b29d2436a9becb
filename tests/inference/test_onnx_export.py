"""A folder as ONNX: onnxruntime alone gives the adapter's answers, or nothing is written."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

import peftcls
from peftcls import cli
from peftcls.engine.model_state import Pooling
from peftcls.inference import onnx_export, onnx_graph
from peftcls.models.adapter_folder import save_adapter

TEXTS = [
    "the patient was given a new drug and recovered",
    "stock prices fell",
    "yes",
    "radio waves from a galaxy far away",
]
LABELS = peftcls.Classification(labels=("no", "maybe", "yes"), max_length=64, pooling=None)
NUMBERS = peftcls.Regression(mean=3.0, deviation=2.0, max_length=64, pooling=None)
QUESTIONS = peftcls.ExtractiveQA(max_length=48, stride=8)


def saved(base, folder, task, **adapter):
    """A folder whose adapter and head are far from the base, as training would leave them."""
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4, **adapter)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return save_adapter(folder, model, task, tokenizer).directory


def onnx_logits(folder, texts):
    """The logits that a program without peftcls gets."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    notes = json.loads((folder / "peftcls_onnx.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    batch = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=notes["max_length"],
        return_tensors="np",
    )
    inputs = {name: batch[name].astype(np.int64) for name in notes["inputs"]}
    return session.run(["logits"], inputs)[0], notes


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_onnxruntime_alone_gives_the_labels_of_the_adapter(base, tmp_path, request):
    folder = saved(request.getfixturevalue(base), tmp_path / "run", LABELS)
    result = peftcls.export_onnx(folder, tmp_path / "out", check=TEXTS)
    assert (result.rows, result.equal_share) == (4, 1.0)
    logits, notes = onnx_logits(tmp_path / "out", TEXTS)
    answers = peftcls.load_predictor(folder).predict(TEXTS)
    assert [notes["labels"][i] for i in logits.argmax(1)] == [a.label for a in answers]
    probabilities = torch.from_numpy(logits).softmax(1)
    expected = torch.tensor([list(answer.probabilities.values()) for answer in answers])
    assert torch.allclose(probabilities, expected, atol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_what_a_head_reads_is_part_of_the_graph_where_a_merge_is_refused(
    pooling: Pooling, llama, tmp_path
):
    task = peftcls.Classification(
        labels=("no", "yes"), max_length=64, pooling=pooling, causal=pooling == "mean"
    )
    folder = saved(llama, tmp_path / "run", task)
    with pytest.raises(ValueError, match="cannot be merged"):
        peftcls.merge_adapter(folder, tmp_path / "merged")
    assert peftcls.export_onnx(folder, tmp_path / "out", check=TEXTS).equal_share == 1


@pytest.mark.slow
def test_numbers_pairs_and_spans_are_exported_too(bert, tmp_path):
    folder = saved(bert, tmp_path / "numbers", NUMBERS)
    result = peftcls.export_onnx(folder, tmp_path / "numbers_onnx", check=TEXTS)
    assert result.equal_share is None
    assert result.mean_difference < 1e-4
    assert any("x output +" in remark for remark in result.remarks)
    values, _ = onnx_logits(tmp_path / "numbers_onnx", TEXTS)
    answers = peftcls.load_predictor(folder).predict(TEXTS)
    assert (2 * values[:, 0] + 3).tolist() == pytest.approx([a.value for a in answers], abs=1e-4)

    rows = [
        {"question": "who recovered?", "context": " ".join([*TEXTS, *TEXTS, *TEXTS])},
        {"question": "what fell?", "context": "stock prices fell"},
    ]
    folder = saved(bert, tmp_path / "spans", QUESTIONS)
    result = peftcls.export_onnx(folder, tmp_path / "spans_onnx", check=rows)
    assert (result.rows, result.equal_share) == (2, 1.0)


@pytest.mark.slow
def test_the_head_is_not_held_in_eight_bits(bert, tmp_path):
    peftcls.export_onnx(saved(bert, tmp_path / "run", LABELS), tmp_path / "small", int8=True)
    graph = onnx.load(tmp_path / "small" / "model.onnx").graph
    shapes = {weights.name: list(weights.dims) for weights in graph.initializer}
    whole = [
        shapes[name]
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input
        if name in shapes
    ]
    assert [shape for shape in whole if len(shape) == 2] == [[128, 3]]


@pytest.mark.slow
def test_eight_bits_are_smaller_and_the_share_of_equal_answers_is_known(bert, tmp_path, capsys):
    folder = saved(bert, tmp_path / "run", LABELS)
    file = tmp_path / "rows.jsonl"
    labels = ("no", "maybe", "yes", "no")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, options in (("whole", []), ("small", ["--int8", "--check", str(file)])):
        assert cli.main(["export", str(folder), str(tmp_path / name), "--onnx", *options]) == 0
    own = peftcls.load_predictor(folder)
    expected = peftcls.evaluate_answers(own.task, own.predict(rows), rows).scores
    shown = capsys.readouterr().out
    assert "on 4 rows" in shown
    assert f", of the adapter {expected['accuracy']:.4f}" in shown
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.6 * sizes[0]
    logits, notes = onnx_logits(tmp_path / "small", TEXTS)
    assert notes["int8"]
    assert 0 <= notes["equal_share"] <= 1
    assert notes["adapter_scores"] == pytest.approx(expected)
    found = [("no", "maybe", "yes")[row] for row in logits.argmax(1)]
    right = [found[i] == label for i, label in enumerate(labels)]
    assert notes["scores"]["accuracy"] == sum(right) / 4
    assert np.isfinite(logits).all()


@pytest.mark.slow
def test_decisions_and_windows_stand_in_the_notes(bert, tmp_path):
    task = peftcls.Classification(
        labels=("no", "yes"),
        max_length=12,
        long_text="windows",
        pooling=None,
        decisions=peftcls.Decisions(temperature=2.0, abstain_below=0.9),
    )
    folder = saved(bert, tmp_path / "run", task)
    result = peftcls.export_onnx(folder, tmp_path / "out", check=[" ".join(TEXTS), "yes"])
    assert result.equal_share == 1  # windows are read and decisions applied in the comparison
    notes = json.loads((tmp_path / "out" / "peftcls_onnx.json").read_text(encoding="utf-8"))
    assert notes["task"]["decisions"]["temperature"] == 2.0
    assert any("not read in windows" in remark for remark in notes["remarks"])
    assert any("Temperature" in remark for remark in notes["remarks"])


def nothing_written(folder):
    return not [path for path in folder.iterdir() if path.name != "run"]


@pytest.mark.slow
def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_left(bert, tmp_path, monkeypatch):
    folder = saved(bert, tmp_path / "run", LABELS)
    monkeypatch.setattr(
        onnx_graph.OnnxSession,
        "logits",
        lambda session, batch: torch.zeros(len(batch["input_ids"]), 3),
    )
    with pytest.raises(ValueError, match="onnxruntime computes other logits: probe 1 differs by"):
        peftcls.export_onnx(folder, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_what_cannot_be_exported_is_one_sentence(llama, tmp_path, monkeypatch):
    task = peftcls.Instruction(
        template="{input} =", input="text", output="label", max_length=64, max_new_tokens=8
    )
    folder = saved(llama, tmp_path / "run", task)
    with pytest.raises(ValueError, match="Instruction answers with a language model"):
        peftcls.export_onnx(folder, tmp_path / "out")
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match="needs no_such_package: pip install"):
        peftcls.export_onnx(folder, tmp_path / "out")
    assert nothing_written(tmp_path)


def test_a_folder_in_use_is_not_replaced(bert, tmp_path):
    folder = saved(bert, tmp_path / "run", LABELS)
    with pytest.raises(ValueError, match="holds something already"):
        peftcls.export_onnx(folder, folder)

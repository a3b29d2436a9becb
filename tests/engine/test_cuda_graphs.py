"""CUDA graphs and the fixed shapes that they need."""

import contextlib
import math

import pytest
import torch
from small_models import ASKED, QUESTIONS, gradients

from peftcls import (
    Classification,
    ExtractiveQA,
    Instruction,
    attach_lora,
    load_base,
)
from peftcls.engine import fixed_shapes
from peftcls.engine.cuda_graphs import WEIGHT, CapturedGraph, CudaGraphRunner
from peftcls.engine.fixed_shapes import in_fixed_shape
from peftcls.errors import RunStoppedError


@pytest.mark.parametrize("kind", ["label", "windows", "span", "one of some labels", "any text"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_in_a_fixed_shape_the_loss_and_gradients_are_the_same(name, kind, request, text_rows):
    if name == "bert" and kind in ("one of some labels", "any text"):
        pytest.skip("an encoder does not generate")
    rows = (
        QUESTIONS
        if kind == "span"
        else [
            {**row, "output": row["label"] if kind == "one of some labels" else row["text"][:place]}
            for place, row in enumerate(text_rows, 3)
        ]
    )
    task = {
        "label": Classification(max_length=64),
        "windows": Classification(max_length=8, long_text="windows"),
        "span": ExtractiveQA(max_length=64, stride=8),
        "one of some labels": ASKED,
        "any text": Instruction(template="{input}\nIts beginning: ", input="text", output="output"),
    }[kind]
    task = task.learn(rows)
    model, tokenizer = load_base(request.getfixturevalue(name), task)
    model = attach_lora(model, task, rank=4).double()
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = task.collate(
            [task.encode(row, tokenizer, with_target=True) for row in rows], tokenizer
        )
        fixed, found = in_fixed_shape(batch, tokenizer), []
        assert fixed["attention_mask"].shape[1] == fixed_shapes.fixed_width(
            batch["attention_mask"].shape[1]
        )
        assert fixed["attention_mask"].sum() == batch["attention_mask"].sum()
        for given_batch in (batch, fixed):
            loss = task.loss_sum(model, given_batch)
            loss.backward()
            found.append((loss.detach(), gradients(model)))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-9)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-9)


def test_there_are_few_widths_and_none_is_much_too_wide():
    widths = [fixed_shapes.fixed_width(tokens) for tokens in range(1, 4097)]
    assert sorted(set(widths)) == [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert all(
        tokens <= width <= max(64, tokens + 63, 1.5 * tokens)
        for tokens, width in enumerate(widths, 1)
    )


def test_a_fixed_shape_has_no_more_tokens_than_the_model_has_positions(bert, text_rows):
    task = Classification(max_length=512).learn(text_rows)
    _, tokenizer = load_base(bert, task)
    long = [{"text": "the patient " * 300, "label": "yes"}, *text_rows]
    batch = task.collate([task.encode(row, tokenizer, with_target=True) for row in long], tokenizer)
    assert in_fixed_shape(batch, tokenizer)["input_ids"].shape[1] == 256


class Again:
    """Stands in for what a GPU records: does the same with the tensors that the graph holds."""

    def __init__(self, runner, held, loss):
        self.runner, self.held, self.loss, self.replays = runner, held, loss, 0

    def replay(self):
        self.replays += 1
        loss = self.runner.loss(self.held)
        loss.backward()
        self.loss.copy_(loss.detach())


def test_a_shape_is_captured_when_it_is_seen_again_and_its_replays_add_the_same_gradients(
    monkeypatch, bert, text_rows
):
    def capture(self, shapes, batch):
        loss, held = torch.zeros(()), {name: tensor.clone() for name, tensor in batch.items()}
        self.graphs[shapes] = CapturedGraph(Again(self, held, loss), held, loss)

    monkeypatch.setattr(CudaGraphRunner, "_capture", capture)
    task = Classification(max_length=64).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    model = attach_lora(model, task, rank=4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    runner = CudaGraphRunner(
        lambda batch: task.loss_sum(model, batch) / batch[WEIGHT], parameters, torch.device("cpu")
    )
    runner.enabled = True

    def batch_of(rows):
        return in_fixed_shape(
            task.collate(
                [task.encode(row, tokenizer, with_target=True) for row in rows], tokenizer
            ),
            tokenizer,
        )

    halves = [batch_of(text_rows[part::2]) for part in range(2)]
    for turn in range(3):
        loss = sum(runner.backward(half, 16.0) for half in halves)
        found = gradients(model)  # which forgets them
        plain = task.loss_sum(model, batch_of(text_rows)) / 16
        plain.backward()
        assert math.isclose(loss, float(plain.detach()), rel_tol=1e-5)
        assert torch.allclose(found, gradients(model), atol=1e-6)
        assert [captured.graph.replays for captured in runner.graphs.values()] == [2 * turn + 1]


@pytest.mark.parametrize("spoilt", [False, True])
def test_what_cannot_be_captured_is_computed_without_graphs_and_logged(spoilt, monkeypatch, caplog):
    """Stands in for a GPU whose capture fails, and may leave its random generator useless."""
    calls, parameter = [], torch.nn.Parameter(torch.ones(3))

    def loss(batch):
        if calls and calls[-1] == "error":  # in a capture, whatever waits is an error
            raise RuntimeError("called a synchronizing operation\nand more")
        return (parameter * batch["x"]).sum() / batch[WEIGHT]

    def drawn(*_, **__):
        raise RuntimeError("the generator is in use")

    for name, fake in {
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": object,
        "current_stream": lambda: "the stream before",
        "graph": lambda *_, **__: contextlib.nullcontext(),
        "set_stream": calls.append,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": calls.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    if spoilt:
        monkeypatch.setattr(torch, "rand", drawn)
    runner = CudaGraphRunner(loss, [parameter], torch.device("cpu"))
    runner.enabled = True
    runner.backward({"x": torch.arange(3.0)}, 2.0)
    if spoilt:
        with pytest.raises(
            RunStoppedError,
            match=r"^a CUDA graph cannot be captured \(called a synchronizing operation\), .* "
            r"fast_paths=FastPaths\(cuda_graphs=False\)",
        ):
            runner.backward({"x": torch.arange(3.0)}, 2.0)
        return
    assert [runner.backward({"x": torch.arange(3.0)}, 2.0) for _ in range(2)] == [1.5, 1.5]
    assert parameter.grad.tolist() == [0.0, 1.5, 3.0]
    assert calls == ["error", 0, "the stream before"]
    assert caplog.messages == [
        "CUDA graphs are disabled for the rest of this run: called a synchronizing operation"
    ]


def test_a_replay_adds_to_gradients_that_were_computed_otherwise():
    parameter = torch.nn.Parameter(torch.ones(3))
    runner = CudaGraphRunner(
        lambda batch: (parameter * batch["x"]).sum() / batch[WEIGHT],
        [parameter],
        torch.device("cpu"),
    )
    parameter.grad = torch.ones(3)
    runner.backward({"x": torch.arange(3.0)}, 2.0)
    assert parameter.grad.tolist() == [1.0, 1.5, 2.0]
    parameter.grad = None
    runner.backward({"x": torch.arange(3.0)}, 2.0)
    assert parameter.grad.tolist() == [0.0, 0.5, 1.0]

"""A memory plan, from config.json alone, beside what a loaded model really holds and keeps."""

import json
import re
import shutil

import pytest
import torch
import transformers

from peftcls import Classification, Instruction, attach_lora, cli, load_base, plan_memory
from peftcls.engine.operator_costs import OperatorCosts
from peftcls.models.base_memory import base_bytes, gathered_bytes, parameter_count, share_bytes
from peftcls.models.skeleton import read_skeleton
from peftcls.models.trainable import checkpoint_layers, train_mode, trained_parameters
from peftcls.training.step_cost import attention_flops, step_cost

LABELS = Classification(labels=("no", "yes"), max_length=64)
PROMPT = Instruction(
    template="{input}: ", input="text", output="label", max_length=64, max_new_tokens=8
)
CLOSED = Instruction(
    template="{input}: ", input="text", output="label", labels=("yes", "no"), max_length=64
)
WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 4,
    "vocab_size": 32000,
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The configuration of a Llama of 0.4 billion parameters, without weights."""
    folder = tmp_path_factory.mktemp("wide")
    transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **WIDE).save_pretrained(folder)
    return folder


def trained_count(model):
    return sum(parameter.numel() for parameter in trained_parameters(model).values())


@pytest.mark.parametrize(
    ("base", "task"),
    [
        ("bert", LABELS),
        ("bert", Classification(labels=("a", "b", "c"), pooling="mean")),
        ("gpt2", LABELS),
        ("gpt2", PROMPT),
        ("llama", LABELS),
        ("llama", CLOSED),
    ],
)
def test_a_skeleton_has_the_parameters_and_bytes_of_the_model_that_is_loaded(
    base, task, request, tmp_path
):
    folder = request.getfixturevalue(base)
    shutil.copy(f"{folder}/config.json", tmp_path)
    skeleton = read_skeleton(tmp_path, task, dtype=torch.bfloat16)
    model, _ = load_base(folder, task, dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert parameter_count(skeleton) == sum(p.numel() for p in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    assert base_bytes(skeleton) == sum(t.numel() * t.element_size() for t in tensors)
    adapted = attach_lora(skeleton, task, targets="all-linear", rank=4)
    expected = attach_lora(model, task, targets="all-linear", rank=4)
    assert trained_count(adapted) == trained_count(expected)


@pytest.mark.parametrize(("quantize", "tolerance"), [("8bit", 0.02), ("4bit", 0.02)])
def test_a_base_in_8_or_4_bits_is_planned_with_the_bytes_that_it_has(llama, quantize, tolerance):
    planned = base_bytes(read_skeleton(llama, LABELS, dtype=torch.bfloat16), quantize)
    model, _ = load_base(llama, LABELS, quantize=quantize, dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.state2.absmax]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert planned == pytest.approx(measured, rel=tolerance)


def real_cost(model, inputs, rows, tokens):
    """The bytes that the same computation takes with numbers."""
    for parameter in trained_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.ones(rows, tokens, dtype=torch.long)
    with OperatorCosts() as costs:
        states = model.get_base_model().base_model(
            input_ids=ids, attention_mask=torch.ones_like(ids), **inputs
        )
        kept = costs.live_bytes
        states.last_hidden_state[:, 0].sum().backward()
    return kept, costs.peak_bytes, costs.flops


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("base", "inputs"), [("bert", {}), ("llama", {"use_cache": False})])
def test_a_planned_step_keeps_and_multiplies_what_a_real_one_does(
    base, inputs, checkpointing, request
):
    folder = request.getfixturevalue(base)

    def prepared(model):
        adapted = attach_lora(model, LABELS, targets="all-linear")
        if checkpointing:
            checkpoint_layers(adapted)
        train_mode(adapted)
        return adapted

    model = prepared(load_base(folder, LABELS, dtype=torch.float32)[0])
    kept, peak, flops = real_cost(model, inputs, 8, 64)
    planned = prepared(read_skeleton(folder, LABELS, dtype=torch.float32))
    cost = step_cost(planned, LABELS, rows=8, row_tokens=64, answer_tokens=0, on_gpu=False)
    assert cost.activation_bytes == pytest.approx(kept, rel=0.15)
    together = cost.activation_bytes + cost.logit_bytes + cost.backward_bytes
    assert together == pytest.approx(peak, rel=0.15)
    # torch counts no FLOPs of the fused attention of a CPU.
    assert cost.flops - attention_flops(planned.get_base_model(), 8, 64) == flops


def test_a_step_costs_in_proportion_to_its_rows(llama):
    model = attach_lora(read_skeleton(llama, PROMPT, dtype=torch.bfloat16), PROMPT)
    one = step_cost(model, PROMPT, rows=1, row_tokens=64, answer_tokens=8)
    four = step_cost(model, PROMPT, rows=4, row_tokens=64, answer_tokens=8)
    scaled = one.for_tokens(4 * 64)
    assert scaled.flops == four.flops
    # What does not grow with the rows is counted for each of them.
    assert four.activation_bytes <= scaled.activation_bytes <= 1.15 * four.activation_bytes
    assert four.logit_bytes <= scaled.logit_bytes <= 1.15 * four.logit_bytes


def test_a_share_and_what_is_gathered_are_parts_of_the_base(wide):
    model = read_skeleton(wide, PROMPT, dtype=torch.bfloat16)
    whole = base_bytes(model)
    assert share_bytes(model, 4) == pytest.approx(whole / 4, rel=0.001)
    layer = sum(2 * p.numel() for p in model.model.layers[0].parameters())
    assert gathered_bytes(model) == pytest.approx(whole - 2 * layer, rel=0.001)


@pytest.mark.parametrize(
    ("gpus", "gigabytes", "simplest"),
    [(8, 40, "one GPU"), (1, 0.5, "4 bits"), (8, 0.72, "8 shares")],
)
def test_the_simplest_way_that_fits_is_chosen(wide, gpus, gigabytes, simplest):
    task = Classification(labels=("no", "yes"), max_length=128)
    plan = plan_memory(wide, task, gpus=gpus, gpu_memory=gigabytes)
    fitting = [way.name for way in plan.ways if way.fits]
    assert fitting[0] == plan.simplest.name == simplest, str(plan)
    for way in plan.ways:
        assert way.fits == (way.total_bytes <= 0.9 * plan.gpu_bytes)


def test_a_command_has_what_the_plan_was_made_with(wide):
    plan = plan_memory(
        wide,
        Classification(labels=("no", "yes"), max_length=100),
        gpus=2,
        gpu_memory=80,
        rank=4,
        targets=["q_proj", "v_proj"],
        layers=[-1],
        micro_batch_tokens=500,
        gradient_checkpointing=True,
    )
    shares = next(way for way in plan.ways if way.in_shares)
    assert shares.command == (
        f"torchrun --standalone --nproc-per-node 2 -m peftcls train FILE --model {wide} --shard "
        "--rank 4 --targets q_proj,v_proj --layers -1 --max-length 100 --micro-batch-tokens 500 "
        "--gradient-checkpointing --out DIR"
    )


def test_gradient_checkpointing_is_tried_where_nothing_fits(wide):
    plan = plan_memory(wide, PROMPT, gpus=1, gpu_memory=0.01)
    assert plan.gradient_checkpointing
    assert plan.simplest is None
    assert "nothing fits; what takes less: a smaller max_length" in str(plan)


def test_the_time_follows_from_tokens_rate_and_processes(wide):
    plan = plan_memory(wide, PROMPT, gpus=4, gpu_memory=80, tokens=10**9, tflops=100)
    one, four = plan.ways[:2]
    assert one.seconds == pytest.approx(4 * four.seconds)
    # Two products forward and two backward for each weight, and a few for the adapter.
    layers = read_skeleton(wide, PROMPT, dtype=torch.bfloat16).model.layers
    weights = sum(parameter.numel() for parameter in layers.parameters())
    assert one.seconds == pytest.approx(4 * weights * 10**9 / 100e12, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {},
            "this machine has no GPU to count: say how many the training will have, such as gpus=8",
        ),
        ({"gpus": 8}, "this machine has no GPU to ask: say how many GB"),
        ({"gpus": 0, "gpu_memory": 80}, "gpus=0: expected a number above 0."),
        ({"gpus": 8, "gpu_memory": 80, "rank": 0}, "rank=0: expected a number above 0."),
        ({"gpus": "8", "gpu_memory": 80}, "gpus='8': expected a whole number or None."),
    ],
)
def test_a_number_that_is_missing_or_impossible_is_refused(wide, settings, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        plan_memory(wide, LABELS, **settings)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "has no config.json, so it is not a base model."),
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"model_type": "t5"}, "is a t5, an encoder with a decoder, expected one of the two alone"),
    ],
)
def test_a_configuration_that_cannot_be_planned_is_named(config, sentence, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        plan_memory(tmp_path, LABELS, gpus=1, gpu_memory=80)
    assert str(tmp_path) in str(caught.value)


def test_the_command_prints_the_table_and_a_command_or_json(wide, capsys):
    given = ["plan", str(wide), "--gpus", "2", "--gpu-memory", "80", "--task", "keywords"]
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    assert "the simplest way that fits: one GPU" in printed
    assert "on all GPUs: 2 plain processes" in printed
    assert cli.main([*given, "--tokens", "1000", "--tflops", "10", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["simplest"] == "one GPU"
    assert [way["name"] for way in plan["ways"]][:2] == ["one GPU", "2 plain processes"]
    assert plan["ways"][0]["seconds"] > 0
    assert cli.main([*given[:-1], "qa", "--max-new-tokens", "4"]) == 1
    assert "--max-new-tokens cannot be used with --task qa." in capsys.readouterr().err

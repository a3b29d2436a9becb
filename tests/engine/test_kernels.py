"""Kernels: attention, norms and number formats give what the plain ones give."""

import time

import pytest
import torch
import transformers
from conftest import SIZES
from small_models import DECODERS, gradients
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from peftcls import (
    Classification,
    TrainConfig,
    Trainer,
    attach_lora,
    load_base,
    load_predictor,
    train_only,
)
from peftcls.engine import kernels


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_plain_attention_in_bfloat16_is_the_fused_kernel_up_to_rounding(heads, masked):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = False, 4 // heads
    query, key, value = (torch.randn(3, n, 12, 32, dtype=torch.bfloat16) for n in (4, heads, heads))
    mask = None
    if masked:
        mask = torch.zeros(3, 1, 12, 12, dtype=torch.bfloat16)
        mask[1, :, :, 7:] = torch.finfo(torch.bfloat16).min
    plain, _ = kernels._attend_rows(module, query.requires_grad_(), key, value, mask, scaling=0.2)
    fused, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.2)
    assert torch.allclose(plain, fused, atol=3e-2)
    exact, _ = sdpa_attention_forward(
        module,
        query.double(),
        key.double(),
        value.double(),
        None if mask is None else mask.double(),
        scaling=0.2,
    )
    assert (plain - exact).abs().mean() < 3 * (fused - exact).abs().mean() + 1e-4


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("learning", [True, False])
def test_the_fused_kernel_is_for_answers_and_only_where_it_is_faster(faster, learning, monkeypatch):
    used = []
    monkeypatch.setattr(kernels, "_fused_forward_is_faster", lambda: faster)
    monkeypatch.setattr(
        kernels,
        "sdpa_attention_forward",
        lambda *given, **more: used.append(1) or sdpa_attention_forward(*given, **more),
    )
    heads = torch.randn(2, 4, 16, 32, dtype=torch.bfloat16, requires_grad=learning)
    found, _ = kernels._attend_rows(
        torch.nn.Module(), heads, heads, heads, torch.zeros(2, 1, 16, 16, dtype=torch.bfloat16)
    )
    assert bool(used) == (faster and not learning)
    assert found.shape == (2, 16, 4, 32)


@pytest.mark.parametrize("kind", [transformers.BertModel, transformers.LlamaModel])
def test_attention_on_a_gpu_leaves_out_what_makes_a_plan_for_every_shape(kind, monkeypatch):
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=500, **SIZES)).eval()
    ids, mask = torch.randint(3, 500, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    plain, plans = model(ids, attention_mask=mask).last_hidden_state, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kernels.choose_kernels(model)
    monkeypatch.undo()
    monkeypatch.setattr(
        kernels,
        "sdpa_attention_forward",
        lambda *given, **more: (
            plans.append(torch.backends.cuda.cudnn_sdp_enabled())
            or sdpa_attention_forward(*given, **more)
        ),
    )
    found = model(ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(found[mask.bool()], plain[mask.bool()], atol=1e-6)
    assert plans == [False] * model.config.num_hidden_layers
    assert torch.backends.cuda.cudnn_sdp_enabled(), "elsewhere in the process it is as it was"


@pytest.mark.parametrize(("name", "norms"), [("llama", 5), ("qwen3", 9), ("gpt2", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_by_one_kernel_is_the_norm(name, norms, dtype):
    torch.manual_seed(0)
    kind, config = DECODERS[name]
    model = kind(config).eval().to(dtype)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    ids, found = torch.randint(3, 500, (4, 20)), []
    for fused in (False, True):
        if fused:
            kernels.fuse_norms(model)
        logits = model(ids).logits.float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        found.append((logits.detach(), gradients(model).float()))
    assert sum(isinstance(module, kernels._FusedNorm) for module in model.modules()) == norms
    (plain, plain_gradients), (own, own_gradients) = found
    near = 1e-5 if dtype == torch.float32 else 3e-2
    assert (own - plain).norm() <= near * plain.norm()
    assert (own_gradients - plain_gradients).norm() <= near * plain_gradients.norm()


class AroundOne(transformers.models.llama.modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + hidden_states


class Gated(transformers.models.llama.modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states, gate=None):
        return super().forward(hidden_states if gate is None else hidden_states * gate)


@pytest.mark.parametrize("kind", [AroundOne, Gated])
def test_what_only_looks_like_such_a_norm_is_left_as_it_is(kind):
    model = torch.nn.Sequential(kind(16))
    kernels.fuse_norms(model)
    assert type(model[0]) is kind


@pytest.mark.parametrize(
    ("base", "part"),
    [
        ("bert", "head"),
        ("bert", "last_block"),
        ("gpt2", "last_two_blocks"),
        ("llama", "last_block"),
        ("llama", "all"),
        ("bert", [0, 1]),
        ("gpt2", [1]),
    ],
)
def test_over_a_bfloat16_base_everything_trained_steps_in_float32_and_comes_back(
    base, part, request, tmp_path, text_rows
):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_base(request.getfixturevalue(base), task, dtype=torch.bfloat16)
    model = (
        train_only(model, task, part)
        if isinstance(part, str)
        else attach_lora(model, task, rank=4, layers=part)
    )
    trainer = Trainer(
        model, task, tokenizer, TrainConfig(tmp_path, epochs=2, batch_size=8, learning_rate=1e-2)
    )
    assert {p.dtype for p in trainer.parameters.values()} == {torch.float32}
    start = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    trainer.fit(text_rows)
    assert any(not torch.equal(p, start[name]) for name, p in trainer.parameters.items())
    texts = [row["text"] for row in text_rows]
    for kept, again in zip(
        trainer.predict([{"text": t} for t in texts]),
        load_predictor(tmp_path).predict(texts),
        strict=True,
    ):
        assert again.probabilities == pytest.approx(kept.probabilities, abs=1e-6)


def test_a_narrow_model_is_read_in_float32_and_asked_of_no_clock(bert, text_rows, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("a narrow model needs no trial"))
    model, _ = load_base(bert, Classification(max_length=32).learn(text_rows))
    assert {p.dtype for p in model.parameters()} == {torch.float32}

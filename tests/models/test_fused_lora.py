"""A linear layer computed together with its update: the numbers and gradients of PEFT's layer."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from transformers.pytorch_utils import Conv1D

from peftcls.models.fused_lora import FusedLoraLinear, _FusedUpdate, fuse_lora_layers


def adapted(kind, *, dtype=torch.float64, bias=True, **settings):
    """The same adapted layer twice, as PEFT made it and computed together, and what they read."""
    found = []
    for together in (False, True):
        torch.manual_seed(0)
        layer = Conv1D(24, 16) if kind == "conv1d" else torch.nn.Linear(16, 24, bias=bias)
        model = torch.nn.ModuleDict({"layer": layer}).to(dtype)
        with torch.random.fork_rng():
            config = LoraConfig(
                r=4,
                lora_alpha=12,
                target_modules=["layer"],
                init_lora_weights=False,
                fan_in_fan_out=kind == "conv1d",
                **settings,
            )
            model = inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        if together:
            fuse_lora_layers(model)
        found.append(model["layer"])
    assert (type(found[0]), type(found[1])) == (Linear, FusedLoraLinear)
    return *found, torch.randn(2, 5, 16, dtype=dtype)


def results(layer, x):
    """What a layer gives, and the gradients of what it reads and of its update."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (
        y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    ).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_a_layer_with_its_update_gives_what_the_two_give_one_after_another(kind, bias, monkeypatch):
    plain, together, x = adapted(kind, bias=bias)
    calls = []
    monkeypatch.setattr(
        _FusedUpdate,
        "apply",
        lambda *given, own=_FusedUpdate.apply: calls.append(given) or own(*given),
    )
    for expected, found in zip(results(plain, x), results(together, x), strict=True):
        assert torch.allclose(found, expected, atol=1e-12)
    assert len(calls) == 1


def test_in_bfloat16_the_update_is_computed_in_it_and_its_gradient_is_in_float32():
    plain, together, x = adapted("linear", dtype=torch.bfloat16)
    for layer in (plain, together):
        for name, parameter in layer.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    for expected, found in zip(results(plain, x), results(together, x), strict=True):
        assert found.dtype == expected.dtype
        assert (
            torch.nn.functional.cosine_similarity(
                found.flatten().double(), expected.flatten().double(), dim=0
            )
            > 0.9999
        )


def test_below_the_lowest_update_nothing_goes_back():
    _, together, x = adapted("linear")
    together(x).sum().backward()
    assert x.grad is None
    assert all(p.grad is not None for p in together.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "case", ["disabled", "merged", "dropout", "dora", "bias", "autocast", "trained base"]
)
def test_what_is_no_plain_update_is_left_to_peft(case, monkeypatch):
    settings = {
        "dropout": {"lora_dropout": 0.5},
        "dora": {"use_dora": True},
        "bias": {"lora_bias": True},
    }.get(case, {})
    dtype = torch.float64 if case != "autocast" else torch.float32
    plain, together, x = adapted("linear", dtype=dtype, **settings)
    monkeypatch.setattr(_FusedUpdate, "apply", lambda *_: pytest.fail("computed together"))
    found = []
    for layer in (plain, together):
        if case == "disabled":
            layer.enable_adapters(False)
        elif case == "merged":
            layer.merge()
        elif case == "trained base":
            layer.base_layer.weight.requires_grad_(True)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
            found.append(layer(x))
    assert torch.allclose(*found)


def test_without_training_dropout_leaves_the_layer_as_it_is(monkeypatch):
    plain, together, x = adapted("linear", lora_dropout=0.5)
    calls = []
    monkeypatch.setattr(
        _FusedUpdate,
        "apply",
        lambda *given, own=_FusedUpdate.apply: calls.append(given) or own(*given),
    )
    assert torch.allclose(together.eval()(x), plain.eval()(x))
    assert calls

"""Adapter folders for tests of inference and serving, made without training."""

import pytest
import torch

import peftcls
from peftcls.models.adapter_folder import save_adapter

TEXTS = [
    "the patient was given a new drug and recovered",
    "stock prices fell",
    "yes",
    "radio waves from a galaxy far away",
    "see you at lunch",
    "free prize, call now! free prize, call now! free prize",
    "the bank raised rates",
    "no",
]


def saved(base, folder, task, *, part=None, quantize=None, seed=1, dtype=None, **adapter):
    """A folder whose adapter and head are far from the base, as training would leave them."""
    model, tokenizer = peftcls.load_base(base, task, quantize=quantize, dtype=dtype)
    if part:
        model = peftcls.train_only(model, task, part)
    else:
        model = peftcls.attach_lora(model, task, **{"rank": 4, **adapter})
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(folder, model, task, tokenizer)
    return folder


def check_same_answer(found, expected, tolerance=1e-5):
    for field in ("label", "labels", "text", "start", "end"):
        assert getattr(found, field) == getattr(expected, field)
    assert (found.probabilities or {}) == pytest.approx(expected.probabilities or {}, abs=tolerance)
    for field in ("value", "probability"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), abs=tolerance)

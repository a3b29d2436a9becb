"""Probes say why a model goes without a fast path, and hide no fault of the engine."""

import logging

import pytest
import transformers
from conftest import SIZES

from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_state import state_of, use_fast_paths
from peftcls.engine.packing import Packing
from peftcls.engine.probes import can_pack, describe_capabilities


@pytest.fixture
def model():
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=400, **SIZES)).eval()
    use_fast_paths(bert, FastPaths())
    return bert


@pytest.fixture
def t5():
    config = transformers.T5Config(
        vocab_size=400, d_model=128, d_kv=32, num_layers=2, num_heads=4, d_ff=256
    )
    return transformers.T5Model(config).eval()


def test_the_reason_for_a_no_is_logged_at_debug_and_kept(t5, caplog):
    caplog.set_level(logging.DEBUG, logger="peftcls")
    assert not can_pack(t5)
    assert caplog.messages == [
        "the fast path 'packing' is not used: the model is an encoder-decoder"
    ]
    assert "packing (the model is an encoder-decoder)" in describe_capabilities(t5)


def test_a_model_is_asked_once(model, monkeypatch):
    assert can_pack(model)
    monkeypatch.setattr(Packing, "pack", lambda *_: pytest.fail("asked again"))
    assert can_pack(model)


def test_what_is_switched_off_is_said(model):
    use_fast_paths(model, FastPaths(packing=False, frozen_cache=False))
    assert describe_capabilities(model) == (
        "fast paths: kernels; without packing (switched off), last_layer (it needs packing), "
        "frozen_cache (switched off)"
    )


def test_gradient_checkpointing_is_a_reason(model):
    model.encoder.layer[0].gradient_checkpointing = True
    line = describe_capabilities(model)
    assert "packing (gradient checkpointing computes layers again)" in line


def test_a_misspelled_name_in_the_engine_ends_the_program(model, monkeypatch):
    def misspelled(self, states):
        return stats  # noqa: F821

    monkeypatch.setattr(Packing, "pack", misspelled)
    with pytest.raises(NameError, match="stats"):
        can_pack(model)


@pytest.mark.parametrize("error", [AttributeError, TypeError, KeyError])
def test_another_fault_of_the_engine_is_a_warning_with_its_traceback(
    model, monkeypatch, caplog, error
):
    monkeypatch.setattr(Packing, "pack", faulty_engine(error))
    assert not can_pack(model)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0].startswith("the fast path 'packing' failed in peftcls itself: ")
    assert "Traceback" in warnings[1]
    assert state_of(model).capabilities.reasons["packing"].startswith(error.__name__)


def faulty_engine(error):
    """A method that raises from a line that counts as the engine's own."""
    source = "def pack(self, states):\n    raise error('broken')\n"
    code = compile(source, Packing.__init__.__code__.co_filename, "exec")
    names = {"error": error}
    exec(code, names)
    return names["pack"]

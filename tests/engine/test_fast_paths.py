"""Fast paths can be switched off, by setting and by environment variable."""

import dataclasses

import pytest
import torch
from small_models import ASKED, gradients

from peftcls import Classification, FastPaths, TrainConfig, attach_lora, load_base, load_predictor
from peftcls.engine.fast_paths import VARIABLE
from peftcls.engine.frozen_layers import caching_frozen_layers
from peftcls.engine.kernels import CPU_ATTENTION
from peftcls.engine.model_state import state_of, unwrapped, use_fast_paths
from peftcls.engine.probes import can_pack, can_share_prefix, can_subset_last_layer
from peftcls.models.adapter_folder import save_adapter

NAMES = [field.name for field in dataclasses.fields(FastPaths)]
NONE = FastPaths(**dict.fromkeys(NAMES, False))


def test_the_environment_variable_switches_all_off_or_leaves_a_list_on(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert FastPaths.from_environment() == FastPaths()
    for text, expected in {
        "1": FastPaths(),
        "0": NONE,
        "packing, kernels": dataclasses.replace(NONE, packing=True, kernels=True),
    }.items():
        monkeypatch.setenv(VARIABLE, text)
        assert FastPaths.from_environment() == expected


def test_an_unknown_fast_path_is_refused_with_those_that_exist(monkeypatch):
    monkeypatch.setenv(VARIABLE, "packing,trunk")
    with pytest.raises(
        ValueError,
        match=r"^PEFTCLS_FAST_PATHS=packing,trunk: there is no fast path 'trunk'; expected 0, 1, "
        r"or a list of packing, prefix, last_layer, frozen_cache, kernels, cuda_graphs\.$",
    ):
        FastPaths.from_environment()


def test_a_fast_path_is_on_or_off(bert, monkeypatch):
    with pytest.raises(ValueError, match=r"^packing='no': expected True or False\.$"):
        FastPaths(packing="no")
    model, _ = load_base(bert, Classification(labels=("no", "yes")))
    with pytest.raises(ValueError, match=r"^fast_paths='packing': expected a FastPaths, such as "):
        use_fast_paths(model, "packing")
    monkeypatch.setenv(VARIABLE, "packing,,prefix,")
    assert FastPaths.from_environment() == dataclasses.replace(NONE, packing=True, prefix=True)


def test_the_old_setting_cannot_switch_on_what_the_new_one_switches_off(tmp_path):
    with pytest.warns(DeprecationWarning, match="use fast_paths=FastPaths"):
        config = TrainConfig(tmp_path, cuda_graphs=True, fast_paths=FastPaths(cuda_graphs=False))
    assert not config.fast_paths.cuda_graphs
    with pytest.raises(ValueError, match=r"^cuda_graphs='no': expected True or False\.$"):
        TrainConfig(tmp_path, cuda_graphs="no")


def test_a_setting_cannot_switch_on_what_the_environment_switches_off(bert, monkeypatch):
    monkeypatch.setenv(VARIABLE, "kernels,packing")
    model, _ = load_base(bert, Classification(labels=("no", "yes")))
    use_fast_paths(model, FastPaths())
    assert state_of(model).fast_paths == dataclasses.replace(NONE, packing=True, kernels=True)


@pytest.mark.parametrize("name", ["packing", "prefix", "last_layer", "kernels"])
def test_without_a_fast_path_the_loss_and_gradients_are_the_same(name, llama, text_rows):
    model, tokenizer = load_base(llama, ASKED, dtype=torch.float64)
    model = attach_lora(model, ASKED, rank=4).double()
    features = [ASKED.encode(row, tokenizer, with_target=True) for row in text_rows]
    batch = ASKED.collate(features, tokenizer)
    results = []
    for is_on in (True, False, True):
        use_fast_paths(model, dataclasses.replace(FastPaths(), **{name: is_on}))
        able = {
            "packing": can_pack(model),
            "prefix": can_share_prefix(model),
            "last_layer": can_subset_last_layer(model),
            "kernels": unwrapped(model).config._attn_implementation == CPU_ATTENTION,
        }
        assert able[name] == is_on
        loss = ASKED.loss_sum(model, batch)
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    for loss, gradient in results[1:]:
        assert torch.allclose(loss, results[0][0], atol=1e-6)
        assert torch.allclose(gradient, results[0][1], atol=2e-6)


def test_without_the_frozen_layer_cache_nothing_is_cached(bert, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    use_fast_paths(model, FastPaths(frozen_cache=False))
    features = [task.encode(row, tokenizer, with_target=True) for row in text_rows]
    batch = task.collate(features, tokenizer)
    with caching_frozen_layers(
        model, [batch], task.loss_sum, tokens=500, sequences=16, folder=tmp_path
    ) as remark:
        assert remark == ""
        assert state_of(model).frozen_cache is None


def test_a_predictor_without_fast_paths_gives_the_same_answers(bert, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    save_adapter(tmp_path / "out", attach_lora(model, task, rank=2), task, tokenizer)
    texts = [row["text"] for row in text_rows]
    fast = load_predictor(tmp_path / "out")
    plain = load_predictor(tmp_path / "out", fast_paths=NONE)
    assert state_of(plain.model).fast_paths == NONE
    for one, other in zip(fast.predict(texts), plain.predict(texts), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)

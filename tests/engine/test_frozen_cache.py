"""Cached states of frozen layers give the loss and gradients of computing them."""

import pytest
import torch
import transformers
from conftest import save_base, word_piece_tokenizer
from small_models import ASKED, QUESTIONS, gradients, opened

from peftcls import (
    Classification,
    ExtractiveQA,
    TrainConfig,
    Trainer,
)
from peftcls.engine import frozen_cache, frozen_layers
from peftcls.engine.model_state import state_of, unwrapped


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_states_are_kept_of_a_model_that_has_read_nothing_yet(base, request, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(request.getfixturevalue(base), task, [-1])
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    with frozen_layers.caching_frozen_layers(
        model, [batch], task.loss_sum, tokens=500, sequences=16, folder=tmp_path
    ) as remark:
        assert "are cached" in remark


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "how", "height"),
    [
        ("bert", [-1], 1),
        ("gpt2", [-1], 1),
        ("llama", [1], 1),
        ("bert", "head", 2),
        ("gpt2", "head", 2),
        ("llama", "last_block", 1),
    ],
)
@pytest.mark.parametrize("kind", ["label", "windows", "span", "instruction"])
def test_kept_states_of_frozen_layers_give_the_same_loss_and_gradients(
    kind, base, how, height, request, tmp_path, text_rows
):
    if kind == "instruction" and (base == "bert" or how == "head"):
        pytest.skip("an encoder does not generate, and an instruction has no head")
    rows = QUESTIONS if kind == "span" else text_rows
    task = {
        "label": Classification(max_length=32),
        "windows": Classification(max_length=8, long_text="windows"),
        "span": ExtractiveQA(max_length=48, stride=8),
        "instruction": ASKED,
    }[kind].learn(rows)
    model, tokenizer = opened(request.getfixturevalue(base), task, how)
    features = [task.encode(row, tokenizer, with_target=True) for row in rows]
    batches = [task.collate(features[i : i + 3], tokenizer) for i in range(0, len(features), 3)]
    plain = []
    for batch in batches:
        task.loss_sum(model, batch).backward()
        plain.append(gradients(model))
    calls, tokens = [], sum(len(f["input_ids"]) for f in features)
    layers, found = frozen_layers.find_frozen_layers(model)
    assert found == height
    hook = layers[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with frozen_layers.caching_frozen_layers(
        model, batches, task.loss_sum, tokens=tokens, sequences=tokens, folder=tmp_path
    ) as remark:
        assert f"{height} of 2 layers are frozen" in remark
        for batch, expected in zip(batches, plain, strict=True):
            with frozen_layers.using_cached_states(model, batch) as short:
                task.loss_sum(model, short).backward()
            assert torch.allclose(gradients(model), expected, atol=2e-5)
    hook.remove()
    assert plain[0].abs().max() > 1e-4
    assert not state_of(model).uses_frozen_cache
    assert not any("forward" in vars(layer) for layer in layers), "the layers compute again"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("base", "pooling", "read"),
    [
        ("bert", None, "first"),
        ("gpt2", None, "last"),
        ("gpt2", "first", "first"),
        ("llama", "last", "last"),
        ("llama", "mean", None),
    ],
)
@pytest.mark.parametrize("long_text", ["truncate", "windows"])
def test_under_a_head_one_state_a_line_is_kept_where_it_reads_one_token(
    base, pooling, read, long_text, request, tmp_path, text_rows
):
    task = Classification(
        max_length=8 if long_text == "windows" else 32, pooling=pooling, long_text=long_text
    ).learn(text_rows)
    model, tokenizer = opened(request.getfixturevalue(base), task, "head")
    features = [task.encode(row, tokenizer, with_target=True) for row in text_rows]
    lines = sum(len(feature.get("windows", [0])) for feature in features)
    batch, room = (
        task.collate(features, tokenizer),
        sum(len(feature["input_ids"]) for feature in features),
    )
    task.loss_sum(model, batch).backward()
    expected = gradients(model)
    assert expected.abs().max() > 1e-4
    with frozen_layers.caching_frozen_layers(
        model, [batch], task.loss_sum, tokens=room, sequences=lines, folder=tmp_path
    ) as remark:
        store = state_of(model).frozen_cache.store
        assert (
            (f"each sequence's {read} token" in remark)
            == (len(store.states) == lines)
            == (read is not None)
        )
        with frozen_layers.using_cached_states(model, batch) as short:
            assert short["input_ids"].shape[1] == (1 if read else batch["input_ids"].shape[1])
            task.loss_sum(model, short).backward()
    assert torch.allclose(gradients(model), expected, atol=2e-5)


def test_of_a_head_that_says_the_same_whatever_it_reads_nothing_is_concluded(
    bert, tmp_path, text_rows
):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(bert, task, "head")
    torch.nn.init.zeros_(model.classifier.weight)
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    with frozen_layers.caching_frozen_layers(
        model, [batch], task.loss_sum, tokens=500, sequences=16, folder=tmp_path
    ) as remark:
        assert "; their states, " in remark


def test_kept_states_go_through_the_layers_above_without_padding(bert, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(bert, task, [-1])
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    widths = []
    unwrapped(model).base_model.encoder.layer[1].attention.register_forward_pre_hook(
        lambda _, given: widths.append(tuple(given[0].shape[:2]))
    )
    with (
        frozen_layers.caching_frozen_layers(
            model, [batch], task.loss_sum, tokens=500, sequences=16, folder=tmp_path
        ),
        frozen_layers.using_cached_states(model, batch) as given,
    ):
        widths.clear()
        task.loss_sum(model, given)
    (whole, read), real = widths, int(batch["attention_mask"].sum())
    assert real <= whole[1] < min(real + 64, batch["input_ids"].numel()), (
        "all tokens are attended to"
    )
    assert read == (1, 16), "those that are read go on"


def test_what_was_not_read_before_is_computed(bert, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(bert, task, [-1])
    seen, unseen = (
        task.collate([task.encode(row, tokenizer, with_target=True) for row in rows], tokenizer)
        for rows in (text_rows[:4], text_rows[2:6])
    )
    expected = task.loss_sum(model, unseen)
    keeping = frozen_layers.caching_frozen_layers(
        model, [seen], task.loss_sum, tokens=200, sequences=4, folder=tmp_path
    )
    with keeping, frozen_layers.using_cached_states(model, unseen) as given:
        assert given is unseen
        assert torch.equal(task.loss_sum(model, given), expected)


def test_states_too_many_for_the_memory_are_kept_in_a_file_that_is_removed(
    bert, tmp_path, text_rows, monkeypatch
):
    monkeypatch.setattr(frozen_cache, "IN_MEMORY_BYTES", 1000)
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(bert, task, "head")
    trainer = Trainer(
        model, task, tokenizer, TrainConfig(tmp_path / "file", epochs=2, batch_size=8)
    )
    trainer.fit(text_rows, text_rows[:4])
    assert not list(tmp_path.rglob("states*"))
    monkeypatch.undo()
    again, _ = opened(bert, task, "head")
    other = Trainer(
        again, task, tokenizer, TrainConfig(tmp_path / "memory", epochs=2, batch_size=8)
    )
    other.fit(text_rows, text_rows[:4])
    assert all(torch.equal(p, other.parameters[name]) for name, p in trainer.parameters.items())


def test_states_too_many_for_the_disk_are_not_kept_and_it_says_so(
    bert, tmp_path, text_rows, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="peftcls")
    monkeypatch.setattr(frozen_layers, "MAX_CACHE_BYTES", 1000)
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(bert, task, "head")
    Trainer(model, task, tokenizer, TrainConfig(tmp_path, epochs=2, batch_size=8)).fit(text_rows)
    assert "the states of the 2 frozen layers would take" in caplog.text


def test_a_model_that_hands_more_than_states_from_layer_to_layer_computes_them_each_time(
    tmp_path, text_rows, caplog
):
    caplog.set_level("INFO", logger="peftcls")
    config = transformers.XLNetConfig(
        vocab_size=400, d_model=128, n_layer=2, n_head=4, d_inner=256, pad_token_id=0
    )
    base = save_base(tmp_path / "base", transformers.XLNetModel, config, word_piece_tokenizer())
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(base, task, "head")
    Trainer(model, task, tokenizer, TrainConfig(tmp_path / "out", epochs=2, batch_size=8)).fit(
        text_rows
    )
    assert "cannot continue from cached states" in caplog.text

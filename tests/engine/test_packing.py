"""Padding-free: the same loss and gradients, from real tokens only."""

import pytest
import torch
import transformers
from conftest import SIZES, byte_level_tokenizer, save_base, word_piece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import DECODERS, ENCODERS, QUESTIONS, gradients

from peftcls import (
    Classification,
    ExtractiveQA,
    attach_lora,
    load_base,
)
from peftcls.engine import kernels
from peftcls.engine.bin_packing import WIDTH_STEP, fill_bins
from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_state import transformer_layers, use_fast_paths
from peftcls.engine.packing import Packing, current_packing
from peftcls.engine.probes import can_pack, can_subset_last_layer, head_reads_first_token


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "windows", "span"])
@pytest.mark.parametrize("name", [*ENCODERS, "gpt2", "llama", "qwen3", "looking ahead"])
def test_without_padding_the_loss_and_gradients_are_the_same(name, kind, tmp_path, text_rows):
    if name in ENCODERS:
        base = save_base(tmp_path, *ENCODERS[name], word_piece_tokenizer())
    else:
        base = save_base(
            tmp_path,
            *DECODERS["llama" if name == "looking ahead" else name],
            byte_level_tokenizer(),
        )
    if name == "looking ahead" and kind == "span":
        pytest.skip("spans are read with the causal mask that a decoder was pretrained with")
    rows = QUESTIONS if kind == "span" else text_rows
    causal = {"causal": name != "looking ahead"}
    task = {
        "label": Classification(max_length=64, **causal),
        "windows": Classification(max_length=8, long_text="windows", **causal),
        "span": ExtractiveQA(max_length=64, stride=8),
    }[kind].learn(rows)
    model, tokenizer = load_base(base, task)
    model = attach_lora(model, task, rank=4).double()
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = task.collate(
            [task.encode(row, tokenizer, with_target=True) for row in rows], tokenizer
        )
        found = []
        for packs in (True, False):
            use_fast_paths(model, FastPaths(packing=packs))
            assert can_pack(model) == packs
            loss = task.loss_sum(model, batch)
            loss.backward()
            found.append((loss.detach(), gradients(model)))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-9)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-9)


@given(st.lists(st.integers(1, 150), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_every_token_of_every_row_has_one_slot_and_rows_are_not_torn_apart(lengths):
    groups = fill_bins(lengths)
    found = [
        (int(row), int(spot))
        for rows, spots in groups
        for row, spot in zip(rows.ravel(), spots.ravel(), strict=True)
        if row >= 0
    ]
    assert sorted(found) == [
        (row, spot) for row, length in enumerate(lengths) for spot in range(length)
    ]
    for rows, spots in groups:
        assert rows.shape == spots.shape
        assert rows.shape[1] % WIDTH_STEP == 0
        for line, places in zip(rows, spots, strict=True):
            for row in set(line[line >= 0].tolist()):
                assert (line == row).sum() == lengths[row]
                assert places[line == row].tolist() == list(range(lengths[row]))
        assert (spots[rows < 0] == 0).all()


def test_layers_of_different_widths_each_get_a_mask_of_their_own():
    own, seen = Packing(torch.ones(2, 20, dtype=torch.long)), []
    module = torch.nn.Module()
    module.is_causal = False

    def rows(_, query, key, value, mask, **more):
        seen.append(mask.dtype)
        return kernels._attend_rows(module, query, key, value, mask, **more)

    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        heads = torch.randn(1, 4, 64, 32, dtype=dtype)
        assert own.attend(rows, module, heads, heads, heads, None)[0].dtype == dtype
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_short_rows_fill_the_bins_of_long_ones():
    assert sum(rows.size for rows, _ in fill_bins([100, 60, 60, 28, 4])) == 256


def test_layers_are_given_real_tokens_alone(bert, text_rows):
    task = Classification(max_length=64).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    seen = []
    model.base_model.encoder.layer[1].register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape))
    )
    task.loss_sum(model, batch)  # the model is asked at first whether it can
    seen.clear()
    task.loss_sum(model, batch)
    ((rows, slots, width),), real = seen, int(batch["attention_mask"].sum())
    assert (rows, width) == (1, 128)
    assert slots % WIDTH_STEP == 0
    assert real <= slots < min(real + 64, batch["input_ids"].numel())
    assert current_packing() is None


@pytest.mark.parametrize(("base", "tokens"), [("bert", 16), ("llama", 16)])
def test_the_last_layer_answers_for_the_tokens_alone_that_are_read(
    base, tokens, request, text_rows
):
    task = Classification(max_length=64).learn(text_rows)
    model, tokenizer = load_base(request.getfixturevalue(base), task)
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    task.loss_sum(model, batch)
    seen = []
    last = transformer_layers(model)[-1]
    top = last.output.dense if base == "bert" else last.mlp.down_proj
    top.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    task.loss_sum(model, batch)
    assert seen == [tokens]
    assert "forward" not in vars(last)


def test_a_head_that_reads_every_token_is_given_every_token(tmp_path, text_rows):
    config = transformers.ModernBertConfig(
        vocab_size=400,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        local_attention=8,
        classifier_pooling="mean",
        **SIZES,
    )
    base = save_base(tmp_path, transformers.ModernBertModel, config, word_piece_tokenizer())
    task = Classification(max_length=64).learn(text_rows)
    model, tokenizer = load_base(base, task)
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    short = task.loss_sum(model, batch)
    assert can_subset_last_layer(model)
    assert not head_reads_first_token(model)
    use_fast_paths(model, FastPaths(packing=False))
    assert torch.allclose(short, task.loss_sum(model, batch), atol=1e-5)


def test_a_model_that_attends_in_its_own_way_keeps_its_padding(tmp_path, text_rows):
    config = transformers.DebertaV2Config(vocab_size=400, pad_token_id=0, **SIZES)
    base = save_base(tmp_path, transformers.DebertaV2Model, config, word_piece_tokenizer())
    model, _ = load_base(base, Classification(max_length=64).learn(text_rows))
    assert not can_pack(model)

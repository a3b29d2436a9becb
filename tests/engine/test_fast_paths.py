"""Every fast path gives what its plain twin gives: losses, gradients, answers, saved weights."""

import contextlib
import itertools
import math
import time

import pytest
import torch
import transformers
from conftest import GPT2_SIZES, SIZES, byte_level_tokenizer, save_base, word_piece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from peftcls import (
    Classification,
    ExtractiveQA,
    Instruction,
    Predictor,
    TrainConfig,
    Trainer,
    attach_lora,
    load_base,
    load_predictor,
    train_only,
)
from peftcls.data.reading import as_dataset
from peftcls.engine import fixed_shapes, frozen_cache, kernels, packing, prefix_cache
from peftcls.engine.batching import micro_batches
from peftcls.engine.bin_packing import WIDTH_STEP, fill_bins
from peftcls.engine.cuda_graphs import WEIGHT, Recorder, Recording
from peftcls.engine.fixed_shapes import in_fixed_shape
from peftcls.engine.head_logits import FIRST_ALONE, unwrapped
from peftcls.errors import RunStoppedError
from peftcls.tasks.encoding import encode_table
from peftcls.training.signals import Signals

GROUPED = {**SIZES, "num_key_value_heads": 2}
DECODERS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(vocab_size=500, **GROUPED)),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=500, bos_token_id=0, eos_token_id=0, **GPT2_SIZES),
    ),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(vocab_size=500, head_dim=32, **GROUPED),
    ),
    "mistral, a window shorter than the text": (
        transformers.MistralForCausalLM,
        transformers.MistralConfig(vocab_size=500, sliding_window=8, **GROUPED),
    ),
    "gpt-neox": (
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXConfig(vocab_size=500, bos_token_id=0, eos_token_id=0, **SIZES),
    ),
    "opt": (
        transformers.OPTForCausalLM,
        transformers.OPTConfig(
            vocab_size=500,
            hidden_size=128,
            num_hidden_layers=2,
            ffn_dim=256,
            num_attention_heads=4,
            max_position_embeddings=256,
            word_embed_proj_dim=128,
        ),
    ),
}
LABELS = ("yes", "yes please", "no")
ASKED = Instruction(
    template="Somebody wrote a text, and a label belongs to it.\n{input}\nThe label: ",
    input="text",
    output="label",
    labels=("yes", "no"),
    max_length=200,
)


def gradients(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    config = transformers.BloomConfig(
        vocab_size=500,
        hidden_size=128,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return save_base(
        tmp_path_factory.mktemp("bloom"),
        transformers.BloomForCausalLM,
        config,
        byte_level_tokenizer(),
    )


@pytest.mark.parametrize("name", DECODERS)
def test_a_shared_beginning_gives_the_same_loss_and_gradients(name):
    torch.manual_seed(0)
    kind, config = DECODERS[name]
    model = kind(config).eval().double()
    ids = torch.randint(3, 500, (4, 40))
    ids[:, :20] = ids[:1, :20]
    mask, marks = torch.ones_like(ids), torch.zeros_like(ids).bool()
    for row, end in enumerate((40, 33, 40, 30)):
        mask[row, end:], marks[row, end - 4 : end - 1] = 0, True
    assert prefix_cache.can_share(model)
    found = []
    for shares in (True, False):
        vars(model)[prefix_cache.SHARES] = shares
        reading = prefix_cache.Prompts(model, ids, mask)
        logits = reading.logits(marks)
        torch.nn.functional.cross_entropy(logits, torch.arange(12)).backward()
        assert (reading.cache is not None) == shares, (
            "the path that was asked for is the one that was taken"
        )
        found.append((logits.detach(), gradients(model)))
    (fast, fast_gradients), (plain, plain_gradients) = found
    assert torch.allclose(fast, plain, atol=1e-7)
    assert torch.allclose(fast_gradients, plain_gradients, atol=1e-6)
    assert plain_gradients.abs().max() > 1e-4


def test_nothing_before_a_place_that_is_read_and_nothing_but_real_tokens_is_shared():
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 0]])
    mask, marks = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), torch.zeros(2, 5).bool()
    assert prefix_cache._shared_tokens(ids, mask, marks) == 3
    marks[1, 1] = True
    assert prefix_cache._shared_tokens(ids, mask, marks) == 1


def test_what_all_rows_of_a_step_begin_with_ends_before_every_place_that_is_read(llama):
    model, _ = load_base(llama, ASKED)
    long = list(range(3, 60))
    assert (
        prefix_cache.common_tokens(model, [(long, 50), ([*long[:40], 9, 9], 41), (long, 55)]) == 40
    )
    assert prefix_cache.common_tokens(model, [(long, 50), (long, 36), (long, 55)]) == 36
    assert prefix_cache.common_tokens(model, [(long, 50)]) == 0, "one row shares with none"
    assert prefix_cache.common_tokens(model, [(long, 50), ([*long[:20], 9], 20)]) == 0, (
        "too little to be worth a call of its own"
    )
    vars(model)[prefix_cache.SHARES] = False
    assert prefix_cache.common_tokens(model, [(long, 50), (long, 50)]) == 0


def test_micro_batches_of_a_step_read_its_opening_once(llama, tmp_path, text_rows):
    model, tokenizer = load_base(llama, ASKED)
    model, read = attach_lora(model, ASKED, rank=4), []
    trainer = Trainer(
        model, ASKED, tokenizer, TrainConfig(tmp_path, epochs=1, batch_size=8, micro_batch_size=2)
    )
    unwrapped(model).base_model.embed_tokens.register_forward_hook(
        lambda _, inputs, output: read.append(tuple(inputs[0].shape))
    )
    table = encode_table(ASKED, as_dataset(text_rows), tokenizer, "none")
    trainer.gradients.add_up(
        table, list(range(8)), 0, Signals()
    )  # the model is asked at first whether it can
    read.clear()
    trainer.gradients.add_up(table, list(range(8)), 0, Signals())
    (rows, opening), *micros = read
    assert rows == 1
    assert len(micros) == 4
    assert all(rows == 2 and tokens + opening <= table.lengths.max() for rows, tokens in micros)
    assert prefix_cache.OPENING not in vars(unwrapped(model))


@pytest.mark.parametrize(
    "labels", [("yes", "no"), LABELS, ("label one", "label two", "label three")]
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_closed_set_of_labels_is_read_on_from_the_prompt_with_the_same_probabilities(
    name, labels, request, text_rows
):
    task = Instruction(
        template=ASKED.template, input="text", output="label", labels=labels, max_length=200
    )
    model, tokenizer = load_base(request.getfixturevalue(name), task)
    rows = [{"text": row["text"]} for row in text_rows]
    found = Predictor(model, task, tokenizer).predict(rows)
    assert prefix_cache.can_share(model) == (name != "bloom"), (
        "Bloom takes no positions, so it is read from the first token each time"
    )
    vars(model)[prefix_cache.SHARES] = False
    for fast, plain in zip(found, Predictor(model, task, tokenizer).predict(rows), strict=True):
        assert fast.probabilities == pytest.approx(plain.probabilities, abs=1e-5)


def test_a_run_with_a_shared_instruction_leaves_the_same_weights(llama, tmp_path, text_rows):
    weights = []
    for shares, packs, rows in (
        (False, False, 8),
        (True, True, 8),
        (True, True, 3),
        (True, False, 8),
        (False, True, 8),
    ):
        model, tokenizer = load_base(llama, ASKED, dtype=torch.float64)
        model = attach_lora(model, ASKED, rank=4).double()
        vars(unwrapped(model)).update({prefix_cache.SHARES: shares, packing.PACKS: packs})
        trainer = Trainer(
            model,
            ASKED,
            tokenizer,
            TrainConfig(
                tmp_path / f"{shares} {packs} {rows}",
                epochs=2,
                batch_size=8,
                micro_batch_size=rows,
                learning_rate=1e-2,
            ),
        )
        trainer.fit(text_rows)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters.values()]))
    assert all(torch.allclose(found, weights[0], atol=1e-7) for found in weights[1:])


@pytest.mark.parametrize("name", DECODERS)
def test_an_instruction_is_learnt_alike_with_and_without_a_shared_beginning_and_padding(
    name, tmp_path, text_rows
):
    base = save_base(tmp_path, *DECODERS[name], byte_level_tokenizer())
    model, tokenizer = load_base(base, ASKED)
    model = attach_lora(model, ASKED, rank=4).double()
    batch = ASKED.collate(
        [ASKED.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    inner, found = unwrapped(model), []
    for shares, packs in ((False, False), (True, True), (True, False), (False, True)):
        if packs and shares:
            assert prefix_cache.can_pack_behind(inner)
        vars(inner).update(
            {
                prefix_cache.SHARES: shares and prefix_cache.can_share(inner),
                packing.PACKS: packs and packing.can_pack(inner),
            }
        )
        loss = ASKED.loss_sum(model, batch)
        loss.backward()
        found.append((loss.detach(), gradients(model)))
        for asked in (prefix_cache.SHARES, packing.PACKS):
            del vars(inner)[asked]
    assert found[0][1].abs().max() > 1e-4
    for loss, gradient in found[1:]:  # norms of some are computed in float32
        assert torch.allclose(loss, found[0][0], atol=1e-6)
        assert torch.allclose(gradient, found[0][1], atol=2e-6)


def test_gradient_checkpointing_reads_every_row_from_its_first_token(llama, tmp_path, text_rows):
    model, tokenizer = load_base(llama, ASKED)
    model = attach_lora(model, ASKED, rank=4)
    assert prefix_cache.can_share(model)
    Trainer(model, ASKED, tokenizer, TrainConfig(tmp_path, gradient_checkpointing=True))
    assert not prefix_cache.can_share(model)


def test_dropout_of_the_adapter_does_not_decide_whether_a_model_can_share(llama):
    model, _ = load_base(llama, ASKED)
    model = attach_lora(model, ASKED, rank=4, dropout=0.5).train()
    assert prefix_cache.can_share(model)
    assert model.training, "the model is left as it was"


def opened(base, task, how):
    model, tokenizer = load_base(base, task)
    return (
        train_only(model, task, how)
        if isinstance(how, str)
        else attach_lora(model, task, rank=4, layers=how)
    ), tokenizer


QUESTIONS = [
    {
        "question": "who recovered?",
        "context": "the patient was given a new drug and recovered",
        "answers": {"text": ["the patient"], "answer_start": [0]},
    },
    {
        "question": "what fell?",
        "context": "stock prices fell after the bank raised rates",
        "answers": {"text": ["stock prices"], "answer_start": [0]},
    },
]


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_states_are_kept_of_a_model_that_has_read_nothing_yet(base, request, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(request.getfixturevalue(base), task, [-1])
    batch = task.collate(
        [task.encode(row, tokenizer, with_target=True) for row in text_rows], tokenizer
    )
    with frozen_cache.frozen_once(
        model, [batch], task.loss_sum, tokens=500, lines=16, folder=tmp_path
    ) as remark:
        assert "are kept" in remark


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
    layers, found = frozen_cache.frozen_layers(model)
    assert found == height
    hook = layers[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with frozen_cache.frozen_once(
        model, batches, task.loss_sum, tokens=tokens, lines=tokens, folder=tmp_path
    ) as remark:
        assert f"{height} of 2 layers are frozen" in remark
        for batch, expected in zip(batches, plain, strict=True):
            with frozen_cache.reading(model, batch) as short:
                task.loss_sum(model, short).backward()
            assert torch.allclose(gradients(model), expected, atol=2e-5)
    hook.remove()
    assert plain[0].abs().max() > 1e-4
    assert frozen_cache.TRUNK not in vars(unwrapped(model))
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
    with frozen_cache.frozen_once(
        model, [batch], task.loss_sum, tokens=room, lines=lines, folder=tmp_path
    ) as remark:
        kept = vars(unwrapped(model))[frozen_cache.TRUNK].states
        assert (
            (f"each line's {read} token" in remark)
            == (len(kept.kept) == lines)
            == (read is not None)
        )
        with frozen_cache.reading(model, batch) as short:
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
    with frozen_cache.frozen_once(
        model, [batch], task.loss_sum, tokens=500, lines=16, folder=tmp_path
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
        frozen_cache.frozen_once(
            model, [batch], task.loss_sum, tokens=500, lines=16, folder=tmp_path
        ),
        frozen_cache.reading(model, batch) as given,
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
    keeping = frozen_cache.frozen_once(
        model, [seen], task.loss_sum, tokens=200, lines=4, folder=tmp_path
    )
    with keeping, frozen_cache.reading(model, unseen) as given:
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
    bert, tmp_path, text_rows, monkeypatch, capsys
):
    monkeypatch.setattr(frozen_cache, "LARGEST_BYTES", 1000)
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(bert, task, "head")
    Trainer(model, task, tokenizer, TrainConfig(tmp_path, epochs=2, batch_size=8)).fit(text_rows)
    assert "the states of the 2 frozen layers would take" in capsys.readouterr().out


def test_a_model_that_hands_more_than_states_from_layer_to_layer_computes_them_each_time(
    tmp_path, text_rows, capsys
):
    config = transformers.XLNetConfig(
        vocab_size=400, d_model=128, n_layer=2, n_head=4, d_inner=256, pad_token_id=0
    )
    base = save_base(tmp_path / "base", transformers.XLNetModel, config, word_piece_tokenizer())
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = opened(base, task, "head")
    Trainer(model, task, tokenizer, TrainConfig(tmp_path / "out", epochs=2, batch_size=8)).fit(
        text_rows
    )
    assert "does not go on from kept states" in capsys.readouterr().out


ENCODERS = {
    "bert": (transformers.BertModel, transformers.BertConfig(vocab_size=400, **SIZES)),
    "roberta": (
        transformers.RobertaModel,
        transformers.RobertaConfig(vocab_size=400, pad_token_id=0, **SIZES),
    ),
    "distilbert": (
        transformers.DistilBertModel,
        transformers.DistilBertConfig(
            vocab_size=400, dim=128, n_layers=2, n_heads=4, hidden_dim=256
        ),
    ),
    "modernbert": (
        transformers.ModernBertModel,
        transformers.ModernBertConfig(
            vocab_size=400,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            local_attention=8,
            **SIZES,
        ),
    ),
}


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
            if packs:
                assert packing.can_pack(unwrapped(model))
            vars(unwrapped(model))[packing.PACKS] = packs
            loss = task.loss_sum(model, batch)
            loss.backward()
            found.append((loss.detach(), gradients(model)))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-9)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-9)
        del vars(unwrapped(model))[packing.PACKS]


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
    """Stands in for what a GPU records: does the same with the tensors that the recording holds."""

    def __init__(self, recorder, held, loss):
        self.recorder, self.held, self.loss, self.replays = recorder, held, loss, 0

    def replay(self):
        self.replays += 1
        loss = self.recorder.loss(self.held)
        loss.backward()
        self.loss.copy_(loss.detach())


def test_a_shape_is_recorded_when_it_is_seen_again_and_its_replays_add_the_same_gradients(
    monkeypatch, bert, text_rows
):
    def record(self, shapes, batch):
        loss, held = torch.zeros(()), {name: tensor.clone() for name, tensor in batch.items()}
        self.recordings[fixed_shapes] = Recording(Again(self, held, loss), held, loss)

    monkeypatch.setattr(Recorder, "_record", record)
    task = Classification(max_length=64).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    model = attach_lora(model, task, rank=4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    recorder = Recorder(
        lambda batch: task.loss_sum(model, batch) / batch[WEIGHT], parameters, torch.device("cpu")
    )
    recorder.works = True

    def batch_of(rows):
        return in_fixed_shape(
            task.collate(
                [task.encode(row, tokenizer, with_target=True) for row in rows], tokenizer
            ),
            tokenizer,
        )

    halves = [batch_of(text_rows[part::2]) for part in range(2)]
    for turn in range(3):
        loss = sum(recorder.backward(half, 16.0) for half in halves)
        found = gradients(model)  # which forgets them
        plain = task.loss_sum(model, batch_of(text_rows)) / 16
        plain.backward()
        assert math.isclose(loss, float(plain.detach()), rel_tol=1e-5)
        assert torch.allclose(found, gradients(model), atol=1e-6)
        assert [recording.graph.replays for recording in recorder.recordings.values()] == [
            2 * turn + 1
        ]


@pytest.mark.parametrize("spoilt", [False, True])
def test_what_cannot_be_recorded_is_computed_as_it_comes_and_told(spoilt, monkeypatch, capsys):
    """Stands in for a GPU whose recording fails, and may leave its generator of random numbers useless."""
    calls, parameter = [], torch.nn.Parameter(torch.ones(3))

    def loss(batch):
        if calls and calls[-1] == "error":  # in a recording, whatever waits is an error
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
    recorder = Recorder(loss, [parameter], torch.device("cpu"))
    recorder.works = True
    recorder.backward({"x": torch.arange(3.0)}, 2.0)
    if spoilt:
        with pytest.raises(
            RunStoppedError,
            match=r"^a step cannot be recorded \(called a synchronizing operation\), .* cuda_graphs=False",
        ):
            recorder.backward({"x": torch.arange(3.0)}, 2.0)
        return
    assert [recorder.backward({"x": torch.arange(3.0)}, 2.0) for _ in range(2)] == [1.5, 1.5]
    assert parameter.grad.tolist() == [0.0, 1.5, 3.0]
    assert calls == ["error", 0, "the stream before"]
    assert capsys.readouterr().out.endswith(
        " is launched kernel by kernel from now on: called a synchronizing operation\n"
    )


def test_a_replay_adds_to_gradients_that_were_computed_otherwise():
    parameter = torch.nn.Parameter(torch.ones(3))
    recorder = Recorder(
        lambda batch: (parameter * batch["x"]).sum() / batch[WEIGHT],
        [parameter],
        torch.device("cpu"),
    )
    parameter.grad = torch.ones(3)
    recorder.backward({"x": torch.arange(3.0)}, 2.0)
    assert parameter.grad.tolist() == [1.0, 1.5, 2.0]
    parameter.grad = None
    recorder.backward({"x": torch.arange(3.0)}, 2.0)
    assert parameter.grad.tolist() == [0.0, 0.5, 1.0]


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
    own, seen = packing.Packing(torch.ones(2, 20, dtype=torch.long)), []
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
    assert packing.packing() is None


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
    last = packing.layers_of(model.base_model)[-1]
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
    assert packing.can_narrow(model)
    assert not vars(model)[FIRST_ALONE]
    vars(model)[packing.PACKS] = False
    assert torch.allclose(short, task.loss_sum(model, batch), atol=1e-5)


def test_a_model_that_attends_in_its_own_way_keeps_its_padding(tmp_path, text_rows):
    config = transformers.DebertaV2Config(vocab_size=400, pad_token_id=0, **SIZES)
    base = save_base(tmp_path, transformers.DebertaV2Model, config, word_piece_tokenizer())
    model, _ = load_base(base, Classification(max_length=64).learn(text_rows))
    assert not packing.can_pack(model)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.integers(0, 80),
    st.integers(0, 9),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(20, 200)),
)
@settings(max_examples=80, deadline=None)
def test_no_way_to_cut_rows_in_order_of_length_costs_less(lengths, call, shared, rows, tokens):
    widths = sorted((length for length in lengths), reverse=True)

    def allowed(part):
        return len(part) == 1 or (
            (rows is None or len(part) <= rows)
            and (tokens is None or part[0] * len(part) <= tokens)
        )

    def cost(parts):
        return sum(part[0] * len(part) + shared + call for part in parts)

    ways = []
    for cuts in itertools.product([False, True], repeat=len(widths) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(widths)]
        parts = [widths[a:b] for a, b in itertools.pairwise(edges)]
        if all(map(allowed, parts)):
            ways.append(cost(parts))
    found = [
        [lengths[i] for i in batch]
        for batch in micro_batches(
            range(len(lengths)),
            [n + shared for n in lengths],
            rows=rows,
            tokens=tokens,
            shared=shared,
            call_tokens=call,
        )
    ]
    assert [n for batch in found for n in batch] == widths
    assert cost(found) == min(ways)


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
    monkeypatch.setattr(kernels, "_fused_answers_faster", lambda: faster)
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
    assert sum(module.forward.__func__ is kernels._norm for module in model.modules()) == norms
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


def test_a_beginning_is_read_once_where_that_saves_more_than_a_call_costs():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [prefix_cache._worth(8, 64, device) for device in (cpu, gpu)] == [64, 0]
    assert [prefix_cache._worth(100, 64, device) for device in (cpu, gpu)] == [64, 64]
    assert prefix_cache._worth(1, 512, cpu) == 0


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

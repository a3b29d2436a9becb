"""Prefix sharing gives the loss, gradients and answers of computing every row from its start."""

import pytest
import torch
import transformers
from conftest import byte_level_tokenizer, save_base
from small_models import ASKED, DECODERS, LABELS, gradients

from peftcls import (
    Instruction,
    Predictor,
    TrainConfig,
    Trainer,
    attach_lora,
    load_base,
)
from peftcls.data.reading import as_dataset
from peftcls.engine import prompt_logits
from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_state import state_of, unwrapped, use_fast_paths
from peftcls.engine.probes import can_pack_behind_prefix, can_share_prefix
from peftcls.tasks.encoding import encode_table
from peftcls.training.signals import Signals


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
    assert can_share_prefix(model)
    found = []
    for shares in (True, False):
        use_fast_paths(model, FastPaths(prefix=shares))
        reading = prompt_logits.Prompts(model, ids, mask)
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
    assert prompt_logits._common_prefix_tokens(ids, mask, marks) == 3
    marks[1, 1] = True
    assert prompt_logits._common_prefix_tokens(ids, mask, marks) == 1


def test_what_all_rows_of_a_step_begin_with_ends_before_every_place_that_is_read(llama):
    model, _ = load_base(llama, ASKED)
    long = list(range(3, 60))
    assert (
        prompt_logits.common_tokens(model, [(long, 50), ([*long[:40], 9, 9], 41), (long, 55)]) == 40
    )
    assert prompt_logits.common_tokens(model, [(long, 50), (long, 36), (long, 55)]) == 36
    assert prompt_logits.common_tokens(model, [(long, 50)]) == 0, "one row shares with none"
    assert prompt_logits.common_tokens(model, [(long, 50), ([*long[:20], 9], 20)]) == 0, (
        "too little to be worth a call of its own"
    )
    use_fast_paths(model, FastPaths(prefix=False))
    assert prompt_logits.common_tokens(model, [(long, 50), (long, 50)]) == 0


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
    trainer.gradients.accumulate(
        table, list(range(8)), 0, Signals()
    )  # the model is asked at first whether it can
    read.clear()
    trainer.gradients.accumulate(table, list(range(8)), 0, Signals())
    (rows, opening), *micros = read
    assert rows == 1
    assert len(micros) == 4
    assert all(rows == 2 and tokens + opening <= table.lengths.max() for rows, tokens in micros)
    assert state_of(model).prefix is None


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
    assert can_share_prefix(model) == (name != "bloom"), (
        "Bloom takes no positions, so it is read from the first token each time"
    )
    use_fast_paths(model, FastPaths(prefix=False))
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
        use_fast_paths(model, FastPaths(prefix=shares, packing=packs))
        trainer = Trainer(
            model,
            ASKED,
            tokenizer,
            TrainConfig(
                tmp_path / f"{shares} {packs} {rows}",
                fast_paths=FastPaths(prefix=shares, packing=packs),
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
        use_fast_paths(model, FastPaths(prefix=shares, packing=packs))
        if packs and shares:
            assert can_pack_behind_prefix(inner)
        loss = ASKED.loss_sum(model, batch)
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    assert found[0][1].abs().max() > 1e-4
    for loss, gradient in found[1:]:  # norms of some are computed in float32
        assert torch.allclose(loss, found[0][0], atol=1e-6)
        assert torch.allclose(gradient, found[0][1], atol=2e-6)


def test_gradient_checkpointing_reads_every_row_from_its_first_token(llama, tmp_path, text_rows):
    model, tokenizer = load_base(llama, ASKED)
    model = attach_lora(model, ASKED, rank=4)
    assert can_share_prefix(model)
    Trainer(model, ASKED, tokenizer, TrainConfig(tmp_path, gradient_checkpointing=True))
    assert not can_share_prefix(model)


def test_dropout_of_the_adapter_does_not_decide_whether_a_model_can_share(llama):
    model, _ = load_base(llama, ASKED)
    model = attach_lora(model, ASKED, rank=4, dropout=0.5).train()
    assert can_share_prefix(model)
    assert model.training, "the model is left as it was"


def test_a_beginning_is_read_once_where_that_saves_more_than_a_call_costs():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [prompt_logits._worth_sharing(8, 64, device) for device in (cpu, gpu)] == [64, 0]
    assert [prompt_logits._worth_sharing(100, 64, device) for device in (cpu, gpu)] == [64, 64]
    assert prompt_logits._worth_sharing(1, 512, cpu) == 0

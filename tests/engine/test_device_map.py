"""A base whose layers are spread over devices trains and answers as one that is whole.

Accelerate's hooks are put on, but every device is the CPU: no test has several GPUs.
"""

import copy

import pytest
import torch
from small_models import ASKED, QUESTIONS, gradients
from transformers import AutoModelForSeq2SeqLM, T5Config

import peftcls
from peftcls.engine.device_map import choose_devices, spread_layers
from peftcls.engine.model_state import state_of, transformer_layers, unwrapped
from peftcls.engine.probes import describe_capabilities
from peftcls.inference.predictor import Predictor

CPU = torch.device("cpu")
FIRST, SECOND, THIRD = (torch.device("cuda", number) for number in range(3))
KINDS = ("bert-labels", "bert-spans", "llama-labels", "gpt2-asked")


def spread(model):
    spread_layers(model, [CPU] * len(transformer_layers(model)), first=CPU)


def has_hooks(model):
    return all(hasattr(layer, "_hf_hook") for layer in transformer_layers(model))


@pytest.fixture
def made(request, text_rows):
    """A task, its rows, and a function that loads its base, spread or whole, with an adapter."""

    def make(kind):
        name, _, what = kind.partition("-")
        base = request.getfixturevalue(name)
        task, rows = peftcls.Classification(max_length=32).learn(text_rows), text_rows
        if what == "spans":
            task, rows = peftcls.ExtractiveQA(max_length=40, stride=12).learn(QUESTIONS), QUESTIONS
        if what == "asked":
            task = ASKED

        def load(*, is_spread, **settings):
            model, tokenizer = peftcls.load_base(base, task, dtype=torch.float32)
            if is_spread:
                spread(model)
            model = peftcls.attach_lora(model, task, rank=4, **settings)
            with torch.no_grad():
                for number, (name, parameter) in enumerate(model.named_parameters()):
                    if ".lora_B." in name:
                        drawn = torch.Generator().manual_seed(number)
                        parameter.normal_(0, 0.1, generator=drawn)
            return model, tokenizer

        return task, rows, load

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradients_and_answers_are_those_of_a_whole_base(kind, made):
    task, rows, load = made(kind)
    found = []
    for is_spread in (False, True):
        model, tokenizer = load(is_spread=is_spread)
        assert has_hooks(unwrapped(model)) == is_spread
        features = [task.encode(row, tokenizer, with_target=True) for row in rows]
        loss = task.loss_sum(model, task.collate(features, tokenizer))
        loss.backward()
        answers = Predictor(model, task, tokenizer).predict(rows)
        found.append(
            (float(loss.detach()), gradients(model), answers, describe_capabilities(model))
        )
    whole, apart = found
    assert apart[0] == pytest.approx(whole[0], rel=1e-6)
    assert float(whole[1].abs().max()) > 1e-3
    assert torch.allclose(apart[1], whole[1], rtol=1e-5, atol=1e-6)
    assert [str(answer) for answer in apart[2]] == [str(answer) for answer in whole[2]]
    assert apart[3] == whole[3], "the same fast paths"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert-labels", {}),
        ("bert-labels", {"layers": [-1]}),
        ("llama-asked", {"targets": "all-linear"}),
    ],
    ids=["all layers", "top layer, frozen cache", "labels of a prompt"],
)
def test_a_spread_base_trains_saves_and_loads_as_a_whole_one(kind, settings, made, tmp_path):
    task, rows, load = made(kind)
    trained = []
    for is_spread in (False, True):
        model, tokenizer = load(is_spread=is_spread, **settings)
        config = peftcls.TrainConfig(
            tmp_path / str(is_spread), epochs=2, batch_size=6, learning_rate=1e-2
        )
        trainer = peftcls.Trainer(model, task, tokenizer, config)
        trainer.fit(rows)
        assert has_hooks(unwrapped(model)) == is_spread, "training leaves the hooks in place"
        trained.append(({n: p.detach() for n, p in trainer.parameters.items()}, trainer))
    (whole, _), (apart, trainer) = trained
    assert whole.keys() == apart.keys()
    for name, tensor in whole.items():
        assert torch.allclose(apart[name], tensor, rtol=1e-5, atol=1e-6), name
    loaded = peftcls.load_predictor(tmp_path / "True").predict(rows)
    for one, other in zip(trainer.predict(rows), loaded, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_tied_embeddings_stay_tied(llama):
    model, _ = peftcls.load_base(llama, ASKED)
    spread(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# Which layer goes where


@pytest.fixture
def six_layers(bert, text_rows):
    model, _ = peftcls.load_base(bert, peftcls.Classification().learn(text_rows))
    layers = model.bert.encoder.layer
    for _ in range(4):
        layers.append(copy.deepcopy(layers[0]))
    return model


def bytes_of(module):
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def test_layers_fill_the_devices_in_order_by_their_room(six_layers):
    room = 100 * bytes_of(six_layers)
    even = choose_devices(six_layers, {FIRST: room, SECOND: room})
    # The embeddings take the place of most of a layer.
    assert even == (FIRST, FIRST, FIRST, SECOND, SECOND, SECOND)
    more = choose_devices(six_layers, {FIRST: room, SECOND: 2 * room, THIRD: 2 * room})
    assert list(more) == sorted(more, key=lambda device: device.index)
    assert more.count(SECOND) > more.count(FIRST)
    assert set(more) == {FIRST, SECOND, THIRD}


def test_a_base_that_needs_the_cpu_or_the_disk_is_refused(six_layers):
    room = bytes_of(six_layers) // 3
    with pytest.raises(ValueError, match="Parts of it on the CPU or the disk cannot be trained"):
        choose_devices(six_layers, {FIRST: room, SECOND: room})


def test_an_encoder_with_a_decoder_is_refused():
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(ValueError, match="expected a model with one list of layers"):
        choose_devices(model, {FIRST: 1 << 30, SECOND: 1 << 30})


# What is refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device_map": "balanced"}, "device_map='balanced': expected None or 'auto'"),
        ({"device_map": "auto", "shard": True}, "both divide a base among GPUs"),
        ({"device_map": "auto", "quantize": "4bit"}, "weights in 8 or 4 bits are held on one GPU"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, sentence, bert, text_rows):
    task = peftcls.Classification().learn(text_rows)
    with pytest.raises(ValueError, match=sentence):
        peftcls.load_base(bert, task, **settings)


def test_several_processes_are_refused(bert, text_rows, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device_map='auto' with 2 processes"):
        peftcls.load_base(bert, peftcls.Classification().learn(text_rows), device_map="auto")


@pytest.mark.parametrize("folder", ["one", ["one", "two"]])
def test_a_predictor_on_all_gpus_takes_no_other_device_and_one_folder(folder):
    device = "cpu" if folder == "one" else None
    with pytest.raises(ValueError, match="device_map='auto' takes one folder, and no device"):
        peftcls.load_predictor(folder, device_map="auto", device=device)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="the base would be spread")
def test_without_several_gpus_the_base_is_whole(bert, text_rows):
    task = peftcls.Classification().learn(text_rows)
    model, _ = peftcls.load_base(bert, task, device_map="auto")
    assert state_of(model).devices is None
    assert not has_hooks(model)


def test_a_spread_base_is_not_shared_and_takes_no_adalora(bert, text_rows):
    task = peftcls.Classification().learn(text_rows)
    model, _ = peftcls.load_base(bert, task)
    spread(model)
    with pytest.raises(ValueError, match="expected one on a single device"):
        peftcls.share_base(model)
    with pytest.raises(ValueError, match="method='adalora' on a base that is spread over GPUs"):
        peftcls.attach_lora(model, task, method="adalora")

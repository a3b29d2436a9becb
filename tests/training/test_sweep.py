"""A sweep gives the results of single trainings, with one base and one frozen-layer cache."""

import pytest
import torch
from conftest import SIZES, save_base, word_piece_tokenizer
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

import peftcls
from peftcls import (
    Classification,
    Regression,
    TrainConfig,
    Trainer,
    attach_lora,
    load_base,
    share_base,
    sweep,
    train_only,
)
from peftcls.engine.frozen_layers import find_frozen_layers
from peftcls.engine.model_state import state_of
from peftcls.models.trainable import trained_parameters

RATES = {"slow": 1e-3, "fast": 2e-2}
TASK = Classification(max_length=32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = BertConfig(vocab_size=400, **{**SIZES, "num_hidden_layers": 3})
    return save_base(tmp_path_factory.mktemp("base"), BertModel, config, word_piece_tokenizer())


def make_model(base, task, how, model=None):
    """A model in float64, with the head, a block, or adapters in some layers trained."""
    loaded, tokenizer = load_base(base, task, dtype=torch.float32)
    model = (model or loaded).double()
    if isinstance(how, str):
        return train_only(model, task, how), tokenizer
    rank, layers = how
    return attach_lora(model, task, rank=rank, layers=layers, dropout=0.1).double(), tokenizer


def config(folder, **changes):
    return TrainConfig(
        folder, **{"epochs": 2, "batch_size": 4, "seed": 3, "head_init": "random", **changes}
    )


def count_calls(model):
    """A list that gets one entry for each forward pass of the first layer."""
    calls = []
    layers, _ = find_frozen_layers(model)
    layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    return calls


def weights(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["head", (4, [-1]), (4, None), "last_block"], ids=str)
def test_each_training_of_a_sweep_equals_a_single_one_bit_for_bit(base, how, tmp_path, text_rows):
    task = TASK.learn(text_rows)
    model, tokenizer = make_model(base, task, how)
    start = {name: p.detach().clone() for name, p in trained_parameters(model).items()}
    found = sweep(
        model,
        task,
        tokenizer,
        {n: config(tmp_path / "sweep" / n, learning_rate=rate) for n, rate in RATES.items()},
        text_rows,
        text_rows[::3],
    )
    assert all(torch.equal(p, start[name]) for name, p in trained_parameters(model).items()), (
        "the model is unchanged"
    )
    assert not state_of(model).uses_frozen_cache
    assert {one.name for one in found} == set(RATES)
    for one in found:
        alone, _ = make_model(base, task, how)
        trainer = Trainer(
            alone,
            task,
            tokenizer,
            config(tmp_path / "alone" / one.name, learning_rate=RATES[one.name]),
        )
        assert trainer.fit(text_rows, text_rows[::3]) == one.scores
        assert trainer.progress.history == one.history
        own, other = weights(one.directory), weights(tmp_path / "alone" / one.name)
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
        assert any(
            not torch.equal(tensor, start[name]) for name, tensor in trainer.parameters.items()
        ), "it learnt"


@pytest.mark.slow
def test_adapters_of_several_ranks_share_one_base_in_memory(base, tmp_path, text_rows):
    task = TASK.learn(text_rows)
    shapes = {
        "rank 2": (2, [-1]),
        "rank 8": (8, [-1]),
        "two layers": (4, [-2, -1]),
        "head": "head",
    }
    loaded, tokenizer = load_base(base, task, dtype=torch.float32)
    models = {
        name: make_model(base, task, how, share_base(loaded))[0] for name, how in shapes.items()
    }
    addresses = [
        {p.data_ptr() for name, p in model.named_parameters() if ".layer.0." in name}
        for model in models.values()
    ]
    assert all(others == addresses[0] for others in addresses)
    calls = [count_calls(model) for model in models.values()]
    found = sweep(
        models,
        task,
        tokenizer,
        {name: config(tmp_path / name) for name in models},
        text_rows,
        text_rows[::3],
    )
    assert len(calls[1]) < len(calls[0]), (
        "the first of two ranks read the table, the other one a batch to compare"
    )
    for one in found:
        alone, _ = make_model(base, task, shapes[one.name])
        trainer = Trainer(alone, task, tokenizer, config(tmp_path / "alone" / one.name))
        scores = trainer.fit(text_rows, text_rows[::3])
        assert scores == pytest.approx(one.scores, abs=1e-9)
        own, other = weights(one.directory), weights(tmp_path / "alone" / one.name)
        assert all(torch.allclose(own[name], other[name], rtol=0, atol=1e-9) for name in other)


def test_trained_parts_of_a_shared_base_are_copies(base, text_rows):
    task = TASK.learn(text_rows)
    model, _ = load_base(base, task, dtype=torch.float32)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    block = train_only(share_base(model), task, "last_block")
    pissa = attach_lora(share_base(model), task, method="pissa")
    with torch.no_grad():
        for p in (*trained_parameters(block).values(), *trained_parameters(pissa).values()):
            p.add_(1.0)
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    own = dict(block.named_parameters())
    shared = [name for name, p in model.named_parameters() if p.data_ptr() == own[name].data_ptr()]
    assert shared
    assert not any(".layer.2." in name or name.startswith("classifier") for name in shared)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_with_trained_parts_is_not_shared(base, text_rows):
    task = TASK.learn(text_rows)
    for open_it in (attach_lora, lambda model, task: train_only(model, task, "head")):
        with pytest.raises(
            ValueError,
            match=r"expected a frozen one from load_base; call it before attach_lora or",
        ):
            share_base(open_it(load_base(base, task)[0], task))


def test_a_sweep_over_the_head_computes_the_base_once_for_all(base, tmp_path, text_rows, caplog):
    caplog.set_level("INFO", "peftcls")
    task = TASK.learn(text_rows)
    model, tokenizer = make_model(base, task, "head")
    calls = count_calls(model)
    counts = []
    for trainings, epochs in (
        (1, 1),
        (1, 2),
        (2, 2),
        (3, 4),
    ):  # in the first the model is asked what it can do, once
        sweep(
            model,
            task,
            tokenizer,
            {
                f"{trainings} {i}": config(tmp_path / f"{trainings} {i}", epochs=epochs)
                for i in range(trainings)
            },
            text_rows,
            text_rows[::3],
        )
        counts.append(len(calls) - sum(counts))
    saving = (
        counts[2] - counts[1]
    )  # what is saved is answered by all layers, and compared with what is loaded
    assert counts[1] > 2 * saving
    assert counts[3] == counts[1] + 2 * saving, (
        "more trainings and epochs read the table no more often"
    )
    assert "the states of each sequence's first token, the only one used above them" in caplog.text


def test_folds_share_the_frozen_layer_cache_too(base, tmp_path, text_rows):
    task = TASK.learn(text_rows)
    model, tokenizer = make_model(base, task, "head")
    calls, counts = count_calls(model), []
    for folds in (4, 3, 2):
        found = peftcls.cross_validate(
            model, task, tokenizer, config(tmp_path / str(folds)), text_rows, folds=folds
        )
        counts.append(len(calls) - sum(counts))
    assert counts[1] == counts[2] + 1, (
        "a fold more costs the save of its adapter, which is answered by all layers"
    )
    other, _ = make_model(base, task, "head")
    held = [row for row, fold in enumerate(found.fold_of) if fold == 1]
    trainer = Trainer(other, task, tokenizer, config(tmp_path / "alone"))
    trainer.fit([row for number, row in enumerate(text_rows) if number not in held])
    for answer, number in zip(trainer.predict([text_rows[n] for n in held]), held, strict=True):
        assert answer.probabilities == pytest.approx(found.answers[number].probabilities, abs=1e-9)


@pytest.mark.slow
def test_the_best_comes_first_with_intervals_and_a_paired_comparison(base, tmp_path, text_rows):
    task = TASK.learn(text_rows)
    model, tokenizer = make_model(base, task, (4, None))
    rates = {"nothing": 1e-9, "enough": 1e-2}
    best, other = sweep(
        model,
        task,
        tokenizer,
        {n: config(tmp_path / n, learning_rate=rate, epochs=6) for n, rate in rates.items()},
        text_rows,
        text_rows,
    )
    assert (best.name, other.name) == ("enough", "nothing")
    assert best.against_best is None
    # On few rows the loss decides, as it does which step is best.
    assert other.against_best.difference == pytest.approx(
        best.scores["loss"] - other.scores["loss"]
    )
    assert other.against_best == peftcls.compare_answers(
        task, best.answers, other.answers, text_rows, score="loss"
    )
    assert best.intervals == peftcls.evaluate_answers(task, best.answers, text_rows).intervals
    for one in (best, other):
        predictor = peftcls.load_predictor(one.directory)
        for row, answer in zip(text_rows, one.answers, strict=True):
            assert predictor.predict([row["text"]])[0].probabilities == pytest.approx(
                answer.probabilities, abs=1e-5
            )


def test_trainings_that_do_not_fit_together_are_refused(base, tmp_path, text_rows):
    task = TASK.learn(text_rows)
    model, tokenizer = make_model(base, task, "head")
    same = {"a": config(tmp_path / "x"), "b": config(tmp_path / "x")}
    for configs, models, sentence in [
        ({}, model, r"configs is empty, expected a TrainConfig for each training, by name\."),
        (same, model, r"'a' and 'b' have the same output_dir '.*x', expected a folder for each\."),
        (
            {"a": config(tmp_path / "a")},
            {"b": model},
            r"there are models for \['b'\] and configs for \['a'\], expected the same names\.",
        ),
        (
            {"a": config(tmp_path / "a", monitor="accuracy"), "b": config(tmp_path / "b")},
            model,
            r"the trainings are judged by \['accuracy', 'f1_macro'\], expected one monitor",
        ),
    ]:
        with pytest.raises(ValueError, match=sentence):
            sweep(models, task, tokenizer, configs, text_rows, text_rows)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantized_base_is_shared_too(base, quantize, tmp_path, text_rows):
    task = TASK.learn(text_rows)
    loaded, tokenizer = load_base(base, task, quantize=quantize)
    other = attach_lora(share_base(loaded), task, rank=2)
    own = {p.data_ptr() for p in loaded.base_model.parameters()}
    assert own <= {p.data_ptr() for p in other.parameters()}
    again, _ = load_base(base, task, quantize=quantize)
    rows = [row["text"] for row in text_rows]
    for model, expected in (
        (other, attach_lora(again, task, rank=2)),
        (attach_lora(loaded, task, rank=2), None),
    ):
        answers = peftcls.Predictor(model, task, tokenizer).predict(rows)
        assert expected is None or answers == peftcls.Predictor(expected, task, tokenizer).predict(
            rows
        )


def test_trainings_of_numbers_are_ranked_by_their_error(base, tmp_path):
    rows = [{"text": f"word {'long ' * n}", "target": 10.0 * n} for n in range(1, 7)] * 4
    task = Regression(target="target", max_length=32).learn(rows)
    model, tokenizer = make_model(base, task, (4, None))
    rates = {"nothing": 1e-9, "enough": 1e-2}
    configs = {n: config(tmp_path / n, learning_rate=rate, epochs=4) for n, rate in rates.items()}
    best, other = sweep(model, task, tokenizer, configs, rows, rows)
    assert other.against_best.score == "rmse"
    assert best.scores["rmse"] <= other.scores["rmse"]

"""Every method of adapters: it trains its own tensors only, and answers alike when loaded again."""

from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

import peftcls
from peftcls import Classification, TrainConfig, Trainer
from peftcls.models.adapter_methods import INITIAL_RANK_FACTOR, LORA_PLUS_RATIO, Method
from peftcls.training.checkpoint import find_checkpoints

METHODS = get_args(Method)
TENSORS = {
    "lora": {"lora_A", "lora_B"},
    "lora+": {"lora_A", "lora_B"},
    "rslora": {"lora_A", "lora_B"},
    "pissa": {"lora_A", "lora_B"},
    "dora": {"lora_A", "lora_B", "lora_magnitude_vector"},
    "adalora": {"lora_A", "lora_B", "lora_E"},
    "ia3": {"ia3_l"},
}


def build(base, folder, rows, method, *, rank=4, dropout=0.0, **config):
    task = Classification(max_length=32).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model = peftcls.attach_lora(model, task, rank=rank, method=method, dropout=dropout)
    settings = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "head_init": "random"}
    settings |= config
    return Trainer(model, task, tokenizer, TrainConfig(folder, **settings)), before


def base_of(trainer):
    """The base's parameters inside the adapted model, under their own names."""
    found = {}
    for name, p in trainer.model.named_parameters():
        own = (
            name.removeprefix("base_model.model.")
            .replace(".base_layer.", ".")
            .replace(".original_module.", ".")
        )
        if (
            not p.requires_grad
            and not any(kind in name for kinds in TENSORS.values() for kind in kinds)
            and "ranknum" not in name
        ):
            found[own] = p.detach().clone()
    return found


def kinds_of(names):
    return {
        kind
        for name in names
        for kind in TENSORS["dora"] | TENSORS["adalora"] | TENSORS["ia3"]
        if f".{kind}" in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_its_tensors_beside_a_frozen_base_and_is_loaded_as_it_was(
    method, base, request, tmp_path, text_rows
):
    trainer, before = build(request.getfixturevalue(base), tmp_path, text_rows, method, epochs=2)
    base_at_start, start = (
        base_of(trainer),
        {name: p.detach().clone() for name, p in trainer.parameters.items()},
    )
    trainer.fit(text_rows)

    after = base_of(trainer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], base_at_start[name]) for name in after), (
        "training changed the base"
    )
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert bool(changed) == (method == "pissa"), (
        "PiSSA takes its first adapter out of the base in memory, no other method does"
    )
    assert all(
        name.endswith(".weight") and "classifier" not in name and "score" not in name
        for name in changed
    )

    moved = {name for name, p in trainer.parameters.items() if not torch.equal(p, start[name])}
    assert kinds_of(moved) == kinds_of(trainer.parameters) == TENSORS[method]
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert kinds_of(saved) == TENSORS[method]
    assert sum(t.numel() for t in saved.values()) >= sum(
        p.numel() for p in trainer.parameters.values()
    )
    assert not {name.removeprefix("base_model.model.") for name in saved} & (
        before.keys() - {"classifier.weight", "classifier.bias", "score.weight"}
    )
    loaded = peftcls.load_predictor(tmp_path)
    kept, again = trainer.predict(text_rows), loaded.predict(text_rows)
    for one, other in zip(kept, again, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-6)
    assert len({round(answer.probabilities["yes"], 6) for answer in kept}) > 1


def test_lora_plus_steps_b_sixteen_times_as_far(bert, tmp_path, text_rows):
    moved = {}
    for method in ("lora", "lora+"):
        trainer, _ = build(
            bert,
            tmp_path / method,
            text_rows,
            method,
            batch_size=16,
            weight_decay=0.0,
            warmup=0.0,
            schedule="constant",
        )
        with torch.no_grad():  # as drawn B is zero, and no gradient reaches A
            for number, (name, p) in enumerate(trainer.parameters.items()):
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
        start = {name: p.detach().clone() for name, p in trainer.parameters.items()}
        trainer.fit(text_rows)
        moved[method] = {
            name: float((p.detach() - start[name]).abs().median())
            for name, p in trainer.parameters.items()
        }
    for name, usual in moved[
        "lora"
    ].items():  # the first step of Adam is one learning rate long, whatever the gradient
        assert usual == pytest.approx(1e-2, rel=0.01), name
        assert moved["lora+"][name] == pytest.approx(
            (LORA_PLUS_RATIO if "lora_B" in name else 1) * 1e-2, rel=0.01
        ), name


def ranks(trainer):
    return [int((p != 0).sum()) for name, p in trainer.parameters.items() if "lora_E" in name]


def test_the_ranks_of_adalora_fall_to_their_target_on_average(bert, tmp_path, text_rows):
    trainer, _ = build(bert, tmp_path, text_rows, "adalora", epochs=10, batch_size=4)
    seen, step = [], trainer._step

    def watched(*arguments):
        loss = step(*arguments)
        seen.append(sum(ranks(trainer)))
        return loss

    trainer._step = watched
    trainer.fit(text_rows)
    modules = len(ranks(trainer))
    assert seen[0] == round(INITIAL_RANK_FACTOR * 4) * modules
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 3, "the ranks fell at once"
    assert seen[-1] == sum(ranks(trainer)) == 4 * modules
    assert len(set(ranks(trainer))) > 1, "every module lost the same, so nothing was dealt out"
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(int((t != 0).sum()) for name, t in saved.items() if "lora_E" in name) == 4 * modules


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("method", ["adalora", "lora+"])
def test_a_run_of_a_few_steps_comes_to_its_end(method, steps, bert, tmp_path, text_rows):
    trainer, _ = build(bert, tmp_path, text_rows, method, epochs=steps, batch_size=16)
    trainer.fit(text_rows)
    assert trainer.progress.step == steps


def test_the_best_step_of_adalora_has_the_ranks_that_were_asked_for(bert, tmp_path, text_rows):
    trainer, _ = build(bert, tmp_path, text_rows, "adalora", epochs=5, batch_size=4, eval_every=5)
    scores = iter([1.0] + [0.5] * 99)
    trainer._evaluate = lambda rows, inputs: {
        "f1_macro": next(scores),
        "loss": 1.0,
    }  # the first step, before ranks fall, looks best
    trainer.fit(text_rows, text_rows)
    assert sum(ranks(trainer)) <= 4 * len(ranks(trainer))


class Killed(Exception):
    """Stands for a process that ends."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "killed_at"), [("adalora", 6), ("adalora", 9), ("adalora", 17), ("ia3", 9)]
)
def test_an_interrupted_method_ends_as_the_uninterrupted_one(
    method, killed_at, bert, tmp_path, text_rows
):
    settings = {
        "epochs": 5,
        "batch_size": 4,
        "eval_every": 4,
        "dropout": 0.2,
    }  # AdaLoRA's ranks fall from step 2 to 14
    whole, _ = build(bert, tmp_path / "whole", text_rows, method, **settings)
    whole.fit(text_rows)
    cut, _ = build(bert, tmp_path / "cut", text_rows, method, **settings)
    step = cut._step

    def step_until_killed(table, indices, number, steps):
        if number == killed_at:
            raise Killed
        return step(table, indices, number, steps)

    cut._step = step_until_killed
    with pytest.raises(Killed):
        cut.fit(text_rows)
    assert find_checkpoints(tmp_path / "cut")
    again, _ = build(bert, tmp_path / "cut", text_rows, method, **settings)
    again.fit(text_rows, resume=True)
    expected, found = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert ranks(again) == ranks(whole)


def test_another_method_is_refused_on_resume(bert, tmp_path, text_rows):
    trainer, _ = build(bert, tmp_path, text_rows, "lora", eval_every=1)

    def killed(table, indices, number, steps):
        raise Killed

    step, trainer._step = (
        trainer._step,
        lambda t, i, number, steps: (killed if number else step)(t, i, number, steps),
    )
    with pytest.raises(Killed):
        trainer.fit(text_rows)
    with pytest.raises(ValueError, match=r"method was 'lora', is 'lora\+'"):
        build(bert, tmp_path, text_rows, "lora+", eval_every=1)[0].fit(text_rows, resume=True)


def test_weight_decay_draws_the_scales_of_ia3_to_one_or_not_at_all(bert, tmp_path, text_rows):
    trainer, _ = build(
        bert, tmp_path, text_rows, "ia3", epochs=5, weight_decay=10.0, learning_rate=1e-3
    )
    trainer.fit(text_rows)
    scales = torch.cat(
        [p.detach().flatten() for name, p in trainer.parameters.items() if "ia3_l" in name]
    )
    assert float((scales - 1).abs().max()) < 0.015, (
        "a scale of one changes nothing; of zero it silences the layer"
    )


def test_a_method_that_there_is_not_is_told_with_the_nearest(bert):
    task = Classification(labels=("no", "yes"))
    model, _ = peftcls.load_base(bert, task)
    with pytest.raises(
        ValueError,
        match=r"^method='adlora': expected one of \['adalora', .*'rslora'\]; "
        r"did you mean 'adalora'\?$",
    ):
        peftcls.attach_lora(model, task, method="adlora")

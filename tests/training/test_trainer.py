"""The training loop: micro-batches change nothing, and interrupted equals uninterrupted."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from small_runs import Killed, build, interrupt, weights
from tensorboard.backend.event_processing import event_accumulator

import peftcls
from peftcls.data.reading import as_dataset
from peftcls.engine.fast_paths import FastPaths
from peftcls.engine.model_state import base_facts, state_of
from peftcls.errors import RunStoppedError
from peftcls.training.checkpoint import find_checkpoints
from peftcls.training.lr_schedule import learning_rate_factor
from peftcls.training.prepare import prepare
from peftcls.training.save_check import share_weights


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("instruction", [False, True])
def test_the_size_of_a_micro_batch_does_not_change_the_weights(
    base, instruction, request, tmp_path, text_rows
):
    if base == "bert" and instruction:
        pytest.skip("an encoder does not generate")
    trained = []
    for name, micro in {
        "one": {"micro_batch_size": 1},
        "four": {"micro_batch_size": 4},
        "tokens": {"micro_batch_tokens": 30},
    }.items():
        trainer = build(
            request.getfixturevalue(base),
            tmp_path / name,
            text_rows,
            double=True,
            instruction=instruction,
            **micro,
        )
        trainer.fit(text_rows)
        trained.append({name: p.detach().clone() for name, p in trainer.parameters.items()})
    first = trained[0]
    for other in trained[1:]:
        assert max(float((first[name] - other[name]).abs().max()) for name in first) < 1e-7
    assert any(
        "lora_B" in name and float(tensor.abs().max()) > 1e-4 for name, tensor in first.items()
    ), "nothing was trained"


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 2, 4, 5])
def test_interrupted_equals_uninterrupted_bit_for_bit_with_dropout(
    bert, tmp_path, text_rows, killed_at, monkeypatch
):
    settings = {"dropout": 0.3, "eval_every": 2, "micro_batch_size": 2}
    build(bert, tmp_path / "whole", text_rows, **settings).fit(text_rows, text_rows)

    trainer = build(bert, tmp_path / "cut", text_rows, **settings)
    step = trainer._step

    def step_until_killed(table, indices, number, steps):
        if number == killed_at:
            raise Killed
        return step(table, indices, number, steps)

    monkeypatch.setattr(trainer, "_step", step_until_killed)
    with pytest.raises(Killed):
        trainer.fit(text_rows, text_rows)
    assert bool(find_checkpoints(tmp_path / "cut")) == (killed_at >= 2)
    build(bert, tmp_path / "cut", text_rows, **settings).fit(text_rows, text_rows, resume=True)

    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not find_checkpoints(tmp_path / "cut"), "a finished run leaves its adapter alone"


def test_a_changed_setting_is_refused_on_resume_with_the_difference(
    bert, tmp_path, text_rows, monkeypatch
):
    interrupt(build(bert, tmp_path, text_rows), text_rows, monkeypatch)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.01, is 0\.02"):
        build(bert, tmp_path, text_rows, learning_rate=2e-2).fit(text_rows, resume=True)
    with pytest.raises(ValueError, match="training rows was"):
        build(bert, tmp_path, text_rows).fit(text_rows[:-1], resume=True)
    with pytest.raises(ValueError, match="was not finished; go on with resume=True, or remove it"):
        build(bert, tmp_path, text_rows).fit(text_rows)


def test_a_run_is_resumed_with_the_same_rows_from_elsewhere_and_refused_with_changed_ones(
    bert, tmp_path, text_rows, monkeypatch
):
    build(bert, tmp_path / "whole", text_rows).fit(text_rows, text_rows)
    interrupt(build(bert, tmp_path / "cut", text_rows), text_rows, monkeypatch, valid=text_rows)
    odd = [{**text_rows[0], "label": "no"}, *text_rows[1:]]
    for train, valid, what in (
        (odd, text_rows, "training"),
        (text_rows, odd, "validation"),
        (text_rows[::-1], text_rows, "training"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"{what} rows was '16 rows, sum [0-9a-f]+', is '16 rows, sum [0-9a-f]+'",
        ):
            build(bert, tmp_path / "cut", text_rows).fit(train, valid, resume=True)
    as_dataset([{**row, "comment": n} for n, row in enumerate(text_rows)]).to_parquet(
        tmp_path / "rows.parquet"
    )
    again = peftcls.read_rows(
        tmp_path / "rows.parquet"
    )  # another file, with a column that nobody reads
    build(bert, tmp_path / "cut", text_rows).fit(again, again.select(range(16)), resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_without_a_checkpoint_to_resume_from_says_so(bert, tmp_path, text_rows, caplog):
    build(bert, tmp_path / "a", text_rows, epochs=1).fit(text_rows, resume=True)
    assert (
        f"there is no checkpoint in {tmp_path / 'a'} to resume from: this run begins with its "
        "first step."
    ) in caplog.text
    caplog.clear()
    build(bert, tmp_path / "b", text_rows, epochs=1).fit(text_rows)
    assert "to resume from" not in caplog.text


def test_patience_and_the_best_step_are_resumed_after_a_kill_in_the_middle_of_a_step(
    bert, tmp_path, text_rows, monkeypatch
):
    def make(name):
        trainer = build(
            bert,
            tmp_path / name,
            text_rows,
            dropout=0.3,
            micro_batch_size=2,
            eval_every=1,
            epochs=5,
            patience=4,
            monitor="f1_macro",
        )
        evaluate = trainer._evaluate
        scores = [0.5, 0.9, 0.6, 0.9, 0.3, 0.2, 0.1]

        def scripted(rows, inputs):
            scripted_scores = {"f1_macro": scores[trainer.progress.step - 1], "loss": 1.0}
            return evaluate(rows, inputs) | scripted_scores

        trainer._evaluate = scripted
        return trainer

    whole = make("whole")
    best = whole.fit(text_rows, text_rows)
    assert (whole.progress.step, whole.progress.best_step) == (6, 2)
    for cut_step in (1, 4):
        cut = make(f"cut{cut_step}")
        backward, calls = cut.gradients._backward, []

        def die(features, weight, cut=cut, backward=backward, calls=calls, at=cut_step):
            calls.append(cut.progress.step)
            if calls.count(at) == 2:  # the second of three micro-batches: half a gradient is there
                cut.run.identity = None  # as if killed: nothing more is written
                raise Killed
            return backward(features, weight)

        monkeypatch.setattr(cut.gradients, "_backward", die)
        with pytest.raises(Killed):
            cut.fit(text_rows, text_rows)
        again = make(f"cut{cut_step}")
        assert again.fit(text_rows, text_rows, resume=True) == best
        assert again.progress == whole.progress
        expected = weights(tmp_path / "whole")
        resumed = weights(tmp_path / f"cut{cut_step}")
        assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_checkpoint_holds_no_weight_of_the_base(bert, tmp_path, text_rows, monkeypatch):
    trainer = build(bert, tmp_path, text_rows)
    interrupt(trainer, text_rows, monkeypatch)
    names = {
        key.split("/")[-1]
        for key in load_file(find_checkpoints(tmp_path)[0] / "tensors.safetensors")
    }
    assert names == set(trainer.parameters)


def test_a_damaged_checkpoint_is_named(bert, tmp_path, text_rows, monkeypatch):
    interrupt(build(bert, tmp_path, text_rows), text_rows, monkeypatch)
    file = find_checkpoints(tmp_path)[0] / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"tensors\.safetensors is damaged: its SHA-256"):
        build(bert, tmp_path, text_rows).fit(text_rows, resume=True)


def test_the_best_step_is_kept_and_patience_ends_the_run(bert, tmp_path, text_rows, monkeypatch):
    trainer = build(bert, tmp_path, text_rows, epochs=9, patience=2, monitor="f1_macro")
    scores = iter([0.5, 0.9, 0.8, 0.7, 1.0])
    kept = []

    def evaluate(rows, inputs):
        kept.append({name: p.detach().clone() for name, p in trainer.parameters.items()})
        return {"f1_macro": next(scores), "loss": 1.0}

    monkeypatch.setattr(trainer, "_evaluate", evaluate)
    assert trainer.fit(text_rows, text_rows)["f1_macro"] == 0.9
    assert len(kept) == 4
    assert all(torch.equal(p, kept[1][name]) for name, p in trainer.parameters.items())


def test_training_learns_and_the_loaded_folder_answers_as_the_trainer_did(
    bert, tmp_path, text_rows
):
    trainer = build(bert, tmp_path, text_rows, epochs=15)
    assert trainer.fit(text_rows, text_rows)["accuracy"] == 1.0
    kept, loaded = trainer.predict(text_rows), peftcls.load_predictor(tmp_path)
    again = loaded.predict([row["text"] for row in text_rows])
    assert loaded.label_names == ("no", "yes")
    assert [a.label for a in again] == [row["label"] for row in text_rows]
    assert all(
        abs(a.probabilities["yes"] - b.probabilities["yes"]) < 1e-5
        for a, b in zip(kept, again, strict=True)
    )


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(
    bert, tmp_path, text_rows
):
    trainer = build(bert, tmp_path, text_rows)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    weight = trainer.model.get_base_model().get_submodule("bert.embeddings.word_embeddings").weight
    weight.data[:] = float("nan")
    with pytest.raises(
        FloatingPointError,
        match=r"step 1: the loss is nan .* The step was not taken\. Its rows: \[",
    ):
        trainer.fit(text_rows)
    assert all(torch.equal(p, before[name]) for name, p in trainer.parameters.items())


def test_a_folder_whose_answers_differ_fails_the_run(bert, tmp_path, text_rows, monkeypatch):
    trainer = build(bert, tmp_path, text_rows)
    save = peftcls.models.adapter_folder.trained_tensors
    monkeypatch.setattr(
        peftcls.models.adapter_folder,
        "trained_tensors",
        lambda model: {k: v + 0.5 for k, v in save(model).items()},
    )
    with pytest.raises(
        RuntimeError, match="was saved, but when it is loaded its answers differ from the trained"
    ):
        trainer.fit(text_rows)


def test_weights_that_the_loaded_and_the_trained_model_have_in_common_are_in_memory_once(
    bert, tmp_path, text_rows
):
    trainer = build(bert, tmp_path, text_rows)
    trainer.fit(text_rows)
    loaded = peftcls.load_predictor(tmp_path).model
    trained = dict(trainer.model.named_parameters())
    other = next(name for name in trained if name.endswith("word_embeddings.weight"))
    loaded.get_parameter(other).data[0, 0] += 1.0
    share_weights(loaded, trainer.model)
    assert {
        name for name, p in loaded.named_parameters() if p.data_ptr() != trained[name].data_ptr()
    } == {other}
    assert loaded.get_parameter(other)[0, 0] == trained[other][0, 0] + 1.0


def test_the_folder_holds_the_trained_tensors_and_nothing_of_the_base(bert, tmp_path, text_rows):
    build(bert, tmp_path / "out", text_rows).fit(text_rows)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "peftcls.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all("lora_" in name or ".classifier." in name for name in weights(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "peftcls.json").read_text())
    assert manifest["task"]["labels"] == ["no", "yes"]
    assert manifest["base"]["name"] == bert


def test_two_seeded_runs_give_the_same_bytes(bert, tmp_path, text_rows):
    for name in ("a", "b"):
        build(bert, tmp_path / name, text_rows, dropout=0.2).fit(text_rows)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("part", ["head", "last_block", "last_two_blocks", "all"])
def test_only_the_trained_part_is_saved_and_it_is_loaded_again(bert, tmp_path, text_rows, part):
    task = peftcls.Classification(max_length=64).learn(as_dataset(text_rows))
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.train_only(model, task, part)
    trainer = peftcls.Trainer(
        model,
        task,
        tokenizer,
        peftcls.TrainConfig(tmp_path, epochs=1, batch_size=8, learning_rate=1e-3),
    )
    trainer.fit(text_rows)
    assert set(load_file(tmp_path / "trained_part.safetensors")) == set(trainer.parameters)
    kept, again = trainer.predict(text_rows), peftcls.load_predictor(tmp_path).predict(text_rows)
    assert all(
        abs(a.probabilities["yes"] - b.probabilities["yes"]) < 1e-6
        for a, b in zip(kept, again, strict=True)
    )


def test_one_message_names_all_wrong_settings(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"epochs=0: expected .*; learning_rate=-1: expected .*; schedule='step': expected",
    ):
        peftcls.TrainConfig(tmp_path, epochs=0, learning_rate=-1, schedule="step")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero(schedule):
    rates = [learning_rate_factor(step, 100, warmup=0.1, schedule=schedule) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_a_tracker_that_is_not_installed_is_refused(bert, tmp_path, text_rows):
    sentence = (
        r"trackers=\('notebook',\): 'notebook' is not a tracker of Accelerate that is installed "
        r"here; expected some of \['.*'\]"
    )
    with pytest.raises(ValueError, match=sentence):
        build(bert, tmp_path, text_rows, trackers=("notebook",))


def test_a_tracker_that_does_not_start_is_named(bert, tmp_path, text_rows, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no server answers\nand more")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    sentence = (
        r"^trackers=\('tensorboard',\) cannot be started "
        r"\(ConnectionError: no server answers\); set them up"
    )
    with pytest.raises(ValueError, match=sentence):
        build(bert, tmp_path, text_rows, trackers=("tensorboard",)).fit(text_rows)


@pytest.mark.slow
def test_two_programs_do_not_train_into_one_folder(bert, tmp_path, text_rows):
    out = tmp_path / "runs" / "one"
    hold = """
import sys
from pathlib import Path
from peftcls.training.preflight import lock_output_dir
with lock_output_dir(Path(sys.argv[1]), is_main_process=True):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            RunStoppedError,
            match=r"^another program is training into .*one; wait until it has ended",
        ):
            build(bert, out, text_rows).fit(text_rows)
        assert list(out.iterdir()) == []
        other.kill()
    build(bert, out, text_rows).fit(text_rows)
    assert (out / "adapter_config.json").is_file()


def test_a_training_that_fails_at_once_leaves_no_folder(bert, tmp_path, text_rows, monkeypatch):
    trainer = build(bert, tmp_path / "out", text_rows)
    monkeypatch.setattr(trainer.gradients, "accumulate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(text_rows)
    assert not (tmp_path / "out").exists()


def test_a_tracker_gets_losses_and_scores(bert, tmp_path, text_rows):
    with build(bert, tmp_path, text_rows, trackers=("tensorboard",), log_every=1) as trainer:
        trainer.fit(text_rows, text_rows)
    events = event_accumulator.EventAccumulator(str(tmp_path / "peftcls"))
    events.Reload()
    assert len(events.Scalars("loss")) == 6
    assert [scalar.step for scalar in events.Scalars("valid_f1_macro")] == [3, 6]


@pytest.mark.parametrize("method", ["dora", "rslora", "pissa"])
def test_every_kind_of_lora_gives_the_same_answers_when_loaded_again(
    method, bert, tmp_path, text_rows
):
    task = peftcls.Classification(max_length=64).learn(as_dataset(text_rows))
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task, rank=4, method=method)
    trainer = peftcls.Trainer(
        model,
        task,
        tokenizer,
        peftcls.TrainConfig(tmp_path, epochs=2, batch_size=4, learning_rate=1e-2),
    )
    trainer.fit(text_rows)
    kept, again = trainer.predict(text_rows), peftcls.load_predictor(tmp_path).predict(text_rows)
    assert all(
        abs(a.probabilities["yes"] - b.probabilities["yes"]) < 1e-5
        for a, b in zip(kept, again, strict=True)
    )


def test_only_the_chosen_layers_get_adapters(bert, text_rows):
    task = peftcls.Classification(max_length=64).learn(as_dataset(text_rows))
    model = peftcls.attach_lora(peftcls.load_base(bert, task)[0], task, layers=[-1])
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name]
    assert trained
    assert all("layer.1." in name for name in trained)


def test_training_leaves_the_global_random_state_as_it_was(bert, tmp_path, text_rows):
    trainer = build(bert, tmp_path, text_rows, dropout=0.3)
    before = torch.get_rng_state()
    trainer.fit(text_rows, text_rows)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_former_setting_for_cuda_graphs_is_deprecated_and_still_works(tmp_path):
    with pytest.warns(DeprecationWarning, match=r"use fast_paths=FastPaths\(cuda_graphs=False\)"):
        config = peftcls.TrainConfig(tmp_path, cuda_graphs=False)
    assert config.fast_paths == FastPaths(cuda_graphs=False)
    again = dataclasses.replace(config, epochs=1)
    assert again.fast_paths == FastPaths(cuda_graphs=False)


def test_fast_paths_of_the_settings_are_those_of_the_model(bert, tmp_path, text_rows):
    fast_paths = FastPaths(packing=False, frozen_cache=False)
    trainer = build(bert, tmp_path, text_rows, fast_paths=fast_paths)
    assert state_of(trainer.model).fast_paths == fast_paths


def test_fast_paths_that_are_none_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^TrainConfig: fast_paths='all': expected a FastPaths\.$"
    ):
        peftcls.TrainConfig(tmp_path, fast_paths="all")


def test_prepared_rows_train_the_same_weights_and_are_not_read_again(
    bert, tmp_path, text_rows, monkeypatch
):
    build(bert, tmp_path / "plain", text_rows).fit(text_rows, text_rows)
    trainer = build(bert, tmp_path / "prepared", text_rows)
    table = as_dataset(text_rows)
    base = base_facts(trainer.model)
    prepared = prepare(trainer.task, table, table, trainer.tokenizer, base)

    def read(*_, **__):
        raise AssertionError("the rows are read again")

    monkeypatch.setattr("peftcls.training.prepare.examine_rows", read)
    monkeypatch.setattr("peftcls.training.prepare.encode_table", read)
    trainer.dry_run(prepared)
    trainer.fit(prepared)
    plain, again = weights(tmp_path / "plain"), weights(tmp_path / "prepared")
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    with pytest.raises(
        ValueError, match=r"^valid_rows are given beside prepared rows; give them to prepare\.$"
    ):
        trainer.fit(prepared, text_rows)


def test_some_of_the_prepared_rows_are_as_if_they_were_prepared_by_themselves(
    bert, tmp_path, text_rows
):
    trainer = build(bert, tmp_path, text_rows)
    base = base_facts(trainer.model)
    table = as_dataset(text_rows)
    indices = [0, 3, 4, 9, 12]
    part = prepare(trainer.task, table, table, trainer.tokenizer, base).select(indices)
    alone = prepare(trainer.task, table.select(indices), None, trainer.tokenizer, base)
    assert part.train_sum == alone.train_sum
    assert part.valid is None
    assert part.train.features.to_list() == alone.train.features.to_list()
    assert (part.train.lengths == alone.train.lengths).all()
    assert (part.train.weights == alone.train.weights).all()
    assert part.train.shortened_rows == alone.train.shortened_rows
    assert part.train.sequences == alone.train.sequences


def test_rows_that_the_task_cannot_read_are_named_before_other_errors(bert, tmp_path, text_rows):
    trainer = build(bert, tmp_path, text_rows)
    train = [{"text": " ", "label": "no"}, *text_rows]
    valid = [*text_rows, {"text": "a galaxy", "label": "maybe"}]
    with pytest.raises(
        peftcls.RowError, match=r"^row 1 of train_rows has no text in column 'text'"
    ):
        trainer.fit(train, valid)
    with pytest.raises(peftcls.RowError, match=r"^row 17 of valid_rows has the label 'maybe'"):
        trainer.fit(text_rows, valid)


class Shouting(peftcls.Classification):
    """A task that only its user knows."""


def test_a_custom_task_is_trained_saved_and_loaded_again(bert, tmp_path, text_rows):
    task = Shouting(max_length=64).learn(as_dataset(text_rows))
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task, rank=2)
    trainer = peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig(tmp_path, epochs=1))
    trainer.fit(text_rows)
    loaded = peftcls.load_predictor(tmp_path, tasks=[Shouting])
    assert type(loaded.task) is Shouting
    expected = [answer.label for answer in trainer.predict(text_rows)]
    assert [answer.label for answer in loaded.predict(text_rows)] == expected


@pytest.mark.parametrize(("rate", "warns"), [(1e-9, True), (1e-2, False)])
def test_a_loss_that_has_hardly_moved_is_a_warning(bert, tmp_path, text_rows, caplog, rate, warns):
    trainer = build(
        bert, tmp_path, text_rows, epochs=6, learning_rate=rate, log_every=1, schedule="constant"
    )
    trainer.fit(text_rows)
    assert ("the training loss has hardly moved: 0." in caplog.text) == warns


def test_the_history_has_losses_and_validation_scores(bert, tmp_path, text_rows):
    trainer = build(bert, tmp_path / "one", text_rows, log_every=2, eval_every=3)
    assert trainer.history == []
    scores = trainer.fit(text_rows, text_rows)
    losses = {entry["step"]: entry["loss"] for entry in trainer.history if "loss" in entry}
    assert list(losses) == [2, 4, 6]
    judged = [entry for entry in trainer.history if "loss" not in entry]
    assert [entry["step"] for entry in judged] == [3, 6]
    assert {f"valid_{name}" for name in scores} == set(judged[0]) - {"step"}
    trainer.history[0]["loss"] = -1.0  # a copy
    assert trainer.history[0]["loss"] == losses[2]
    assert repr(trainer).startswith("Trainer(Classification(labels=('no', 'yes'), ")
    assert repr(trainer).endswith(f"step=6, output_dir={str(tmp_path / 'one')!r})")

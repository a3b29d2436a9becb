"""Continual training: the head grows, old rows are replayed, and forgetting is shown."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import peftcls
from peftcls import (
    Classification,
    Instruction,
    RowError,
    TrainConfig,
    Trainer,
    attach_lora,
    learn_on,
    load_base,
    load_predictor,
)
from peftcls.data.reading import as_dataset, name_source, source_name
from peftcls.data.row_numbers import row_numbers, select_rows
from peftcls.engine.model_state import unwrapped
from peftcls.models.trainable import trained_parameters

NEW = [{"text": f"free prize, call now {n}", "label": "spam"} for n in range(6)]


def first_run(
    base: str,
    folder: Path,
    rows: list[dict[str, str]],
    part: str | None = None,
    valid: list[dict[str, str]] | None = None,
    **settings: Any,
) -> Trainer:
    task = Classification(max_length=32, **settings).learn(rows)
    model, tokenizer = load_base(base, task)
    model = (
        attach_lora(model, task, rank=4) if part is None else peftcls.train_only(model, task, part)
    )
    trainer = Trainer(
        model, task, tokenizer, TrainConfig(folder, epochs=3, batch_size=8, learning_rate=5e-3)
    )
    trainer.fit(rows, valid)
    return trainer


def head_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in trained_parameters(model).items() if "classifier" in name}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "gpt2"])
@pytest.mark.parametrize("part", [None, "head", "last_block"])
def test_the_start_of_a_new_run_answers_as_the_folder_does(
    base, part, text_rows, tmp_path, request
):
    trainer = first_run(request.getfixturevalue(base), tmp_path, text_rows, part)
    model, task, tokenizer = learn_on(tmp_path, text_rows)
    assert task == trainer.task
    again = Trainer(model, task, tokenizer, TrainConfig(tmp_path / "next", epochs=1, batch_size=8))
    assert set(again.parameters) == set(trainer.parameters)
    for old, new in zip(trainer.predict(text_rows), again.predict(text_rows), strict=True):
        assert new.probabilities == pytest.approx(old.probabilities, abs=1e-6)
    again.fit(text_rows)
    assert load_predictor(tmp_path / "next").label_names == ("no", "yes")


def test_the_head_grows_behind_its_old_rows(bert, text_rows, tmp_path):
    trainer = first_run(bert, tmp_path, text_rows)
    model, task, tokenizer = learn_on(tmp_path, NEW)
    assert task.labels == ("no", "yes", "spam")
    old = head_parameters(trainer.model)
    new = head_parameters(model)
    assert old.keys() == new.keys()
    for name in old:
        assert torch.equal(new[name][:2], old[name])
        assert len(new[name]) == 3
        assert torch.allclose(new[name][2], old[name].mean(0))
    again = Trainer(
        model,
        task,
        tokenizer,
        TrainConfig(tmp_path / "next", epochs=20, batch_size=8, learning_rate=5e-3),
    )
    again.fit(peftcls.with_replay(NEW, text_rows, share=0.6))
    predictor = load_predictor(tmp_path / "next")
    assert predictor.label_names == ("no", "yes", "spam")
    assert unwrapped(predictor.model).config.id2label == {0: "no", 1: "yes", 2: "spam"}
    assert [answer.label for answer in predictor.predict([row["text"] for row in NEW])].count(
        "spam"
    ) >= 5


@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_a_head_that_grew_answers_as_before_until_it_has_learnt(base, text_rows, tmp_path, request):
    trainer = first_run(request.getfixturevalue(base), tmp_path, text_rows)
    model, task, tokenizer = learn_on(tmp_path, [*NEW, {"text": "a text", "label": "more"}])
    grown = Trainer(model, task, tokenizer, TrainConfig(tmp_path / "next", epochs=1)).predict(
        text_rows
    )
    assert [answer.label for answer in grown] == [
        answer.label for answer in trainer.predict(text_rows)
    ]
    assert all(
        answer.probabilities["spam"] == answer.probabilities["more"] < 1 / 3 for answer in grown
    )


def test_labels_that_the_earlier_folder_does_not_know_are_named(bert, text_rows, tmp_path, caplog):
    caplog.set_level("INFO", "peftcls")
    first_run(bert, tmp_path / "first", text_rows)
    for rows, sentence in (
        (text_rows, "continued from first\n"),
        (
            [{"text": "a text", "label": "Yes"}, *text_rows],
            "continued from first; 1 added to its 2 labels: 'Yes'\n",
        ),
    ):
        model, task, tokenizer = learn_on(tmp_path / "first", rows)
        Trainer(model, task, tokenizer, TrainConfig(tmp_path / "next", epochs=1, batch_size=8)).fit(
            rows
        )
        assert sentence in caplog.text
        caplog.clear()


def test_labels_of_an_instruction_grow_without_a_head(llama, tmp_path):
    rows = [
        {"instruction": "which?", "input": f"text {n}", "output": ("yes", "no")[n % 2]}
        for n in range(4)
    ]
    task = Instruction(labels=("no", "yes"), max_length=64, max_new_tokens=8)
    model, tokenizer = load_base(llama, task)
    Trainer(attach_lora(model, task), task, tokenizer, TrainConfig(tmp_path, epochs=1)).fit(rows)
    model, grown, tokenizer = learn_on(tmp_path, [{**rows[0], "output": "maybe"}])
    assert grown.labels == ("no", "yes", "maybe")
    Trainer(model, grown, tokenizer, TrainConfig(tmp_path / "next", epochs=1)).fit(
        [*rows, {**rows[0], "output": "maybe"}]
    )
    assert set(load_predictor(tmp_path / "next").predict(rows)[0].probabilities) == {
        "no",
        "yes",
        "maybe",
    }


def test_fitted_decisions_are_dropped_and_the_lineage_is_kept(bert, text_rows, tmp_path):
    trainer = first_run(bert, tmp_path / "one", text_rows)
    trainer.calibrate(text_rows)
    model, task, tokenizer = learn_on(tmp_path / "one", NEW)
    assert task.decisions == peftcls.Decisions()
    Trainer(model, task, tokenizer, TrainConfig(tmp_path / "two", epochs=1)).fit([*text_rows, *NEW])
    model, task, tokenizer = learn_on(tmp_path / "two", NEW)
    Trainer(model, task, tokenizer, TrainConfig(tmp_path / "three", epochs=1)).fit(
        [*text_rows, *NEW]
    )
    manifests = {
        name: json.loads((tmp_path / name / "peftcls.json").read_text())
        for name in ("one", "two", "three")
    }
    assert manifests["one"]["lineage"] == []
    assert [old["sum"] for old in manifests["three"]["lineage"]] == [
        manifests["one"]["sum"],
        manifests["two"]["sum"],
    ]
    assert [old["task"]["labels"] for old in manifests["three"]["lineage"]] == [
        ["no", "yes"],
        ["no", "yes", "spam"],
    ]


def continued(start: Path, rows: list[dict[str, str]], out: Path, **settings: Any) -> Trainer:
    model, task, tokenizer = learn_on(start, rows)
    config = TrainConfig(out, batch_size=8, monitor="loss", **settings)
    return Trainer(model, task, tokenizer, config)


def test_the_adapter_as_it_was_is_kept_where_no_step_is_better(bert, text_rows, tmp_path, caplog):
    first_run(bert, tmp_path / "first", text_rows, valid=text_rows)
    wrong = [{**row, "label": {"yes": "no", "no": "yes"}[row["label"]]} for row in text_rows]
    settings = {"epochs": 3, "learning_rate": 1e-3, "eval_every": 1}
    whole = continued(tmp_path / "first", wrong, tmp_path / "whole", **settings)
    before = whole.predict(text_rows)
    whole.fit(wrong, text_rows)
    assert whole.progress.best_step == 0
    assert "than the adapter that this run was continued from, first: its weights" in caplog.text
    kept = load_predictor(tmp_path / "whole").predict(text_rows)
    for old, new in zip(before, kept, strict=True):
        assert new.probabilities == pytest.approx(old.probabilities, abs=1e-6)

    cut = continued(tmp_path / "first", wrong, tmp_path / "cut", **settings)
    steps: list[int] = []

    def stop(*_: object) -> None:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    cut.optimizer.register_step_post_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(wrong, text_rows)
    again = continued(tmp_path / "first", wrong, tmp_path / "cut", **settings)
    again.fit(wrong, text_rows, resume=True)
    assert again.history == whole.history
    assert (again.progress.best_step, again.history[0]["step"]) == (0, 0)
    for name, tensor in whole.parameters.items():
        assert torch.equal(tensor, again.parameters[name]), name


@pytest.mark.parametrize("judged", [False, True])
def test_a_step_that_cannot_give_a_new_label_is_not_what_is_kept(
    bert, text_rows, tmp_path, judged, caplog
):
    first_run(bert, tmp_path / "first", text_rows)
    grown = continued(
        tmp_path / "first", [*text_rows, *NEW], tmp_path / "next", epochs=3, learning_rate=0.5
    )
    grown.fit([*text_rows, *NEW], [*text_rows, *NEW[:1]] if judged else text_rows)
    assert all(entry["step"] for entry in grown.history)
    assert ("no validation row has a label that is new" in caplog.text) != judged
    if not judged:
        # Rows of the old labels alone would have chosen one of the first.
        assert grown.progress.best_step == grown.progress.step


def test_the_method_of_a_folder_is_kept(bert, text_rows, tmp_path):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    trainer = Trainer(
        attach_lora(model, task, method="lora+"),
        task,
        tokenizer,
        TrainConfig(tmp_path, epochs=1, batch_size=8),
    )
    trainer.fit(text_rows)
    model, task, tokenizer = learn_on(tmp_path, text_rows)
    again = Trainer(model, task, tokenizer, TrainConfig(tmp_path / "next"))
    assert sorted(g["factor"] for g in again.optimizer.param_groups) == sorted(
        g["factor"] for g in trainer.optimizer.param_groups
    )


def test_replay_adds_the_given_share_of_old_rows(text_rows):
    mixed = peftcls.with_replay(NEW, text_rows, share=0.4, seed=1)
    assert len(mixed) == 10
    assert sum(row["label"] == "spam" for row in mixed) == 6
    assert mixed.to_list() == peftcls.with_replay(NEW, text_rows, share=0.4, seed=1).to_list()
    assert mixed.to_list() != peftcls.with_replay(NEW, text_rows, share=0.4, seed=2).to_list()
    assert len(peftcls.with_replay(NEW, text_rows, share=0.9)) == 6 + 16
    with pytest.raises(ValueError, match=r"share=1: expected a share of at least 0 and below 1"):
        peftcls.with_replay(NEW, text_rows, share=1)
    with pytest.raises(
        RowError,
        match=r"new_rows has the columns \['a'\] and old_rows \['text', 'label'\]; expected some",
    ):
        peftcls.with_replay([{"a": "x"}], text_rows)
    with pytest.raises(
        RowError,
        match=r"^new_rows and old_rows hold values of different types in column 'label'; write",
    ):
        peftcls.with_replay(NEW, [{"text": "x", "label": ["a"]}])
    with pytest.raises(ValueError, match=r"^share='x': expected a number\.$"):
        peftcls.with_replay(NEW, text_rows, share="x")


def test_replay_takes_the_training_rows_of_data_with_splits(text_rows):
    def with_splits(rows):
        table = as_dataset(rows)
        return datasets.DatasetDict({"train": table, "test": table.select([0])})

    mixed = peftcls.with_replay(with_splits(NEW), with_splits(text_rows), share=0.4, seed=1)
    assert mixed.to_list() == peftcls.with_replay(NEW, text_rows, share=0.4, seed=1).to_list()


def test_replay_logs_dropped_columns_and_too_few_old_rows(text_rows, caplog):
    old = [{**row, "place": number} for number, row in enumerate(text_rows)]
    with caplog.at_level(logging.INFO, logger="peftcls"):
        peftcls.with_replay(NEW, old, share=0.9)
    assert caplog.messages == [
        "old_rows has only 16 rows to replay: they are 73% of the result, expected 90%.",
        "Dropped columns ['place']: missing in one table, or ids that occur in both.",
    ]


def test_a_list_is_no_new_label_of_an_instruction_and_no_folder(llama, tmp_path):
    rows = [
        {"instruction": "which?", "input": f"text {n}", "output": ("yes", "no")[n % 2]}
        for n in range(4)
    ]
    task = Instruction(labels=("no", "yes"), max_length=64, max_new_tokens=8)
    model, tokenizer = load_base(llama, task)
    Trainer(attach_lora(model, task), task, tokenizer, TrainConfig(tmp_path, epochs=1)).fit(rows)
    with pytest.raises(
        RowError, match=r"^row 1 of rows has \['a'\] in column 'output', expected one label\.$"
    ):
        learn_on(tmp_path, [{**row, "output": ["a"]} for row in rows])
    with pytest.raises(ValueError, match=r"^directory=\[.*\]: expected a text or a path\.$"):
        learn_on([str(tmp_path)], rows)


def test_scores_before_and_after_a_run_show_forgetting():
    table = peftcls.compare_scores(
        {"old": {"accuracy": 0.9, "loss": 0.2}},
        {"old": {"accuracy": 0.8, "loss": 0.1}, "new": {"accuracy": 0.7}},
    )
    lines = [line.split() for line in table.splitlines()]
    assert lines[1:] == [
        ["old", "accuracy", "0.9000", "0.8000", "-0.1000", "worse"],
        ["old", "loss", "0.2000", "0.1000", "-0.1000"],
        ["new", "accuracy", "0.7000"],
    ]
    only = peftcls.compare_scores(
        {"old": {"accuracy": 0.9}, "gone": {"accuracy": 0.5}},
        {"old": {"accuracy": 0.9}},
        scores=["accuracy"],
    )
    assert [line.split() for line in only.splitlines()][1:] == [
        ["old", "accuracy", "0.9000", "0.9000", "+0.0000"],
        ["gone", "accuracy", "0.5000"],
    ]
    with pytest.raises(
        ValueError, match=r"^scores names 'acc', expected some of \['accuracy'\]\.$"
    ):
        peftcls.compare_scores({}, {"old": {"accuracy": 0.9}}, scores=["acc"])
    with pytest.raises(
        ValueError, match=r"^scores='accuracy': expected several, each a text or None\.$"
    ):
        peftcls.compare_scores({}, {"old": {"accuracy": 0.9}}, scores="accuracy")


@pytest.mark.parametrize("tables", [1, {"accuracy": 0.9}])
def test_scores_without_the_name_of_their_rows_are_refused(tables):
    with pytest.raises(ValueError, match=r"^before=.*: expected scores by the name of their rows"):
        peftcls.compare_scores(tables, tables)


def test_side_by_side_is_the_deprecated_name_of_compare_scores():
    before = {"old": {"accuracy": 0.9}}
    after = {"old": {"accuracy": 0.8}}
    with pytest.warns(DeprecationWarning, match="side_by_side is now called compare_scores"):
        table = peftcls.side_by_side(before, after, scores=["accuracy"])
    assert table == peftcls.compare_scores(before, after, scores=["accuracy"])


# Memory


@pytest.mark.parametrize("base", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing_trains_the_same_weights(base, text_rows, tmp_path, request):
    found = []
    for wanted in (False, True):
        task = Classification(max_length=32).learn(text_rows)
        model, tokenizer = load_base(request.getfixturevalue(base), task)
        model = attach_lora(
            model, task, rank=4, layers=[-1]
        )  # without dropout, whose masks depend on what is computed together
        config = TrainConfig(
            tmp_path / str(wanted),
            epochs=2,
            batch_size=8,
            learning_rate=1e-2,
            head_init="random",
            gradient_checkpointing=wanted,
        )
        trainer = Trainer(model, task, tokenizer, config)
        trainer.fit(text_rows)
        found.append({name: p.detach().clone() for name, p in trainer.parameters.items()})
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-4), name


def test_gradient_checkpointing_really_computes_layers_again(llama, text_rows, tmp_path):
    task = Classification(max_length=32).learn(text_rows)
    counts = []
    for wanted in (False, True):
        model, tokenizer = load_base(llama, task)
        model = attach_lora(model, task, rank=4)
        calls: list[int] = []
        layer = unwrapped(model).base_model.layers[-1].mlp
        config = TrainConfig(
            tmp_path / str(wanted), epochs=1, batch_size=16, gradient_checkpointing=wanted
        )
        trainer = Trainer(model, task, tokenizer, config)
        layer.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1) if torch.is_grad_enabled() else None
        )
        trainer.fit(text_rows)
        counts.append(len(calls))
    assert counts[1] > counts[0]


# Found by attempts to break it


def test_the_folder_that_a_run_continues_from_is_not_replaced(bert, text_rows, tmp_path):
    first_run(bert, tmp_path, text_rows)
    model, task, tokenizer = learn_on(tmp_path, text_rows)
    with pytest.raises(
        ValueError,
        match=r"^output_dir='.*' holds the folder that this run continues from, or a copy of it",
    ):
        Trainer(model, task, tokenizer, TrainConfig(tmp_path))
    Trainer(model, task, tokenizer, TrainConfig(tmp_path / "next", epochs=1, batch_size=8)).fit(
        text_rows
    )
    assert load_predictor(tmp_path).label_names == load_predictor(tmp_path / "next").label_names
    Trainer(
        model, task, tokenizer, TrainConfig(tmp_path / "next")
    )  # which is another folder than the start


def test_a_run_from_another_start_is_not_resumed(bert, text_rows, tmp_path):
    for name in ("a", "b"):
        first_run(bert, tmp_path / name, text_rows)
    config = TrainConfig(tmp_path / "next", epochs=2, batch_size=8, eval_every=1)
    model, task, tokenizer = learn_on(tmp_path / "a", text_rows)
    trainer = Trainer(model, task, tokenizer, config)
    steps = []

    def stop(*_: object) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt

    trainer.optimizer.register_step_post_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(text_rows)
    (tmp_path / "b" / "peftcls.json").touch()
    first_run(bert, tmp_path / "b", [*text_rows, *text_rows[:4]])
    model, task, tokenizer = learn_on(tmp_path / "b", text_rows)
    with pytest.raises(ValueError, match="belongs to another run: start was"):
        Trainer(model, task, tokenizer, config).fit(text_rows, resume=True)


def test_the_name_of_replayed_rows_has_the_number_of_each():
    new = name_source(as_dataset(NEW), "more.csv, training rows")
    old = name_source(as_dataset(NEW[:4]), "messages.csv")
    mixed = peftcls.with_replay(new, old, share=1 / 3)
    assert source_name(mixed) == "more.csv, training rows (6 rows) and messages.csv (3 rows)"


def test_replayed_rows_keep_the_numbers_of_their_files():
    new = select_rows(as_dataset([{"text": f"new {n}"} for n in range(1, 8)]), [1, 4, 6])
    old = as_dataset([{"text": f"old {n}"} for n in range(1, 30)])
    mixed = peftcls.with_replay(new, old, share=0.5)
    assert [int(row["text"].split()[1]) for row in mixed] == list(row_numbers(mixed))
    assert len(mixed) == 6


def test_replay_accepts_files_with_the_same_ids_and_other_types():
    new = [{"id": "1", "label": "1", "answers": {"text": [], "answer_start": []}}]
    old = [{"id": "1", "label": 0, "answers": {"text": ["x"], "answer_start": [0]}}]
    mixed = peftcls.with_replay(new, old, share=0.5)
    assert "id" not in mixed.column_names
    assert list(mixed["label"]) == [1, 0]
    assert mixed["answers"][1] == {"text": ["x"], "answer_start": [0]}


def test_new_labels_are_learnt_on_random_weights_too(bert, text_rows, tmp_path):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_base(bert, task, pretrained=False, seed=5)
    Trainer(attach_lora(model, task), task, tokenizer, TrainConfig(tmp_path, epochs=1)).fit(
        text_rows
    )
    _, grown, _ = learn_on(tmp_path, NEW)
    assert grown.labels == ("no", "yes", "spam")


@pytest.mark.parametrize("part", ["head", "last_block"])
def test_a_part_of_a_narrow_base_is_loaded_again(bert, text_rows, tmp_path, part):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_base(bert, task, dtype=torch.bfloat16)
    Trainer(
        peftcls.train_only(model, task, part), task, tokenizer, TrainConfig(tmp_path, epochs=1)
    ).fit(text_rows)
    assert load_predictor(tmp_path).predict(["see you"])[0].label

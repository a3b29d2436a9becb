"""Metrics of the user's own in trainings: as the monitor, in folds, in sweeps, in the command."""

import json

import pytest
from sklearn import metrics as sk
from small_runs import build

from peftcls import Classification, TrainConfig, attach_lora, cli, cross_validate, load_base, sweep
from peftcls.data.reading import as_dataset


def kappa(predictions, references):
    return sk.cohen_kappa_score(references, predictions)


def set_up(base, rows):
    task = Classification(max_length=32).learn(as_dataset(rows))
    model, tokenizer = load_base(base, task)
    return attach_lora(model, task, rank=2), task, tokenizer


def test_an_own_metric_is_among_the_scores_and_can_choose_the_step(bert, tmp_path, text_rows):
    values = iter([5.0, 1.0, 2.0])  # tried on the right answers, then a value after each epoch

    def lowest_first(predictions, references):
        return next(values)

    lowest_first.higher_is_better = False
    trainer = build(
        bert, tmp_path, text_rows, metrics={"own": lowest_first}, monitor="own", epochs=2
    )
    with trainer:
        scores = trainer.fit(text_rows, text_rows[:4])
        history = [entry["valid_own"] for entry in trainer.progress.history if "valid_own" in entry]
    assert history == [1.0, 2.0]
    assert scores["own"] == 1.0
    assert trainer.progress.best_step == 3


def test_a_metric_that_fails_does_so_before_anything_is_written(bert, tmp_path, text_rows):
    def broken(predictions, references):
        raise KeyError("no such thing")

    with (
        build(bert, tmp_path / "run", text_rows, metrics={"broken": broken}) as trainer,
        pytest.raises(ValueError, match="the metric 'broken' failed on 4 rows with KeyError"),
    ):
        trainer.fit(text_rows, text_rows[:4])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("monitor", ["kapa", "kappa_mean"])
def test_a_monitor_that_no_metric_gives_is_refused(monitor, bert, tmp_path, text_rows):
    with (
        build(bert, tmp_path / "run", text_rows, metrics=[kappa], monitor=monitor) as trainer,
        pytest.raises(ValueError, match=f"monitor='{monitor}': expected one of .*'kappa'"),
    ):
        trainer.fit(text_rows, text_rows[:4])
    assert not (tmp_path / "run").exists()


def test_folds_and_trials_have_the_scores_of_own_metrics(bert, tmp_path, text_rows):
    model, task, tokenizer = set_up(bert, text_rows)
    config = TrainConfig(tmp_path / "folds", epochs=1, metrics=[kappa, "roc_auc_score"])
    folds = cross_validate(model, task, tokenizer, config, text_rows, folds=2)
    labels = [row["label"] for row in text_rows]
    given = [answer.label for answer in folds.answers]
    assert folds.scores["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, given))
    assert all("roc_auc_score" in scores for scores in folds.fold_scores)

    configs = {
        name: TrainConfig(tmp_path / name, epochs=1, metrics=[kappa], monitor="kappa")
        for name in ("one", "two")
    }
    first, second = sweep(model, task, tokenizer, configs, text_rows, text_rows)
    assert first.scores["kappa"] >= second.scores["kappa"]
    assert set(first.intervals) == set(first.scores)
    assert second.against_best.score == "kappa"


def test_trainings_with_different_metrics_are_not_compared(bert, tmp_path, text_rows):
    model, task, tokenizer = set_up(bert, text_rows)
    configs = {
        "one": TrainConfig(tmp_path / "one", metrics=[kappa]),
        "two": TrainConfig(tmp_path / "two"),
    }
    with pytest.raises(ValueError, match="expected the same for all of them"):
        sweep(model, task, tokenizer, configs, text_rows, text_rows)


def test_a_resumed_run_must_have_the_same_metrics(bert, tmp_path, text_rows):
    def stop(predictions, references):
        if stop.calls:
            raise KeyboardInterrupt
        stop.calls += 1
        return 0.0

    stop.calls = 0
    with (
        pytest.raises(KeyboardInterrupt),
        build(bert, tmp_path, text_rows, metrics={"own": stop}) as trainer,
    ):
        trainer.fit(text_rows, text_rows[:4])
    with (
        build(bert, tmp_path, text_rows) as other,
        pytest.raises(ValueError, match="metrics"),
    ):
        other.fit(text_rows, text_rows[:4], resume=True)


def test_the_command_prints_named_metrics_with_intervals(bert, tmp_path, text_rows, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in text_rows * 2), encoding="utf-8")
    build(bert, tmp_path / "run", text_rows, epochs=1).fit(text_rows)
    capsys.readouterr()  # messages of the training
    arguments = ["evaluate", str(tmp_path / "run"), str(file), "--json"]
    assert cli.main([*arguments, "--metric", "matthews_corrcoef"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert -1 <= found["scores"]["matthews_corrcoef"] <= 1
    assert cli.main([*arguments, "--metric", "r2_score"]) == 1
    assert "the metric 'r2_score' failed" in capsys.readouterr().err
    assert cli.main([*arguments, "--metric", "matthews"]) == 2
    assert "Did you mean 'matthews_corrcoef'?" in capsys.readouterr().err

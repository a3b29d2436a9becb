"""The benchmarks: an experiment is a file, all systems see the same, a report reads the results."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from peftcls import FastPaths
from peftcls.demo import BASE_FOLDER
from peftcls.engine.fast_paths import VARIABLE
from peftcls.training import data_order, gradient_accumulation

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted((BENCHMARKS / "experiments").glob("*.json"))
TEXTS = {
    "1": ["free prize, call now", "win cash today, reply yes", "urgent: claim your free holiday"],
    "0": [
        "see you at lunch",
        "are you home yet?",
        "running late, sorry about that, the bus did not come",
    ],
}


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def data(tmp_path):
    """A folder with a few messages, in the form of the real ones."""
    (folder := tmp_path / "data" / "sms_spam").mkdir(parents=True)
    lines = [
        f'{label},"{text} {n}"'
        for n in range(8)
        for label, texts in TEXTS.items()
        for text in texts
    ]
    for part in ("train", "validation", "test"):
        (folder / f"{part}.csv").write_text(
            "\n".join(["Label,Text", *lines]) + "\n", encoding="utf-8"
        )
    return folder.parent


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_experiment_holds_only_what_differs_from_the_defaults(file):
    from experiment import Experiment

    given = json.loads(file.read_text())
    e = Experiment.of(given)
    defaults = {
        f.name: f.default
        for f in dataclasses.fields(Experiment)
        if f.default is not dataclasses.MISSING
    }
    assert [name for name in given if name in defaults and getattr(e, name) == defaults[name]] == []
    for point in e.points:
        dataclasses.replace(e, **point)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"batchsize": 8}, "there is no setting 'batchsize'; did you mean 'batch_size'?"),
        (
            {"systems": ["trl"]},
            "systems='trl': expected one of ['trainer', 'trainer_best', 'pad_to_max', 'peftcls'].",
        ),
        (
            {"without": [["speed"]]},
            "without='speed': expected one of ['bfloat16', 'kernels', 'packing', 'last_layer', "
            "'prefix', 'frozen_cache', 'cuts', 'logits', 'cuda_graphs'].",
        ),
        (
            {"rows": 30},
            "rows=30: expected a multiple of batch_size=16, so that all see the same steps.",
        ),
        ({"rows": 32}, "rows=32: expected more than 2 steps, which are not timed."),
        ({"epochs": 0}, "epochs=0: expected predict=true, or there is nothing to time."),
    ],
)
def test_a_wrong_setting_of_an_experiment_is_one_sentence(changed, sentence):
    from experiment import Experiment

    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Experiment.of({"kind": "heads", "base": "tiny", **changed})


@pytest.mark.slow
def test_every_fast_path_has_a_switch_that_finds_what_it_switches():
    from experiment import FAST_PATHS
    from switches import BFLOAT16, PATCHES

    switches = {field.name for field in dataclasses.fields(FastPaths)}
    assert switches | set(PATCHES) | {BFLOAT16} == set(FAST_PATHS)
    # A patch of a name that nobody reads would change nothing.
    assert hasattr(gradient_accumulation, "call_tokens")
    switched = (
        "import sys, torch; from switches import base_dtype, leave_out;"
        "names = tuple(sys.argv[1:]); leave_out(names);"
        "from peftcls import FastPaths; from peftcls.training import gradient_accumulation;"
        "assert not any(vars(FastPaths.from_environment()).values());"
        "assert base_dtype(names, None) is torch.float32;"
        "assert gradient_accumulation.call_tokens('cpu') == 10**9"
    )
    ended = subprocess.run(
        [sys.executable, "-c", switched, *FAST_PATHS],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FastPaths)])
def test_a_fast_path_is_left_out_alone(name, monkeypatch):
    from switches import leave_out

    monkeypatch.setenv(VARIABLE, "1")
    leave_out((name,))
    assert FastPaths.from_environment() == FastPaths(**{name: False})


def test_contenders_are_given_the_rows_in_the_order_of_our_steps():
    from experiment import Experiment
    from material import in_step_order

    e = Experiment("heads", "tiny", rows=64, batch_size=16, epochs=2)
    rows = [{"text": str(i)} for i in range(64)]
    ordered = [int(row["text"]) for row in in_step_order(rows, e, seed=3)]
    assert [ordered[i : i + 16] for i in range(0, 128, 16)] == [
        data_order.step_rows(64, 16, 3, step) for step in range(8)
    ]


def test_rates_are_those_of_steady_steps_over_the_tokens_of_a_row():
    from clock import Clock
    from experiment import Experiment

    clock = Clock()
    clock.began, clock.ends, clock.tokens = (
        0.0,
        [10.0, 20.0, 21.0, 23.0],
        [4000, 500, 1500, 9999],
    )  # a batch that was drawn ahead
    found = clock.measures(Experiment("heads", "tiny", rows=30, batch_size=10, warm_steps=1))
    assert found["tokens_per_row"] == 200
    assert found["tokens_per_second"] == pytest.approx(2000 / 3)
    assert found["rows_per_second"] == pytest.approx(2000 / 3 / 200)
    assert (found["prepare_seconds"], found["train_seconds"], found["steps"]) == (10, 13, 2)


def test_ratios_are_of_medians_with_the_extremes_of_any_two_runs():
    from experiment import ratios

    runs = {
        "peftcls": [{"rate": 8.0}, {"rate": 12.0}],
        "slow": [{"rate": 2.0}, {"rate": 4.0}],
        "gone": [{"crash": "no memory"}],
    }
    assert ratios(runs, "rate") == {"slow": [pytest.approx(10 / 3), 2.0, 6.0]}


def test_scores_are_level_unless_ours_are_lower_by_more_than_the_seeds_vary():
    from experiment import score_parity

    def runs(*scores):
        return [{"scores": {"accuracy": score}} for score in scores]

    assert score_parity(
        {"peftcls": runs(0.94, 0.96), "trainer": runs(0.95, 0.97)}, "trainer", "accuracy"
    )["passed"]
    assert score_parity(
        {"peftcls": runs(0.99, 0.99), "trainer": runs(0.95, 0.95)}, "trainer", "accuracy"
    )["passed"]
    assert not score_parity(
        {"peftcls": runs(0.90, 0.91), "trainer": runs(0.95, 0.96)}, "trainer", "accuracy"
    )["passed"]


def test_a_cost_that_grows_as_its_size_has_slope_one():
    from run import slope

    assert slope([(size, 0.3 * size) for size in (10, 100, 1000)]) == pytest.approx(1)
    assert slope([(size, 0.3 * size**2) for size in (10, 100, 1000)]) == pytest.approx(2)


@pytest.mark.slow
def test_an_experiment_runs_from_its_file_to_its_report(data, tmp_path):
    from report import read_results, write_report

    (file := tmp_path / "small.json").write_text(
        json.dumps(
            {
                "kind": "heads",
                "base": "tiny",
                "systems": ["trainer"],
                "rows": 48,
                "score": True,
                "seeds": [0],
                "threads": 1,
                "max_length": 32,
            }
        )
    )
    out = tmp_path / "results"
    ended = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "run.py"),
            str(file),
            "--data",
            str(data),
            "--out",
            str(out),
            "--cache",
            str(tmp_path / "cache"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr  # 1 where scores on so few rows are not level
    assert ended.returncode == 0 or "not the same training: [{'score'" in ended.stderr, ended.stderr
    result = json.loads((out / "small.json").read_text())
    assert [gate["passed"] for gate in result["gates"]] == [True, True]
    assert result["gates"][0]["loss_apart"] <= 1e-5
    assert result["gates"][0]["gradient_cosine"] >= 0.9999
    assert {"commit", "versions", "hardware", "settings", "experiment", "body_parameters"} <= set(
        result
    )
    assert set(result["hardware"]["peak_gflops"]) == {"float32", "bfloat16"}
    words = AutoTokenizer.from_pretrained(BASE_FOLDER)
    for system in ("peftcls", "trainer"):
        (run,) = result["runs"][system]
        assert {
            "rows_per_second",
            "rows_per_second_in_all",
            "tokens_per_second",
            "median_step_seconds",
            "p90_step_seconds",
            "wall_seconds",
            "peak_mib",
            "useful_share",
            "scores",
            "seed",
        } <= set(run)
        assert len(run["losses"]) == 3
        texts = [f"{text} {n}" for n in range(8) for own in TEXTS.values() for text in own]
        assert run["tokens_per_row"] == pytest.approx(
            np.mean([len(words(text)["input_ids"]) for text in texts])
        )
    first = [result["runs"][system][0]["losses"][0] for system in ("peftcls", "trainer")]
    assert first[0] == pytest.approx(
        first[1], abs=0.05
    )  # the contender drops out, as it does by default
    write_report(read_results(out, ["small"]), out)
    told = (out / "speed.md").read_text()
    assert "| small | peftcls (float32) |" in told
    assert "| small | trainer | float32 |" in told
    assert (out / "speed.png").is_file()
    assert (out / "losses.png").is_file()


@pytest.mark.slow
def test_a_contenders_crash_is_a_result_and_one_of_ours_is_not(tmp_path):
    from experiment import Experiment, Job
    from run import start

    job = Job(
        "run",
        Experiment("heads", "tiny"),
        data=tmp_path / "nowhere",
        cache=tmp_path / "cache",
        system="trainer",
    )
    assert start(job)["crash"].startswith(
        f"ValueError: there is no file {tmp_path / 'nowhere' / 'sms_spam' / 'train.csv'};"
    )
    with pytest.raises(SystemExit, match="peftcls failed in a job"):
        start(dataclasses.replace(job, system="peftcls"))


def test_the_guard_finds_what_became_slower_and_lets_noise_pass():
    from guard import SMALL, compared, small_experiment

    for settings in SMALL.values():
        e = small_experiment(settings)
        assert len(e.contenders) + len(e.without) == 1
    lines, is_slower = compared({"heads": 2.0, "answers": 3.0}, {"heads": 1.75, "answers": 2.5})
    assert is_slower
    assert lines == [
        "heads: 1.75, recorded 2.00, as before",
        "answers: 2.50, recorded 3.00, SLOWER by more than 15%",
    ]
    lines, is_slower = compared({"heads": 2.0}, {"heads": 4.0, "new": 1.0})
    assert not is_slower
    assert lines[1] == "new: 1.00, nothing recorded"


def test_the_tables_on_the_page_of_many_gpus_are_those_of_the_script():
    from scaling_arithmetic import tables

    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    for title, table in tables().items():
        assert table in page, f"{title}: python benchmarks/scaling_arithmetic.py prints another"


def test_the_arithmetic_of_many_gpus_has_the_parameters_of_the_models():
    from scaling_arithmetic import LARGE, SMALL

    assert SMALL.weights == pytest.approx(6.74e9, rel=0.01)
    assert LARGE.weights == pytest.approx(70.55e9, rel=0.01)
    assert LARGE.adapter_parameters(LARGE.all_linear, 16) == 207_093_760

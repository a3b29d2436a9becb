"""Processes that a launcher started answer one file together, through deaths and restarts."""

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saved_adapters import TEXTS, saved

import peftcls
from peftcls.cli import main
from peftcls.inference.predict_file import predict_file

ROWS = 900
SECONDS = 120


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    task = peftcls.Classification(labels=("no", "yes"), max_length=32)
    return saved(bert, tmp_path_factory.mktemp("shared") / "adapter", task)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "text"])
        for number in range(ROWS):
            text = " ".join(draw.choices(TEXTS, k=draw.randint(1, 3)))
            table.writerow([number, f"{text} {number}"])
    return path


@pytest.fixture(scope="module")
def alone(folder, rows_file, tmp_path_factory):
    """The answers of one process."""
    out = tmp_path_factory.mktemp("alone") / "answers.csv"
    predict_file(peftcls.load_predictor(folder), folder, rows_file, out, probabilities=True)
    return read(out)


def read(out: Path) -> list[dict[str, str]]:
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def start(processes, folder, rows_file, out, *options) -> subprocess.Popen:
    command = ["predict", folder, rows_file, "--out", out, "--probabilities", *options]
    return launch(processes, *command)


def launch(processes, *arguments) -> subprocess.Popen:
    launcher = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", "peftcls"),
    ]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def same_answers(found, expected):
    assert [(row["number"], row["text"]) for row in found] == [
        (row["number"], row["text"]) for row in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        for name in ("probability", "probability_no", "probability_yes"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_answers_of_one(processes, folder, rows_file, alone, tmp_path):
    out = tmp_path / "answers.csv"
    running = start(processes, folder, rows_file, out)
    printed, errors = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, errors
    assert printed.count("rows answered") == 1, "only the first process speaks"
    same_answers(read(out), alone)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]


@pytest.mark.slow
def test_processes_that_hold_the_base_together_write_the_answers_of_one(
    folder, rows_file, alone, tmp_path
):
    out = tmp_path / "answers.csv"
    # Of four chunks one process has two, so that the others compute one without effect.
    running = start(3, folder, rows_file, out, "--shard", "--batch-size", "50")
    printed, errors = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, errors
    assert printed.count("rows answered") == 1
    same_answers(read(out), alone)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--shard"]], ids=["whole", "shares"])
def test_several_processes_score_the_rows_as_one_does(options, folder, alone, tmp_path, capsys):
    labelled = tmp_path / "labelled.csv"
    with labelled.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        # Longer than the adapter reads, in both shares.
        table.writerows([f"{row['text']} {'and so on ' * 12}", row["label"]] for row in alone[:61])
    command = ["evaluate", str(folder), str(labelled), "--json", *options]
    running = launch(2, *command)
    printed, errors = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, errors
    assert main(command) == 0
    one = capsys.readouterr()
    found, expected = json.loads(printed), json.loads(one.out)
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    assert found["confusion"] == expected["confusion"]
    assert "61 of the rows of labelled.csv" in errors
    assert "61 of the rows of labelled.csv" in one.err


def kill_in_a_run(processes, folder, rows_file, out, victim, *options):
    """Start a run, and kill one of its processes when something is answered."""
    running = start(processes, folder, rows_file, out, *options)
    part = Path(f"{out}.part")
    until = time.monotonic() + SECONDS
    seen = len(list(part.glob("*.jsonl")))
    while len(list(part.glob("*.jsonl"))) <= seen and running.poll() is None:
        assert time.monotonic() < until, "nothing was answered"
        time.sleep(0.01)
    children = f"/proc/{running.pid}/task/{running.pid}/children"
    workers = [int(number) for number in Path(children).read_text().split()]
    if len(workers) > victim:
        subprocess.run(["kill", "-9", str(workers[victim])], check=False)
    running.communicate(timeout=SECONDS)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_goes_on_after_any_process_died(victim, folder, rows_file, alone, tmp_path):
    out = tmp_path / "answers.csv"
    kill_in_a_run(2, folder, rows_file, out, victim)
    if not out.exists():  # else the other one had answered all before the launcher ended it
        running = start(1, folder, rows_file, out, "--resume")
        _, errors = running.communicate(timeout=SECONDS)
        assert running.returncode == 0, errors
    same_answers(read(out), alone)


@pytest.mark.slow
def test_two_runs_that_do_not_know_each_other_never_mix(folder, rows_file, alone, tmp_path):
    out = tmp_path / "answers.csv"
    runs = [start(1, folder, rows_file, out, "--resume") for _ in range(2)]
    ended = [run.communicate(timeout=SECONDS)[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert 0 in codes, ended
    for code, errors in zip(codes, ended, strict=True):
        assert code == 0 or "another process" in errors or "is being written by" in errors
    same_answers(read(out), alone)


@pytest.mark.slow
def test_a_refusal_of_the_first_process_ends_all(folder, rows_file, tmp_path):
    out = tmp_path / "answers.csv"
    part = Path(f"{out}.part")
    part.mkdir()
    (part / "000000000000.jsonl").write_text("{}\n")
    running = start(2, folder, rows_file, out)
    _, errors = running.communicate(timeout=SECONDS)
    assert running.returncode != 0
    assert "go on with --resume" in errors
    assert not out.exists()

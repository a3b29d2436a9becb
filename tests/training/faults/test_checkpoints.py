"""Checkpoints on disk: whole or not there, with an older one to use if the newest is damaged."""

import collections
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import Killed, build, weights

from peftcls.errors import RunStoppedError
from peftcls.training import checkpoint
from peftcls.training.checkpoint import (
    Progress,
    choose_checkpoint,
    find_checkpoints,
    find_damage,
    write_checkpoint,
)

CAMPAIGN = Path(__file__).parents[3] / "benchmarks" / "fault_campaign.py"


def write_checkpoints(folder, steps):
    """Write checkpoints of a single tensor after these steps; returns those that are kept."""
    parameters = {"weight": torch.nn.Parameter(torch.arange(6.0))}
    optimizer = torch.optim.AdamW(parameters.values())
    for step in steps:
        parameters["weight"].grad = torch.ones(6)
        optimizer.step()
        write_checkpoint(folder, Progress(step), parameters, optimizer, None, {}, {"seed": 0})
    return find_checkpoints(folder)


def test_the_newest_two_are_kept_and_nothing_else_is_left(tmp_path):
    assert [path.name for path in write_checkpoints(tmp_path, [2, 4, 6])] == [
        "checkpoint-00000006",
        "checkpoint-00000004",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000004",
        "checkpoint-00000006",
    ]


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "manifest.json"])
def test_every_bit_of_a_checkpoint_counts(name, tmp_path):
    file = write_checkpoints(tmp_path, [2])[0] / name
    whole = file.read_bytes()
    assert find_damage(file.parent) is None
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert find_damage(file.parent), f"byte {place}"
    for changed in (whole[:-1], whole[:1], b"", whole + b" "):
        file.write_bytes(changed)
        assert find_damage(file.parent)
    file.unlink()
    assert "is not a whole checkpoint" in find_damage(file.parent)


def test_checkpoints_of_other_programs_are_left_alone(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "optimizer.pt").write_text("of another program")
    (tmp_path / "checkpoint-00000009").write_text("a file")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    assert choose_checkpoint(tmp_path, resume=False) == (None, [])
    assert [path.name for path in write_checkpoints(tmp_path, [2, 4, 6])] == [
        "checkpoint-00000006",
        "checkpoint-00000004",
    ]
    assert (tmp_path / "checkpoint-500" / "optimizer.pt").read_text() == "of another program"
    assert {"checkpoint-notes.txt", "checkpoint-00000009"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_numbers_and_not_letters_say_which_checkpoint_is_the_newest(tmp_path):
    for step in (99999999, 100000000):
        (tmp_path / f"checkpoint-{step:08d}").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "checkpoint-100000000",
        "checkpoint-99999999",
    ]


def test_a_tensor_that_is_not_finite_is_never_written(tmp_path):
    before = write_checkpoints(tmp_path, [2])
    parameters = {"weight": torch.nn.Parameter(torch.tensor([1.0, float("inf")]))}
    with pytest.raises(
        RunStoppedError,
        match=r"^the tensor model/weight is not finite after step 4, so no checkpoint of it is",
    ):
        write_checkpoint(
            tmp_path,
            Progress(4),
            parameters,
            torch.optim.AdamW(parameters.values()),
            None,
            {},
            {"seed": 0},
        )
    assert find_checkpoints(tmp_path) == before


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    path = write_checkpoints(tmp_path, [2])[0]
    state = json.loads((path / "state.json").read_text())
    state["progress"]["novelty"] = 1
    (path / "state.json").write_text(json.dumps(state))
    (path / "manifest.json").write_text(checkpoint._manifest_text(path))
    parameters = {"weight": torch.nn.Parameter(torch.arange(6.0))}
    with pytest.raises(
        ValueError,
        match=r"checkpoint-00000002 was written by another version of peftcls \(.*'novelty'\); go",
    ):
        checkpoint.read_checkpoint(
            path, parameters, torch.optim.AdamW(parameters.values()), {"seed": 0}
        )


def test_a_damaged_checkpoint_of_a_later_step_goes_when_an_earlier_one_is_written_again(tmp_path):
    newest = write_checkpoints(tmp_path, [2, 4, 6])[0]
    (newest / "state.json").unlink()
    shutil.rmtree(newest.with_name("checkpoint-00000004"))
    assert [path.name for path in write_checkpoints(tmp_path, [4])] == ["checkpoint-00000004"]


def test_temporary_files_of_a_killed_program_are_removed(tmp_path):
    write_checkpoints(tmp_path, [2])
    for name in (".writing-abc", ".saving-abc", ".states-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("a")
    (tmp_path / ".saving-card").write_text("half")
    (tmp_path / "states-of-matter").mkdir()
    choose_checkpoint(tmp_path, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000002",
        "states-of-matter",
    ]


def train_until_killed(trainer, rows, monkeypatch, at):
    """Train until a step, and leave the folder as a killed program does."""
    step = trainer._step

    def step_until_killed(table, indices, number, steps):
        if number == at:
            raise Killed
        return step(table, indices, number, steps)

    monkeypatch.setattr(trainer, "_step", step_until_killed)
    with pytest.raises(Killed):
        trainer.fit(rows, rows)


@pytest.mark.parametrize("lost", ["state.json", "tensors.safetensors"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_gives_the_same_weights(
    lost, bert, tmp_path, text_rows, monkeypatch, caplog
):
    caplog.set_level("INFO", "peftcls")
    settings = {"dropout": 0.3, "eval_every": 2, "micro_batch_size": 2}
    build(bert, tmp_path / "whole", text_rows, **settings).fit(text_rows, text_rows)
    trainer = build(bert, tmp_path / "cut", text_rows, **settings)
    train_until_killed(trainer, text_rows, monkeypatch, at=5)
    newest, older = find_checkpoints(tmp_path / "cut")
    (newest / lost).write_bytes((newest / lost).read_bytes().replace(b"1", b"2"))
    build(bert, tmp_path / "cut", text_rows, **settings).fit(text_rows, text_rows, resume=True)
    assert (
        f"{newest / lost} is damaged: its SHA-256 is not the one that was written; it is skipped."
        in caplog.text
    )
    assert f"resuming from {older.name}" in caplog.text
    whole, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_run_whose_adapter_could_not_be_saved_is_not_trained_again(
    bert, tmp_path, text_rows, monkeypatch
):
    trainer = build(bert, tmp_path, text_rows)

    def no_room(directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save", no_room)
    with pytest.raises(
        RunStoppedError,
        match=r"the adapter cannot be written to .* \(\[Errno 28\] No space left on device\)",
    ):
        trainer.fit(text_rows, text_rows)
    again = build(bert, tmp_path, text_rows)
    monkeypatch.setattr(again, "_step", None)  # no step is left to take
    assert again.fit(text_rows, text_rows, resume=True) == trainer.progress.best_scores
    assert (tmp_path / "peftcls.json").exists()
    assert not find_checkpoints(tmp_path)


def test_too_little_disk_space_is_reported_first(bert, tmp_path, text_rows, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 << 20, 10 << 20, 100_000))
    with pytest.raises(
        RunStoppedError,
        match=r"out has 0 MiB free, expected \d+ for a checkpoint\. Free some and go on with ",
    ):
        build(bert, tmp_path / "out", text_rows).fit(text_rows)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_the_checkpoints_before_whole(tmp_path):
    before = write_checkpoints(tmp_path, [2, 4])
    found = {file: file.read_bytes() for path in before for file in path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(
            RunStoppedError,
            match=r"checkpoint-00000006 cannot be written \(.*\); the checkpoints before it are",
        ):
            write_checkpoints(tmp_path, [6])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {
        file: file.read_bytes() for path in tmp_path.iterdir() for file in path.iterdir()
    } == found
    assert [find_damage(path) for path in before] == [None, None]


def test_a_whole_checkpoint_is_not_written_again(tmp_path):
    path = write_checkpoints(tmp_path, [2])[0]
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in path.iterdir()}
    assert write_checkpoints(tmp_path, [2]) == [path]
    assert {file.name: (file.stat().st_ino, file.read_bytes()) for file in path.iterdir()} == before
    assert load_file(path / checkpoint.TENSORS).keys() >= {
        "model/weight",
        "optimizer/exp_avg/weight",
    }


@pytest.mark.slow
def test_trainings_killed_at_random_moments_and_file_operations_give_the_same_weights(tmp_path):
    ended = subprocess.run(
        [
            sys.executable,
            CAMPAIGN,
            "--kills",
            "4",
            "--seed",
            "3",
            "--out",
            tmp_path / "faults.json",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["kills"] >= 4
    assert found["damaged_checkpoints"]["found"] == found["damaged_checkpoints"]["made"] > 100

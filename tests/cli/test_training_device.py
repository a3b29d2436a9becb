"""The device of a training is settled before PyTorch is imported; a wrong one is said."""

import os
import subprocess
import sys

import pytest

from peftcls.cli import main
from peftcls.cli.training_device import see_only

NAMES = ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in NAMES:
        # Set first, so that what a test leaves is taken away at its end.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def test_a_cpu_is_all_that_the_process_sees():
    os.environ["CUDA_VISIBLE_DEVICES"] = "3"
    restore = see_only("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    restore()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "ACCELERATE_USE_CPU" not in os.environ


@pytest.mark.parametrize(
    ("visible", "name", "left"),
    [(None, "cuda:1", "1"), ("4,6", "cuda:1", "6"), ("4, 6", "cuda:0", "4"), ("4", "cuda:1", "")],
)
def test_a_gpu_has_its_number_among_the_visible_ones(visible, name, left, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    see_only(name)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", ""])
def test_a_name_of_no_device_is_refused(name):
    with pytest.raises(ValueError, match="expected cpu, cuda, cuda:1 for the second GPU, or mps"):
        see_only(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no such GPU here"):
        see_only("cuda:3")


def test_an_apple_gpu_is_taken_where_there_is_one(monkeypatch):
    before = dict(os.environ)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    see_only("mps")()
    assert dict(os.environ) == before
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match="--device mps: PyTorch finds no such GPU here; leave it"):
        see_only("mps")


def test_a_process_that_has_used_a_gpu_cannot_change(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(ValueError, match="this program has used a GPU already"):
        see_only("cpu")


def test_a_launcher_and_the_option_exclude_each_other(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="the launcher has given each process a device"):
        see_only("cpu")


def test_the_command_takes_it(bert, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(30)))
    command = ["train", str(file), "--model", bert, "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*command, "--device", "gpu"]) == 1
    assert "--device gpu: expected cpu" in capsys.readouterr().err
    assert main([*command, "--device", "cpu"]) == 0
    assert not {"CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"} & set(os.environ)
    ended = subprocess.run(
        [sys.executable, "-m", "peftcls", *command, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr

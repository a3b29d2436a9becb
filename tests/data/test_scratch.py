"""Scratch folders of programs that were killed."""

import subprocess
import sys

import pytest

from peftcls.data.scratch import remove_abandoned

fcntl = pytest.importorskip("fcntl")

PROGRAM = """
import sys
from peftcls.data.scratch import scratch_folder

print(scratch_folder(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts programs with a scratch folder, which wait for the end of their input."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    programs = []

    def started():
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        programs.append(program)
        return program, program.stdout.readline().strip()

    yield started
    for program in programs:
        program.kill()
        program.communicate()


def folders(tmp_path):
    return {str(path) for path in tmp_path.glob("peftcls-*")}


def test_the_folder_of_a_killed_program_is_removed_by_the_next_and_no_other(tmp_path, start):
    killed, left = start()
    _, in_use = start()
    (tmp_path / "peftcls-without-a-lock").mkdir()
    killed.kill()
    killed.wait()
    assert left in folders(tmp_path)
    ending, new = start()
    assert folders(tmp_path) == {in_use, new, str(tmp_path / "peftcls-without-a-lock")}
    ending.communicate()
    assert ending.returncode == 0
    assert new not in folders(tmp_path)


def test_a_folder_that_cannot_be_locked_or_read_is_left_alone(tmp_path):
    (tmp_path / "peftcls-file").write_text("no folder")
    folder = tmp_path / "peftcls-locked"
    folder.mkdir()
    with (folder / "in_use").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        remove_abandoned(tmp_path)
        assert (folder / "in_use").exists()
    remove_abandoned(tmp_path)
    assert folders(tmp_path) == {str(tmp_path / "peftcls-file")}

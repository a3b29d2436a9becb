"""Two runs never write into the same folder of answers."""

import subprocess
import sys

import pytest

from peftcls.inference.part_lock import locked

HOLDER = """
import sys
from pathlib import Path
from peftcls.inference.part_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def part(tmp_path):
    folder = tmp_path / "a.part"
    folder.mkdir()
    return folder


@pytest.fixture
def holder(part):
    """Another process that holds the lock, until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(part)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_other_process_is_named(holder, part):
    sentence = rf"a\.part is being written by process {holder.pid}; wait until it has ended"
    with pytest.raises(ValueError, match=sentence), locked(part):
        pytest.fail("the lock was given twice")
    holder.communicate("")
    with locked(part):
        pass


def test_a_process_that_was_killed_holds_nothing(holder, part):
    holder.kill()
    holder.wait()
    with locked(part):
        pass

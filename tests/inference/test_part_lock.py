"""Two processes never write into the same file of answers."""

import subprocess
import sys

import pytest

from peftcls.inference.part_lock import locked_for_appending

HOLDER = """
import sys
from pathlib import Path
from peftcls.inference.part_lock import locked_for_appending
with locked_for_appending(Path(sys.argv[1])) as lines:
    print("held", flush=True)
    sys.stdin.read()
    lines.write("theirs")
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock, until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a.part")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_other_process_is_named_and_loses_nothing(holder, tmp_path):
    part = tmp_path / "a.part"
    sentence = rf"a\.part is being written by process {holder.pid}; wait until it has ended"
    with pytest.raises(ValueError, match=sentence), locked_for_appending(part):
        pytest.fail("the lock was given twice")
    holder.communicate("")
    assert part.read_text() == "theirs"
    with locked_for_appending(part) as lines:
        lines.write(", ours")
    assert part.read_text() == "theirs, ours"


def test_a_process_that_was_killed_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    with locked_for_appending(tmp_path / "a.part") as lines:
        lines.write("ours")
    assert (tmp_path / "a.part").read_text() == "ours"

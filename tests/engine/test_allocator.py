"""Memory goes back to the operating system when it is freed."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from peftcls.engine.allocator import map_large_blocks, trim_heap

def mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

if sys.argv[1] == "mapped":
    map_large_blocks()
# The C library learns from blocks that were freed.
torch.ones(30, 1024, 1024, dtype=torch.uint8)
before = mib()
kept = []
for _ in range(16):
    large = torch.ones(20, 1024, 1024, dtype=torch.uint8)
    kept.append(torch.ones(64, 1024, dtype=torch.uint8))
    second = torch.ones(20, 1024, 1024, dtype=torch.uint8)
    kept.append(torch.ones(64, 1024, dtype=torch.uint8))
    del large, second
print(mib() - before)
trim_heap()
print(mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_blocks_go_back_when_they_are_freed():
    grown = {}
    for way in ("default", "mapped"):
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, way],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        grown[way] = [float(line) for line in ended.stdout.split()]
    assert grown["default"][0] > 15, "the C library keeps freed blocks"
    assert grown["mapped"][0] < 8
    assert all(after < 8 for _, after in grown.values())

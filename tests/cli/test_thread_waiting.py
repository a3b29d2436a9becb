"""Threads of a command sleep while they have no work, unless the user decides otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
if sys.argv[1] == "torch":
    import torch
from peftcls.cli import main
main(["--version"])
print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("first", "settings", "found"),
    [
        ("nothing", {}, "PASSIVE"),
        ("nothing", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("nothing", {"GOMP_SPINCOUNT": "1000"}, "None"),
        ("torch", {}, "None"),
    ],
)
def test_the_policy_is_set_before_pytorch_and_never_over_the_users(first, settings, found):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, first],
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == found

"""Threads sleep while they have no work, and are not more than a quota lets compute.

Unless the user decides otherwise.
"""

import os
import subprocess
import sys
import types

import pytest

from peftcls.processors import processor_quota, set_up_threads, usable_processors

PROGRAM = """
import os, sys
if sys.argv[1] == "torch":
    import torch
import peftcls
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


@pytest.fixture
def many_processors(monkeypatch):
    monkeypatch.setattr("peftcls.processors.usable_processors", lambda: 64)


def write_quota(root, files):
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "0"}, None),
    ],
    ids=str,
)
def test_the_quota_of_a_container_is_read(tmp_path, many_processors, files, found):
    write_quota(tmp_path, files)
    assert processor_quota(tmp_path) == found


def test_there_is_at_least_one_processor():
    assert usable_processors() >= 1


@pytest.mark.parametrize(("given", "found"), [(None, "3"), ("OMP_NUM_THREADS", "7")])
def test_threads_are_not_more_than_the_quota_unless_the_user_decides(monkeypatch, given, found):
    monkeypatch.setattr("peftcls.processors.processor_quota", lambda: 3)
    # As before PyTorch is imported.
    monkeypatch.setattr("peftcls.processors.sys", types.SimpleNamespace(modules={}))
    environment = {given: found} if given else {}
    monkeypatch.setattr("os.environ", environment)
    set_up_threads()
    assert environment["OMP_NUM_THREADS"] == found

"""Two processes: both know the faults of each, and one that ends or stalls blocks no other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import build, interrupt

import peftcls
from peftcls.training.checkpoint import find_checkpoints, find_damage

PROGRAM = Path(__file__).parents[1] / "programs" / "train_through_faults.py"


@pytest.fixture
def rows_file(tmp_path, text_rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in text_rows))
    return path


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
def test_two_processes_share_their_faults_and_the_run_is_resumed_by_one(
    bert, tmp_path, rows_file, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings, rows = {"double": True, "eval_every": 2}, peftcls.read_rows(rows_file)
    interrupt(
        build(bert, tmp_path / "begun", rows, **settings), rows, monkeypatch, at=3, valid=rows
    )
    started = time.monotonic()
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(PROGRAM),
            bert,
            str(tmp_path),
            str(rows_file),
            "dies",
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode != 0
    assert time.monotonic() - started < 120
    assert "another process has ended or does not answer, after step 3 (" in ended.stderr, (
        ended.stderr[-3000:]
    )
    assert "Go on with resume=True, on any number of processes." in ended.stderr

    whole = build(bert, tmp_path / "whole", rows, **settings)
    whole.fit(rows, rows)
    expected = {name: p.detach() for name, p in whole.parameters.items()}
    assert (tmp_path / "tokens0").read_text() == (tmp_path / "tokens1").read_text()
    assert int((tmp_path / "tokens0").read_text()) < 40
    assert largest_difference(load_file(tmp_path / "short.safetensors"), expected) < 1e-7

    assert largest_difference(load_file(tmp_path / "begun.safetensors"), expected) < 1e-7, (
        "begun by one process, ended by two"
    )

    skipping = build(bert, tmp_path / "skipping alone", rows, **settings, max_skipped_steps=1)
    task, plain = skipping.gradients.task, skipping.gradients.task.loss_sum
    object.__setattr__(
        task,
        "loss_sum",
        lambda model, batch: (
            plain(model, batch)
            * (float("nan") if skipping.progress.step == 3 and torch.is_grad_enabled() else 1)
        ),
    )
    skipping.fit(rows, rows)
    assert [(tmp_path / f"skipped{rank}").read_text() for rank in (0, 1)] == ["[4]", "[4]"]
    alone = {name: p.detach() for name, p in skipping.parameters.items()}
    assert largest_difference(load_file(tmp_path / "skipping.safetensors"), alone) < 1e-7
    assert largest_difference(alone, expected) > 1e-4

    told = [(tmp_path / f"spoilt{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith("step 4: the loss is nan")
    alone = json.loads(told[0].partition("not finite when alone: ")[2].partition("]")[0] + "]")
    everything = json.loads(told[0].partition("Its rows: ")[2].partition("]")[0] + "]")
    assert set(alone) < set(everything), "the other process's rows are finite"
    assert len(alone) == 3

    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == ["143 3", "143 3"]
    assert largest_difference(load_file(tmp_path / "stopped.safetensors"), expected) < 1e-7

    assert next(
        (path.name, find_damage(path)) for path in find_checkpoints(tmp_path / "spoilt")
    ) == (
        "checkpoint-00000003",
        None,
    )
    left = [(path.name, find_damage(path)) for path in find_checkpoints(tmp_path / "lost")]
    assert left == [("checkpoint-00000003", None), ("checkpoint-00000002", None)], (
        "the one that is left keeps all whole steps"
    )
    again = build(bert, tmp_path / "lost", rows, **settings)
    again.fit(rows, rows, resume=True)
    assert (
        largest_difference({name: p.detach() for name, p in again.parameters.items()}, expected)
        < 1e-7
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "where", "checkpoints"),
    [("stalls", "step 4", 1), ("stalls in an evaluation", "an evaluation", 0)],
)
def test_a_process_that_stalls_does_not_block_the_other(
    end, where, checkpoints, bert, tmp_path, rows_file
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), bert, str(tmp_path), str(rows_file), end],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in (0, 1)
    ]
    try:
        _, err = both[0].communicate(timeout=200)
        ended = time.monotonic()
        assert both[1].poll() is None
    finally:
        for process in both:
            process.kill()
        for process in both:
            process.communicate()
    assert both[0].returncode == 1
    assert ended - float((tmp_path / "stalled").read_text()) < 60
    assert (
        f"s for the others in {where}: at least one of them has stalled. Start again with" in err
    ), err[-2000:]
    assert both[1].returncode == -signal.SIGKILL
    assert [find_damage(path) for path in find_checkpoints(tmp_path / "lost")] == [
        None
    ] * checkpoints

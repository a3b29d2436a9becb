"""Real processes: one to three give the same weights and scores; a killed run resumes exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def rows_file(tmp_path, text_rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in text_rows))
    return path


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def runs():
    """What was trained so far, by the number of processes."""
    return {}


@pytest.fixture
def trained_on(runs, bert, gpt2, tmp_path_factory, text_rows):
    """Of a number of processes, by kind: the trained tensors, the scores and the answers.

    All kinds are trained by the same processes, one after the other.
    """
    rare = [row for n, row in enumerate(text_rows) if row["label"] == "no" or n < 2]
    weighted = [{**row, "weight": 0.25 * (n % 5)} for n, row in enumerate(text_rows)]
    kinds = {
        "head": (gpt2, text_rows),
        "instruction": (gpt2, text_rows),
        "weighted": (bert, weighted),
        "balanced": (bert, rare),
    }

    def train(processes):
        folder = tmp_path_factory.mktemp("processes")
        jobs = [
            {"kind": kind, "base": base, "rows": rows, "out": str(folder / kind)}
            for kind, (base, rows) in kinds.items()
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        ended = run(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            processes,
            PROGRAMS / "train_on_processes.py",
            folder / "jobs.json",
            processes,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return {
            kind: (
                load_file(folder / kind / "double.safetensors"),
                *json.loads((folder / kind / "scores.json").read_text()),
            )
            for kind in kinds
        }

    def found(processes):
        if processes not in runs:
            runs[processes] = train(processes)
        return runs[processes]

    return found


def same_run(one, other):
    (tensors, scores, labels), (other_tensors, other_scores, other_labels) = one, other
    assert any(
        "lora_B" in name and float(tensor.abs().max()) > 1e-4 for name, tensor in tensors.items()
    )
    assert max(float((tensors[name] - other_tensors[name]).abs().max()) for name in tensors) < 1e-7
    assert other_labels == labels
    assert other_scores == pytest.approx(scores)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "instruction"])
def test_one_two_and_three_processes_train_the_same_weights(kind, trained_on):
    for processes in (2, 3):
        same_run(trained_on(1)[kind], trained_on(processes)[kind])


@pytest.mark.slow
def test_processes_give_weighted_rows_the_same_weight(trained_on):
    one = trained_on(1)["weighted"]
    for processes in (2, 3):
        same_run(one, trained_on(processes)["weighted"])


@pytest.mark.slow
def test_processes_draw_the_same_rows_for_rare_labels_and_deal_out_the_same_ranks(trained_on):
    one = trained_on(1)["balanced"]
    for processes in (2, 3):
        same_run(one, trained_on(processes)["balanced"])
    kept = [tensor for name, tensor in one[0].items() if "lora_E" in name]
    assert sum(int((tensor != 0).sum()) for tensor in kept) == 4 * len(kept)


@pytest.mark.slow
def test_a_killed_process_is_taken_up_bit_for_bit(bert, tmp_path, rows_file):
    program = PROGRAMS / "train_until_killed.py"
    assert run(sys.executable, program, bert, tmp_path / "whole", rows_file, -1).returncode == 0
    for killed_at in (5, 7):
        assert (
            run(sys.executable, program, bert, tmp_path / "cut", rows_file, killed_at).returncode
            == -9
        )
        assert any((tmp_path / "cut").glob("checkpoint-*"))
        assert not (tmp_path / "cut" / "peftcls.json").exists()
    assert run(sys.executable, program, bert, tmp_path / "cut", rows_file, -1).returncode == 0
    whole, cut = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

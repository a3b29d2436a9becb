"""What is not finite in one process, or cannot be computed, ends all with the same sentence."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import build, weights

PROGRAM = Path(__file__).parents[1] / "programs" / "fail_in_one_process.py"
SECONDS = 200
EXPECTED = {
    "loss in shares": ("FloatingPointError", "step 4: the loss is nan"),
    "no loss": (".*", "these rows weigh nothing"),
    "no answer": ("ValueError", "these logits are no answer"),
    "metric": ("ValueError", "the metric 'score' gave nan as 'score' on 16 rows"),
    "weights in shares": (
        "RunStoppedError",
        "the tensor .* is not finite in process 1 after step 4",
    ),
    "saved": ("FloatingPointError", "the trained tensor .* is not finite in process 0"),
    "saved in shares": ("FloatingPointError", "the trained tensor .* is not finite in process 1"),
    "loaded": ("RuntimeError", ".*when it is loaded its answers differ"),
    "compared in shares": ("RuntimeError", ".*when it is loaded its answers differ"),
    "read in shares": ("ValueError", ".*holds values that are not finite"),
}


@pytest.fixture(scope="module")
def met(bert, tmp_path_factory):
    """The errors that two processes ended with; no launcher ends one when the other has ended."""
    folder = tmp_path_factory.mktemp("agreement")
    damaged = folder / "damaged"
    shutil.copytree(bert, damaged)
    tensors = load_file(damaged / "model.safetensors")
    # The last row is in the share of the second process.
    tensors["encoder.layer.1.output.dense.weight"][-1, -1] = float("nan")
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    rows = [
        {"text": f"{text} {n}", "label": label}
        for n in range(8)
        for text, label in (("the patient was given a new drug", "yes"), ("radio waves", "no"))
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, PROGRAM, bert, damaged, folder, folder / "rows.jsonl"]
    both = [
        subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.DEVNULL,
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
            },
        )
        for rank in (0, 1)
    ]
    try:
        for process in both:
            _, written = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, written[-3000:]
    finally:
        for process in both:
            process.kill()
    return folder, *(json.loads((folder / f"met{rank}.json").read_text()) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("fault", EXPECTED)
def test_both_processes_end_with_the_sentence_of_the_one_that_failed(fault, met):
    _, first, second = met
    kind, sentence = EXPECTED[fault]
    assert first[fault][1] == second[fault][1]
    assert re.match(sentence, first[fault][1]), first[fault]
    for found in (first[fault][0], second[fault][0]):
        assert re.fullmatch(kind, found)
    if kind == ".*":
        # Others cannot make an error of every class; the one that has met it raises its own.
        assert (first[fault][0], second[fault][0]) == ("RuntimeError", "ZeroDivisionError")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["saved", "saved in shares", "weights in shares"])
def test_nothing_is_saved_that_is_not_finite_in_one_process(fault, met):
    folder = met[0] / fault.replace(" ", "-")
    assert not (folder / "peftcls.json").exists()
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == (
        ["checkpoint-00000002"] if fault.startswith("weights") else []
    )


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_the_folder_stays_where_what_would_be_saved_is_not_finite(value, bert, text_rows, tmp_path):
    trainer = build(bert, tmp_path, text_rows, epochs=1)
    trainer.fit(text_rows)
    before = weights(tmp_path)
    parameter = next(iter(trainer.parameters.values()))
    with torch.no_grad():
        parameter.view(-1)[0] = float(value)
    with pytest.raises(FloatingPointError, match="is not finite in process 0, so nothing is saved"):
        trainer.save(tmp_path)
    after = weights(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "peftcls.json").exists()

"""A base in shares trains what a whole one trains, and ends in a sentence when something fails."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import build

import peftcls
from peftcls.engine.launcher import launcher_asks_for_shares
from peftcls.engine.model_state import state_of
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_weights import trained_tensors
from peftcls.training.preflight import lock_output_dir
from peftcls.training.save_check import compare_in_shares

PROGRAMS = Path(__file__).parent / "programs"
SECONDS = int(os.environ.get("PEFTCLS_SECONDS", "300"))
TINY = 1e-7
# Llama computes its norms and rotations in float32, and rounds otherwise in batches of other sizes.
# Two of five runs with IA3 on three processes differed by 8e-7 and 6e-6.
LESS_TINY = 1e-5
# Norms and positions of the small base: they stay whole in every process.
WHOLE = 0.14
TWO = (
    "bert-head-lora",
    "bert-balanced-adalora",
    "bert-head-head",
    "bert-head-ia3",
    "bert-numbers-top",
    "bert-spans-lora",
    "gpt2-labels-rslora",
    "gpt2-generated-all-linear",
    "llama-labels-lora",
)
IN_4_BITS = ("bert-head-4bit", "llama-labels-4bit")
THREE = ("bert-head-lora", "gpt2-generated-all-linear")
FOUR = ("bert-pairs-lora",)
METHODS = ("lora", "all-linear", "head", "adalora", "ia3")
WORK_OF = {
    "bert": ("head", "pairs", "several", "numbers", "spans"),
    "gpt2": ("labels", "generated"),
    "llama": ("labels", "generated"),
}
if os.environ.get("PEFTCLS_EVERY_COMBINATION"):
    # Takes a quarter of an hour on two cores.
    TWO = THREE = FOUR = tuple(
        f"{base}-{work}-{method}"
        for base, kinds in WORK_OF.items()
        for work in kinds
        for method in METHODS
        if not (method == "head" and base != "bert")
    )
ON = {2: TWO, 3: THREE, 4: FOUR}


def launch(processes, program, *arguments) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return start(launcher if processes > 1 else [], program, *arguments)


def launch_machines(program, *arguments, processes=1) -> list[subprocess.Popen]:
    """Two machines with so many processes each; both are this one.

    A launcher ends what is left on its own machine only, so that each process says its last words
    if it is alone there.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["-m", "torch.distributed.run", "--master-addr", "127.0.0.1", "--master-port", port]
    place += ["--nnodes", 2, "--nproc-per-node", processes]
    return [start([*place, "--node-rank", rank], program, *arguments) for rank in (0, 1)]


def start(launcher, program, *arguments) -> subprocess.Popen:
    command = [sys.executable, *launcher, PROGRAMS / program, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(running: subprocess.Popen) -> tuple[int, str]:
    output, _ = running.communicate(timeout=SECONDS)
    return running.returncode, output


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """Sixteen rows of unequal lengths, so that the last of four steps has one row only."""
    words = {"yes": "the patient was given a new drug", "no": "radio waves from a galaxy"}
    rows = [
        {"text": f"{words[label]} {'and recovered ' * (n % 4)}{n}", "label": label}
        for n in range(8)
        for label in words
    ]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def runs(bert, gpt2, llama, rows_file, tmp_path_factory):
    """What one process has trained, and what two and three have; each in one start."""
    bases = json.dumps({"bert": bert, "gpt2": gpt2, "llama": llama})
    folders = {}
    alone = tuple(dict.fromkeys((*TWO, *THREE, *FOUR)))
    for processes, kinds in ((1, alone), (2, (*TWO, *IN_4_BITS)), (3, THREE), (4, FOUR)):
        out = folders[processes] = tmp_path_factory.mktemp(f"on_{processes}")
        running = launch(processes, "train_in_shares.py", bases, out, rows_file, ",".join(kinds))
        code, output = ended(running)
        assert code == 0, output[-3000:]
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "kind"), [(count, kind) for count, kinds in ON.items() for kind in kinds]
)
def test_a_base_in_shares_trains_what_a_whole_one_does(processes, kind, runs):
    alone, shared = runs[1] / kind, runs[processes] / kind
    expected, found = load_file(f"{alone}.safetensors"), load_file(f"{shared}.safetensors")
    allowed = TINY
    if kind.startswith("llama") or (kind.endswith("ia3") and processes == 3):
        allowed = LESS_TINY
    for name, tensor in expected.items():
        assert float((tensor - found[name]).abs().max()) < allowed, name
    alone, shared = (json.loads(Path(f"{run}.json").read_text()) for run in (alone, shared))
    assert shared["answers"] == alone["answers"]
    # Of numbers that differ by rounding the order is chance.
    scores, expected = (
        {name: value for name, value in run["scores"][1].items() if name != "spearman"}
        for run in (shared, alone)
    )
    assert scores == pytest.approx(expected)
    assert shared["shared"]
    assert not alone["shared"]
    whole = alone["held"][0]
    assert len(shared["held"]) == processes
    most = whole * (WHOLE + (1 - WHOLE) / processes)
    assert max(shared["held"]) < most, "each holds its share"


@pytest.mark.slow
def test_each_of_two_machines_holds_a_base_in_shares(runs, bert, rows_file, tmp_path):
    kind = "bert-head-lora"
    program = ("train_in_shares.py", json.dumps({"bert": bert}), tmp_path, rows_file, kind)
    for code, output in map(ended, launch_machines(*program, processes=2)):
        assert code == 0, output[-3000:]
    found = load_file(tmp_path / f"{kind}.safetensors")
    for name, tensor in load_file(f"{runs[1] / kind}.safetensors").items():
        assert float((tensor - found[name]).abs().max()) < TINY, name
    alone, shared = (
        json.loads((folder / f"{kind}.json").read_text()) for folder in (runs[1], tmp_path)
    )
    assert len(shared["held"]) == 4
    # Half of it, as two processes hold, and not a quarter.
    half = alone["held"][0] / 2
    assert all(half < held < 2 * half * (WHOLE + (1 - WHOLE) / 2) for held in shared["held"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", IN_4_BITS)
def test_shares_of_4_bits_train_and_answer_as_whole_4_bits_do(kind, runs):
    folders = [f"{runs[2] / kind}-{how}" for how in ("whole", "shares")]
    expected, tensors = (load_file(f"{folder}.safetensors") for folder in folders)
    whole, shared = (json.loads(Path(f"{folder}.json").read_text()) for folder in folders)
    assert expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert float((tensor - tensors[name]).abs().max()) < TINY, name
    assert (whole["shared"], shared["shared"]) == ([False, False], [True, True])
    for answers in (shared["answers"], shared["loaded"]):
        for one, other in zip(whole["answers"], answers, strict=True):
            assert other == pytest.approx(one, abs=1e-5)
    # A layer below the head is in no list of layers, and stays whole.
    for all_bytes, held in zip(whole["held"], shared["held"], strict=True):
        assert 0.5 * all_bytes <= held < 0.6 * all_bytes


@pytest.mark.slow
def test_shares_are_read_bit_for_bit(bert, gpt2, llama):
    bases = json.dumps({"bert": bert, "gpt2": gpt2, "llama": llama})
    code, output = ended(launch(2, "load_in_shares.py", bases))
    assert code == 0, output[-3000:]


SENTENCES = {
    "killed": "another process has ended or does not answer, after step 3",
    "stalls": "has waited 2 s for the others in step 4",
    "stalls_in_evaluation": "s for the others in an evaluation: at least one of them has stalled",
    "no_memory": "another process has ended, after step 3: step 4: out of memory in process 1",
    "raises": "another process has ended, after step 3: 'a strange answer in row 7'",
    "calls_once_more": "step 4: one process has called the base",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SENTENCES)
def test_a_fault_in_one_process_ends_all_with_a_sentence(fault, bert, rows_file, tmp_path):
    started = time.monotonic()
    first, second = launch_machines(
        "shares_with_faults.py", bert, tmp_path / "run", rows_file, fault
    )
    code, output = ended(first)
    assert code != 0
    assert SENTENCES[fault] in output, output[-3000:]
    if fault.startswith("stalls"):
        for stopped in psutil.Process(second.pid).children():
            stopped.kill()
    assert ended(second)[0] != 0
    assert time.monotonic() - started < SECONDS / 2
    assert not (tmp_path / "run" / "peftcls.json").exists()
    if fault != "killed":
        return
    # What two processes began with shares, one goes on with that holds the whole base.
    rows = peftcls.read_rows(rows_file)
    resumed, whole = (in_float64(bert, tmp_path / name, rows) for name in ("run", "whole"))
    assert list((tmp_path / "run").glob("checkpoint-*"))
    for trainer in (resumed, whole):
        trainer.fit(rows, resume=trainer is resumed)
    assert_saved_as(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_shares(bert, rows_file, tmp_path):
    rows = peftcls.read_rows(rows_file)
    stopped, whole = (in_float64(bert, tmp_path / name, rows) for name in ("run", "whole"))
    plain = stopped.task.loss_sum

    def loss_sum(model, batch):
        if torch.is_grad_enabled() and stopped.progress.step == 3:
            raise KeyError("stopped by hand")
        return plain(model, batch)

    object.__setattr__(stopped.gradients.task, "loss_sum", loss_sum)
    with pytest.raises(KeyError, match="by hand"):
        stopped.fit(rows)
    program = ("shares_with_faults.py", bert, tmp_path / "run", rows_file)
    assert checkpoints(tmp_path / "run")[-1] == 3
    code, output = ended(launch(2, *program, "killed", 5))
    assert code != 0
    assert "after step 5" in output, output[-3000:]
    assert checkpoints(tmp_path / "run")[-1] in (4, 5)
    code, output = ended(launch(3, *program, "none"))
    assert code == 0, output[-3000:]
    whole.fit(rows)
    assert_saved_as(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_dry_run_in_shares_leaves_everything_as_it_was(bert, rows_file, tmp_path):
    program = ("shares_with_faults.py", bert, tmp_path / "run", rows_file)
    code, output = ended(launch(2, *program, "dry_run"))
    assert code == 0, output[-3000:]
    assert output.count("two steps on the") == 2
    rows = peftcls.read_rows(rows_file)
    whole = in_float64(bert, tmp_path / "whole", rows)
    whole.fit(rows)
    assert_saved_as(whole, tmp_path / "run")


def checkpoints(folder):
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


@pytest.mark.slow
def test_what_the_first_process_alone_has_met_is_said_by_all(bert, rows_file, tmp_path):
    out = tmp_path / "run"
    with lock_output_dir(out, is_main_process=True):
        code, output = ended(launch(2, "shares_with_faults.py", bert, out, rows_file, "none"))
    assert code != 0
    assert output.count(f"RunStoppedError: another program is training into {out}") == 2


@pytest.mark.slow
def test_two_machines_go_on_after_one_has_died(bert, rows_file, tmp_path):
    for fault in ("killed", "none"):
        program = ("shares_with_faults.py", bert, tmp_path / "run", rows_file, fault)
        machines = launch_machines(*program)
        codes, outputs = zip(*map(ended, machines), strict=True)
        assert [code == 0 for code in codes] == [fault == "none"] * 2, outputs[0][-3000:]
    rows = peftcls.read_rows(rows_file)
    whole = in_float64(bert, tmp_path / "whole", rows)
    whole.fit(rows)
    assert_saved_as(whole, tmp_path / "run")


def assert_saved_as(trainer, folder):
    """A folder holds what a trainer in one process has trained."""
    found = load_file(folder / "adapter_model.safetensors")
    for name, tensor in trained_tensors(trainer.model).items():
        assert float((tensor - found[name]).abs().max()) < TINY, name


def in_float64(base, out, rows):
    """The trainer of `shares_with_faults.py`, in one process."""
    task = peftcls.Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(base, task, dtype=torch.float64)
    model = peftcls.attach_lora(model, task, rank=4).double()
    config = peftcls.TrainConfig(
        out, epochs=2, batch_size=6, eval_every=2, learning_rate=1e-2, head_init="random"
    )
    return peftcls.Trainer(model, task, tokenizer, config)


# The check of what was saved


@pytest.fixture
def saved(bert, text_rows, tmp_path):
    trainer = build(bert, tmp_path / "run", text_rows)
    trainer.fit(text_rows)
    return trainer, tmp_path / "run"


def test_the_saved_adapter_answers_through_the_same_base(saved, text_rows):
    trainer, folder = saved
    before = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
    probe = [{"text": row["text"]} for row in text_rows[:4]]
    compare_in_shares(folder, Predictor(trainer.model, trainer.task, trainer.tokenizer), probe)
    assert {name: p.requires_grad for name, p in trainer.model.named_parameters()} == before
    assert list(trainer.model.peft_config) == ["default"]


@pytest.mark.parametrize("what", ["weights", "scale"])
def test_an_adapter_that_answers_otherwise_is_found(what, saved, text_rows):
    trainer, folder = saved
    if what == "weights":
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file)
    else:
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "lora_alpha": 50 * config["lora_alpha"]}))
    probe = [{"text": row["text"]} for row in text_rows[:4]]
    with pytest.raises(RuntimeError, match="its answers differ"):
        compare_in_shares(folder, Predictor(trainer.model, trainer.task, trainer.tokenizer), probe)
    assert not (folder / "peftcls.json").exists()


def test_a_trained_head_is_compared_bit_for_bit(bert, text_rows, tmp_path):
    task = peftcls.Classification(max_length=16).learn(text_rows)
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.train_only(model, task, "head")
    config = peftcls.TrainConfig(tmp_path / "run", epochs=1, batch_size=8)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(text_rows)
    predictor = Predictor(model, task, tokenizer)
    compare_in_shares(tmp_path / "run", predictor, [])
    with torch.no_grad():
        next(iter(trainer.parameters.values())).view(-1)[0] += 1e-3
    with pytest.raises(RuntimeError, match="holds other tensors than the trained model"):
        compare_in_shares(tmp_path / "run", predictor, [])


# What is refused, before anything is loaded or learnt


@pytest.fixture
def task(text_rows):
    return peftcls.Classification(max_length=16).learn(text_rows)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"quantize": "8bit"}, "keeps the scales of 8-bit weights with the whole weights"),
        ({"pretrained": False}, "random weights are drawn whole"),
    ],
)
def test_what_cannot_be_held_in_shares_is_refused(settings, sentence, bert, task):
    with pytest.raises(ValueError, match=sentence):
        peftcls.load_base(bert, task, shard=True, **settings)


def test_one_process_holds_the_whole_base(bert, task, caplog):
    model, _ = peftcls.load_base(bert, task, shard=True)
    assert state_of(model).shares is None


@pytest.fixture
def as_if_in_shares(bert, task):
    model, _ = peftcls.load_base(bert, task)
    state_of(model).shares = object()
    return model


@pytest.mark.parametrize("method", ["dora", "pissa"])
def test_methods_that_read_whole_weights_are_refused(method, as_if_in_shares, task):
    with pytest.raises(ValueError, match="it starts from whole weights"):
        peftcls.attach_lora(as_if_in_shares, task, method=method)


def test_only_the_head_of_a_base_in_shares_can_be_trained(as_if_in_shares, task):
    with pytest.raises(ValueError, match="only its head can be trained there"):
        peftcls.train_only(as_if_in_shares, task, "last_block")


def test_shares_cannot_be_copied(as_if_in_shares):
    with pytest.raises(ValueError, match="shares cannot be copied"):
        peftcls.share_base(as_if_in_shares)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "asks for FSDP 1, expected 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "sets fsdp_offload_params"),
        (
            {"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "set gradient_checkpointing=True instead",
        ),
        (
            {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"},
            "each process would hold the whole base",
        ),
    ],
)
def test_what_the_launcher_asks_for_is_done_or_refused(settings, sentence, monkeypatch):
    assert not launcher_asks_for_shares()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        launcher_asks_for_shares()


def test_fsdp_2_of_the_launcher_is_taken_as_shares(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launcher_asks_for_shares()

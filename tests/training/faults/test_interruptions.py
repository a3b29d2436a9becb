"""Signals, lack of memory and nan in one process: the step is ended, redone or refused."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from small_runs import build, weights

from peftcls import Predictor
from peftcls.data.reading import as_dataset
from peftcls.engine.lost_processes import is_lost_process, watchdog
from peftcls.errors import RunStoppedError, is_out_of_memory
from peftcls.tasks.encoding import encode_table
from peftcls.training import data_order
from peftcls.training.checkpoint import find_checkpoints, find_damage
from peftcls.training.signals import Signals

SETTINGS = {"dropout": 0.3, "eval_every": 2, "micro_batch_size": 2, "log_every": 3}
ENDS = {signal.SIGINT: (KeyboardInterrupt, None), signal.SIGTERM: (SystemExit, 143)}


@pytest.fixture(scope="module")
def whole(bert, tmp_path_factory):
    """What the training leaves that no signal reached, and its history."""
    texts = [
        "the patient recovered",
        "a new drug was given",
        "the drug and the patient",
        "a patient was given a new drug and recovered",
        "stock prices fell",
        "the bank raised rates",
        "radio waves from a galaxy far away and away",
        "see you at lunch",
    ]
    rows = [
        {"text": f"{text} {n}", "label": "yes" if i < 4 else "no"}
        for n in range(2)
        for i, text in enumerate(texts)
    ]
    out = tmp_path_factory.mktemp("whole")
    trainer = build(bert, out, rows, **SETTINGS)
    trainer.fit(rows, rows)
    return rows, weights(out), trainer.progress.history


def signalled(trainer, rows, number, during, at, monkeypatch):
    """Send this process a signal during a part of the training."""
    owner, name, place = {
        "a step": (trainer.gradients, "accumulate", lambda *given: given[2]),
        "a save": (trainer.run, "write_checkpoint", lambda *given: trainer.progress.step),
    }[during]
    plain = getattr(owner, name)

    def with_signal(*given):
        if place(*given) == at:
            os.kill(os.getpid(), number)
        return plain(*given)

    monkeypatch.setattr(owner, name, with_signal)
    kind, code = ENDS[number]
    with pytest.raises(kind) as ended:
        trainer.fit(rows, rows)
    assert code is None or ended.value.code == code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "during", "at", "step"),
    [
        (signal.SIGINT, "a step", 2, 3),
        (signal.SIGTERM, "a step", 3, 4),
        (signal.SIGTERM, "a step", 5, 6),
        (signal.SIGINT, "a save", 4, 4),
    ],
)
def test_a_signal_lets_the_step_end_and_the_run_goes_on_exactly(
    number, during, at, step, whole, bert, tmp_path, monkeypatch, capfd, caplog
):
    rows, expected, history = whole
    handlers = [signal.getsignal(known) for known in ENDS]
    signalled(build(bert, tmp_path, rows, **SETTINGS), rows, number, during, at, monkeypatch)
    assert [signal.getsignal(known) for known in ENDS] == handlers
    newest = find_checkpoints(tmp_path)[0]
    assert (newest.name, find_damage(newest)) == (f"checkpoint-{step:08d}", None)
    assert (
        f"{signal.Signals(number).name}: stopped after step {step} of 6, whose checkpoint is in "
        f"{tmp_path}; go on with "
    ) in caplog.text
    assert "once more ends the program at once" in capfd.readouterr().err
    again = build(bert, tmp_path, rows, **SETTINGS)
    again.fit(rows, rows, resume=True)
    found = weights(tmp_path)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.progress.history == history


@pytest.mark.parametrize("number", ENDS)
def test_an_evaluation_is_broken_off_and_the_run_goes_on_exactly(
    number, whole, bert, tmp_path, monkeypatch, caplog
):
    rows, expected, history = whole
    trainer = build(bert, tmp_path, rows, **SETTINGS)
    ended, answer = [], Predictor.answer

    def with_signal(self, features):
        if trainer.progress.step == 4:
            os.kill(os.getpid(), number)
            ended.append("the evaluation went on")
        return answer(self, features)

    monkeypatch.setattr(Predictor, "answer", with_signal)
    with pytest.raises(ENDS[number][0]):
        trainer.fit(rows, rows)
    assert not ended
    assert [find_damage(found) for found in find_checkpoints(tmp_path)] == [None, None]
    assert find_checkpoints(tmp_path)[0].name == "checkpoint-00000004"
    assert (
        f"stopped after step 4, whose checkpoint is in {tmp_path}; go on with --resume"
        in caplog.text
    )
    monkeypatch.undo()
    again = build(bert, tmp_path, rows, **SETTINGS)
    again.fit(rows, rows, resume=True)
    found = weights(tmp_path)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.progress.history == history


def test_a_signal_while_the_adapter_is_saved_lets_it_be_saved(whole, bert, tmp_path, monkeypatch):
    rows, expected, _ = whole
    trainer = build(bert, tmp_path, rows, **SETTINGS)
    save = trainer.save

    def with_signal(directory):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(directory)

    monkeypatch.setattr(trainer, "save", with_signal)
    with pytest.raises(SystemExit):
        trainer.fit(rows, rows)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(tmp_path).items())
    assert not find_checkpoints(tmp_path)


def test_a_second_signal_ends_the_program_at_once_and_a_repeated_one_does_not():
    program = """
import signal, time
from peftcls.data.reading import as_dataset
from peftcls.training.signals import Signals
signals = Signals()
with signals.captured():
    signals.is_deferred = True
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # as a launcher hands it on
    print("still here", flush=True)
    time.sleep(1.1)
    signal.raise_signal(signal.SIGTERM)
    print("too late", flush=True)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (143, "still here\n")
    assert (
        "SIGTERM: this step is finished and a checkpoint written; "
        "once more ends the program at once."
    ) in ended.stderr


def test_a_signal_that_is_ignored_stays_ignored_and_threads_are_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals().captured():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def elsewhere():
        with Signals().captured():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_signal_before_the_first_step_ends_the_program_where_it_stands():
    with Signals().captured(), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def bounded(trainer, tokens, kind=torch.OutOfMemoryError):
    """Let the task run out of memory above a number of real tokens. Returns the sizes tried."""
    sizes, task = [], trainer.gradients.task
    plain = task.loss_sum

    def loss_sum(model, batch):
        loss = plain(model, batch)
        if torch.is_grad_enabled():
            sizes.append(int(batch["attention_mask"].sum()))
            if sizes[-1] > tokens:
                raise kind(
                    "CUDA out of memory. Tried to allocate 2 GiB."
                    if kind is torch.OutOfMemoryError
                    else "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: "
                    "can't allocate memory: you tried to allocate 9"
                )
        return loss

    object.__setattr__(task, "loss_sum", loss_sum)
    return sizes


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_a_step_that_memory_is_short_for_is_done_again_in_smaller_parts(
    kind, bert, tmp_path, text_rows, caplog
):
    plain = build(bert, tmp_path / "plain", text_rows, double=True)
    plain.fit(text_rows)
    short = build(bert, tmp_path / "short", text_rows, double=True)
    sizes = bounded(short, 40, kind)
    short.fit(text_rows)
    assert (
        max(
            float((p - plain.parameters[name]).detach().abs().max())
            for name, p in short.parameters.items()
        )
        < 1e-7
    )
    assert 0 < sum(size > 40 for size in sizes) < 6, (
        "what was learnt of the memory in one step holds for the next"
    )
    assert "step 1: out of memory; repeating it with the same rows, at most" in caplog.text
    assert short.progress.tokens == short.gradients.tokens < 60


def test_what_was_learnt_of_the_memory_is_kept_for_a_resumed_run(
    bert, tmp_path, text_rows, monkeypatch
):
    trainer = build(bert, tmp_path, text_rows, eval_every=1)
    bounded(trainer, 40)
    signalled(trainer, text_rows, signal.SIGTERM, "a step", 2, monkeypatch)
    again = build(bert, tmp_path, text_rows, eval_every=1)
    sizes = bounded(again, 40)
    again.fit(text_rows, text_rows, resume=True)
    assert max(sizes) <= 40


@pytest.mark.parametrize("tokens", [1000, 20])
def test_a_row_that_was_drawn_twice_counts_twice_also_when_it_is_done_again(
    tokens, bert, tmp_path, text_rows
):
    trainer = build(bert, tmp_path, text_rows, double=True)
    table = encode_table(trainer.task, as_dataset(text_rows), trainer.tokenizer, "base")
    one, other = (trainer.gradients.accumulate(table, [row], 0, Signals()).loss for row in (0, 4))
    trainer.optimizer.zero_grad()
    sizes = bounded(trainer, tokens)
    status = trainer.gradients.accumulate(table, [0, 0, 0, 0, 4, 4], 0, Signals())
    assert status.loss == pytest.approx((4 * one + 2 * other) / 6)
    assert not status.signal_number
    assert (max(sizes) > tokens) == (tokens == 20)


def test_too_little_memory_for_one_row_says_what_to_do(bert, tmp_path, text_rows):
    trainer = build(bert, tmp_path, text_rows)
    bounded(trainer, 3)
    with pytest.raises(
        RunStoppedError,
        match=r"^step 1: out of memory with one row at a time, of up to \d+ tokens\. Set "
        r"gradient_checkpointing=True or a smaller max_length, or load .* '4bit'\.$",
    ):
        trainer.fit(text_rows)


def test_another_error_is_not_taken_for_want_of_memory(bert, tmp_path, text_rows):
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_lost_process(
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:534] "
            "Connection closed by peer [127.0.0.1]:1"
        )
    )
    assert not is_lost_process(RunStoppedError("/data/gloo/checkpoint-1 cannot be written"))


def test_rows_that_are_not_finite_are_named_one_by_one_and_the_checkpoint_before_stays(
    bert, tmp_path, text_rows
):
    trainer = build(bert, tmp_path, text_rows, eval_every=1, micro_batch_size=3)
    task, ids = (
        trainer.gradients.task,
        trainer.tokenizer("galaxy", add_special_tokens=False)["input_ids"][0],
    )
    plain, far = task.loss_sum, {6, 14}  # the rows with a galaxy in them
    at = next(step for step in range(1, 6) if far & set(data_order.step_rows(16, 6, 0, step)))
    expected = sorted(row + 1 for row in far & set(data_order.step_rows(16, 6, 0, at)))

    def loss_sum(model, batch):
        spoilt = (batch["input_ids"] == ids).any() and trainer.progress.step == at
        return plain(model, batch) * (float("nan") if spoilt and torch.is_grad_enabled() else 1.0)

    object.__setattr__(task, "loss_sum", loss_sum)
    with pytest.raises(
        FloatingPointError,
        match=rf"step {at + 1}: the loss is nan .*The step was not taken\. Its rows: \[.*\]; "
        rf"not finite when alone: {re.escape(str(expected))}\. "
        r"Lower the learning rate \(now 0\.01\)",
    ):
        trainer.fit(text_rows, text_rows)
    newest = find_checkpoints(tmp_path)[0]
    assert (newest.name, find_damage(newest)) == (f"checkpoint-{at:08d}", None)


def spoil(trainer, steps):
    """Let the loss of these steps, from 0, be nan."""
    task, plain = trainer.gradients.task, trainer.gradients.task.loss_sum
    object.__setattr__(
        task,
        "loss_sum",
        lambda model, batch: (
            plain(model, batch)
            * (float("nan") if trainer.progress.step in steps and torch.is_grad_enabled() else 1.0)
        ),
    )
    return trainer


def test_a_step_that_is_not_finite_is_skipped_if_that_is_allowed(whole, bert, tmp_path, caplog):
    rows, expected, _ = whole
    trainer = spoil(build(bert, tmp_path, rows, **SETTINGS, max_skipped_steps=2), {2, 4})
    trainer.fit(rows, rows)
    assert trainer.progress.skipped_steps == [3, 5]
    assert not all(
        torch.equal(expected[name], tensor) for name, tensor in weights(tmp_path).items()
    )
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(tmp_path).values())
    assert all(
        entry["loss"] == entry["loss"] for entry in trainer.progress.history if "loss" in entry
    )
    assert re.search(
        r"step 3: the loss is nan .* The step was not taken\. Its rows: \[.*\]; "
        r"not finite when alone: \[.*\]\. It is skipped, as 1 of at most 2\.",
        caplog.text,
    )


def test_one_step_too_many_ends_the_run_and_leaves_a_finite_checkpoint_to_go_on_from(
    whole, bert, tmp_path
):
    rows, _, _ = whole
    spoil(build(bert, tmp_path / "whole", rows, **SETTINGS, max_skipped_steps=2), {2, 4}).fit(
        rows, rows
    )
    trainer = spoil(build(bert, tmp_path / "cut", rows, **SETTINGS, max_skipped_steps=1), {2, 4})
    with pytest.raises(
        FloatingPointError,
        match=r"^step 5: .*, look at these rows, or go on without such steps: "
        r"max_skipped_steps=2 and resume=True\.$",
    ):
        trainer.fit(rows, rows)
    newest = find_checkpoints(tmp_path / "cut")[0]
    assert (newest.name, find_damage(newest)) == ("checkpoint-00000004", None)
    again = spoil(build(bert, tmp_path / "cut", rows, **SETTINGS, max_skipped_steps=2), {2, 4})
    again.fit(rows, rows, resume=True)
    assert again.progress.skipped_steps == [3, 5]
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("during", ["a step", "an evaluation"])
def test_whatever_goes_wrong_the_steps_before_it_are_kept(
    during, whole, bert, tmp_path, monkeypatch
):
    rows, expected, history = whole
    trainer = build(bert, tmp_path, rows, **SETTINGS)
    owner, name = (
        (trainer.gradients, "accumulate") if during == "a step" else (trainer, "_evaluate")
    )
    plain, step = getattr(owner, name), 3 if during == "a step" else 4

    def fail(*given):
        if trainer.progress.step == step:
            raise OSError("the fan is broken")
        return plain(*given)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="the fan is broken"):
        trainer.fit(rows, rows)
    newest = find_checkpoints(tmp_path)[0]
    assert (newest.name, find_damage(newest)) == (f"checkpoint-{step:08d}", None)
    again = build(bert, tmp_path, rows, **SETTINGS)
    again.fit(rows, rows, resume=True)
    found = weights(tmp_path)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.progress.history == history


def test_a_rehearsal_leaves_no_step_out(bert, tmp_path, text_rows):
    trainer = spoil(build(bert, tmp_path / "out", text_rows, max_skipped_steps=9), {0})
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan"):
        trainer.dry_run(text_rows)
    assert not (tmp_path / "out").exists()


def test_a_wait_that_is_over_in_time_ends_nothing():
    with watchdog(60, 0, "a test"):
        pass
    assert not [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and not thread.finished.is_set()
    ]

"""One thread computes for all others; the main thread computes by itself."""

import contextlib
import contextvars
import functools
import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from peftcls.engine import turns as turns_module
from peftcls.engine.turns import Turns, end_team

CPU = torch.device("cpu")
HERE = contextvars.ContextVar("HERE", default="nowhere")


@pytest.fixture
def ended(monkeypatch):
    """The names of the threads whose teams were ended, in order."""
    names = []
    monkeypatch.setattr(
        turns_module, "end_team", lambda: names.append(threading.current_thread().name)
    )
    return names


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def thread_name():
    return threading.current_thread().name


def test_the_main_thread_and_work_for_a_gpu_stay_where_they_are(ended):
    turns = Turns()
    assert turns.compute(thread_name, CPU) == "MainThread"
    assert ended == ["MainThread"]
    here = in_thread(lambda: (thread_name(), turns.compute(thread_name, torch.device("cuda"))))
    assert here[0] == here[1]
    assert ended == ["MainThread"]


def test_one_thread_computes_for_all_others(ended):
    turns = Turns()
    with ThreadPoolExecutor(4) as pool:
        names = set(pool.map(lambda _: turns.compute(thread_name, CPU), range(40)))
    assert len(names) == 1
    assert names == {"peftcls"}
    assert set(ended) == {"peftcls"}


def test_a_team_stays_while_others_wait(ended):
    turns, begun = Turns(), threading.Event()

    def first():
        begun.set()
        while turns._jobs.empty():
            time.sleep(0.001)
        return list(ended)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(turns.compute, first, CPU)
        begun.wait(30)
        other = pool.submit(turns.compute, lambda: list(ended), CPU)
        assert (one.result(30), other.result(30)) == ([], [])
    deadline = time.monotonic() + 30
    while not ended and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ended == ["peftcls"]


def test_what_is_computed_may_ask_for_more(ended):
    turns = Turns()
    assert in_thread(lambda: turns.compute(lambda: turns.compute(thread_name, CPU), CPU)) == (
        "peftcls"
    )


def test_a_computation_does_not_keep_a_program_from_its_end():
    program = (
        "import threading, time, torch\n"
        "from peftcls.engine.turns import Turns\n"
        "turns, cpu = Turns(), torch.device('cpu')\n"
        "def ask():\n"
        "    time.sleep(0.5)\n"
        "    print(turns.compute(lambda: 'answered', cpu), flush=True)\n"
        "threading.Thread(target=ask).start()\n"
        "stuck = lambda: turns2.compute(lambda: time.sleep(600), cpu)\n"
        "turns2 = Turns()\n"
        "threading.Thread(target=stuck, daemon=True).start()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100
    )
    assert (ended.returncode, ended.stdout) == (0, "answered\n"), ended.stderr


def test_settings_of_the_thread_that_asks_hold():
    turns, threads = Turns(), torch.get_num_threads()

    def settings():
        is_inference, count = torch.is_inference_mode_enabled(), torch.get_num_threads()
        return is_inference, count, torch.is_autocast_enabled("cpu"), HERE.get()

    def ask(inference_mode, count, autocast):
        HERE.set(count)
        torch.set_num_threads(count)
        with torch.inference_mode(inference_mode), torch.autocast("cpu", enabled=autocast):
            return turns.compute(settings, CPU)

    try:
        for asked in [(True, 1, False), (False, 2, True), (True, 3, False)]:
            assert in_thread(lambda asked=asked: ask(*asked)) == (*asked, asked[1])
    finally:
        torch.set_num_threads(threads)


def test_an_error_is_raised_where_it_was_asked_and_the_next_call_is_answered(ended):
    turns = Turns()

    def fail():
        raise KeyError("row 7")

    for ask in (in_thread, lambda function: function()):
        with pytest.raises(KeyError, match="row 7"):
            ask(lambda: turns.compute(fail, CPU))
        assert ask(lambda: turns.compute(lambda: 7, CPU)) == 7


def test_the_lock_may_be_taken_again_and_is_held_meanwhile():
    turns, order = Turns(), []

    def slow():
        with turns.lock:
            order.append("begins")
            time.sleep(0.05)
            order.append("ends")

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(turns.compute, slow, CPU) for _ in range(2)]
        turns.compute(slow, CPU)
        for each in asked:
            each.result(30)
    assert order == ["begins", "ends"] * 3


def test_the_thread_ends_with_the_model():
    thread = in_thread(functools.partial(Turns().compute, threading.current_thread, CPU))
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_begins_anew():
    turns = Turns()
    in_thread(lambda: turns.compute(thread_name, CPU))
    with turns.lock:
        process = os.fork()
        if process == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if in_thread(lambda: turns.compute(lambda: 7, CPU)) == 7 else 2
            os._exit(code)
    deadline = time.monotonic() + 60
    while (found := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            pytest.fail("the forked process waits for a thread that it does not have")
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(found[1]) == 0


def test_a_team_can_be_ended_and_begun_again():
    numbers = torch.arange(100_000, dtype=torch.float64)
    for _ in range(3):
        assert float(numbers.exp().log().sum()) != 0
        end_team()
    if turns_module._pause() is not None:
        assert turns_module._pause()(turns_module.SOFT) == 0

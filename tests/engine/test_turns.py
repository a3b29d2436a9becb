"""One thread computes for all others; the main thread computes by itself."""

import contextlib
import contextvars
import functools
import gc
import os
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
    assert names.pop().startswith("peftcls")
    assert ended
    assert set(ended) == {"peftcls_0"}


def test_a_team_stays_while_others_wait(ended):
    turns, waiting = Turns(), threading.Event()

    def first():
        waiting.set()
        while turns._asked < 2:
            time.sleep(0.001)
        return list(ended)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(turns.compute, first, CPU)
        waiting.wait(30)
        other = pool.submit(turns.compute, lambda: list(ended), CPU)
        assert (one.result(30), other.result(30)) == ([], [])
    assert ended == ["peftcls_0"]


def test_settings_of_the_thread_that_asks_hold():
    turns, threads = Turns(), torch.get_num_threads()

    def settings():
        return torch.is_inference_mode_enabled(), torch.get_num_threads(), HERE.get()

    def ask(inference_mode, count):
        HERE.set(count)
        torch.set_num_threads(count)
        with torch.inference_mode(inference_mode):
            return turns.compute(settings, CPU)

    try:
        for asked in [(True, 1), (False, 2), (True, 3)]:
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
        with turns:
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
    with turns:
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

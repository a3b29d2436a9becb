"""Threads take turns at a model, and one thread computes for all of them."""

import contextlib
import contextvars
import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Jobs = SimpleQueue[Callable[[], object] | None]
"""What a thread is to compute, one after another; None ends it."""
SOFT = 1
"""OpenMP 5.0, section 3.2.44: what is freed is made anew when it is needed."""


class Turns:
    """The lock that is held while a model computes, and the thread that computes under it.

    Each thread that computes has a team of OpenMP threads of its own, which waits for it between
    two operations. Where all teams together are more threads than there are processors, GNU OpenMP
    sends them to sleep, and a small operation is over before they wake up: with one text a call, a
    second thread halved the rate. So one thread computes for all but the main thread of the
    program, which computes by itself, so that Ctrl-C ends it. A team ends when nobody waits for it.

    Attributes:
        lock: the thread that holds it may take it again.
    """

    def __init__(self) -> None:
        self.begin()
        _every.add(self)

    def begin(self) -> None:
        """Begin with no thread, as a process does that was forked from another."""
        self.lock = threading.RLock()
        self._starting = threading.Lock()
        self._worker: threading.Thread | None = None
        self._jobs: Jobs = SimpleQueue()

    def compute(self, function: Callable[[], Result], device: torch.device) -> Result:
        """What a function gives that computes on a device, while no other thread computes.

        Args:
            function: without arguments; it may call this method.
            device: that it computes on. Work for a GPU stays in the thread that asks.
        """
        thread = threading.current_thread()
        if device.type != "cpu" or thread in (threading.main_thread(), self._worker):
            with self.lock:
                result = function()
                if device.type == "cpu" and thread is not self._worker:
                    end_team()
                return result
        self._start()
        future: Future[Result] = Future()
        context = contextvars.copy_context()
        self._jobs.put(functools.partial(context.run, self._answer, future, function, _settings()))
        return future.result()

    def _start(self) -> None:
        """Start the thread that computes, where it does not run yet."""
        with self._starting:
            if self._worker is None:
                # A daemon: a long computation does not keep a program from its end.
                self._worker = threading.Thread(
                    target=_work, args=(self._jobs,), name="peftcls", daemon=True
                )
                weakref.finalize(self, self._jobs.put, None).atexit = False
                self._worker.start()

    def _answer(
        self,
        future: "Future[Result]",
        function: Callable[[], Result],
        settings: tuple[bool, int, bool, torch.dtype],
    ) -> None:
        """Compute in this object's thread, with the settings of the thread that asks."""
        try:
            with self.lock, _having(*settings):
                result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _settings() -> tuple[bool, int, bool, torch.dtype]:
    """What PyTorch keeps for each thread and its results depend on."""
    return (
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )


@contextlib.contextmanager
def _having(
    inference_mode: bool, threads: int, autocast: bool, dtype: torch.dtype
) -> Iterator[None]:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.inference_mode(inference_mode), torch.autocast("cpu", dtype, enabled=autocast):
        yield


def _work(jobs: Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        # A job knows the object that this thread belongs to, and would keep it.
        del job
        if jobs.empty():
            end_team()


_every: "weakref.WeakSet[Turns]" = weakref.WeakSet()


def _begin_all() -> None:
    for turns in list(_every):
        turns.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all)


def end_team() -> None:
    """End the OpenMP threads that wait for this thread; its next operation starts new ones."""
    pause = _pause()
    if pause is not None:
        pause(SOFT)


@functools.cache
def _pause() -> Callable[[int], Any] | None:
    """OpenMP's `omp_pause_resource_all`; None where PyTorch brings no GNU OpenMP."""
    if sys.platform != "linux":
        return None
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.with_name("torch.libs")):
        for library in sorted(folder.glob("libgomp*.so*")):
            with contextlib.suppress(OSError, AttributeError):
                return ctypes.CDLL(str(library)).omp_pause_resource_all
    return None

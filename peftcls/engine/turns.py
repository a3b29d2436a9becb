"""Threads take turns at a model, and one thread computes for all of them."""

import contextlib
import contextvars
import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
SOFT = 1
"""OpenMP 5.0, section 3.2.44: what is freed is made anew when it is needed."""


class Turns:
    """A lock that the thread which holds it may take again, and the thread that computes under it.

    Each thread that computes has a team of OpenMP threads of its own, which waits for it between
    two operations. Where all teams together are more threads than there are processors, GNU OpenMP
    sends them to sleep, and a small operation is over before they wake up: with one text a call, a
    second thread halved the rate. So one thread computes for all but the main thread of the
    program, which computes by itself, so that Ctrl-C ends it. A team ends when nobody waits for it.
    """

    def __init__(self) -> None:
        self.begin()
        _every.add(self)

    def begin(self) -> None:
        """Begin with no thread, as a process does that was forked from another."""
        self._lock = threading.RLock()
        self._counting = threading.Lock()
        self._asked = 0
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def compute(self, function: Callable[[], Result], device: torch.device) -> Result:
        """What a function gives that computes on a device, while no other thread computes.

        Args:
            function: without arguments; it may take this lock.
            device: that it computes on. Work for a GPU stays in the thread that asks.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if device.type != "cpu" or is_main:
            with self:
                result = function()
                if device.type == "cpu":
                    end_team()
                return result
        settings = (torch.is_inference_mode_enabled(), torch.get_num_threads())
        with self._counting:
            self._asked += 1
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="peftcls")
        context = contextvars.copy_context()
        return self._thread.submit(context.run, self._answer, function, settings).result()

    def _answer(self, function: Callable[[], Result], settings: tuple[bool, int]) -> Result:
        """Compute in this object's thread, with settings that PyTorch keeps for each thread."""
        inference_mode, threads = settings
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        try:
            with self, torch.inference_mode(inference_mode):
                return function()
        finally:
            with self._counting:
                self._asked -= 1
                nobody_waits = self._asked == 0
            if nobody_waits:
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

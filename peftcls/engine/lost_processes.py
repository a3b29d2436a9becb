"""Notice when another process of a distributed run has ended or stalled."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from peftcls.errors import RunStoppedError

# The wait for other processes before it is known how long they take, and where a process loads,
# encodes, predicts or saves.
PATIENT_SECONDS = 1800.0
STALL_SECONDS = 60.0
# A process may take this many times as long as another one for its share of a step.
STALL_FACTOR = 10.0
SECONDS_BETWEEN_LOOKS = 0.2
LOST_PROCESS_MARKS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error means that another process does not answer.

    gloo has no exception class of its own for this, so the message is read.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, RunStoppedError):
        return False
    if type(error).__name__.startswith("Dist"):
        return True
    message = str(error)
    return any(mark in message for mark in LOST_PROCESS_MARKS)


def stall_limit_seconds(longest_seconds: float) -> float:
    """How long to wait for other processes before they count as stalled.

    Args:
        longest_seconds: the most that this process has taken for the same share of work.
    """
    return max(STALL_SECONDS, STALL_FACTOR * longest_seconds)


@contextlib.contextmanager
def watchdog(seconds: float, process: int, where: str) -> Iterator[None]:
    """End this process with exit code 1 if the body waits longer than `seconds` for the others.

    A thread keeps the time: a call that waits for other processes reacts neither to exceptions nor
    to signals.

    Args:
        seconds: the longest wait.
        process: the rank of this process, for the message.
        where: what it waits in, for the message ("step 4").
    """
    timer = threading.Timer(seconds, _end_at_once, (seconds, process, where))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class CallWatch:
    """Ends this process where its calls of a base in shares stand still for too long.

    Each call waits for the others. How long one may take is known from those before it.

    Args:
        count: gives how many calls were begun so far.
        process: the rank of this process, for the message.
    """

    def __init__(self, count: Callable[[], int], process: int) -> None:
        self._count = count
        self._process = process
        self._longest_seconds: float | None = None

    @contextlib.contextmanager
    def watching(self, where: str) -> Iterator[None]:
        """End this process with exit code 1 where the body calls nothing for too long.

        Args:
            where: what it computes, for the message ("an evaluation").
        """
        is_over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(is_over, where), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _watch(self, is_over: threading.Event, where: str) -> None:
        seen, since = self._count(), time.monotonic()
        while not is_over.wait(SECONDS_BETWEEN_LOOKS):
            waited = time.monotonic() - since
            if self._count() != seen:
                self._longest_seconds = max(self._longest_seconds or 0.0, waited)
                seen, since = self._count(), time.monotonic()
                continue
            limit = PATIENT_SECONDS
            if self._longest_seconds is not None:
                limit = stall_limit_seconds(self._longest_seconds)
            if waited > limit:
                _end_at_once(waited, self._process, where)


def _end_at_once(seconds: float, process: int, where: str) -> None:
    """End this process; all speak here, not only the main one: which of them waits is the news."""
    sys.stderr.write(
        f"\nprocess {process} has waited {seconds:.0f} s for the others in {where}: at least one "
        "of them has stalled. Start again with resume=True, on any number of processes.\n"
    )
    sys.stderr.flush()
    os._exit(1)

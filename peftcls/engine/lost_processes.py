"""Notice when another process of a distributed run has ended or stalled."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from peftcls.errors import RunStoppedError

# The wait for other processes before it is known how long they take, and where a process loads,
# encodes, predicts or saves.
PATIENT_SECONDS = 1800.0
STALL_SECONDS = 60.0
# A process may take this many times as long as another one for its share of a step.
STALL_FACTOR = 10.0
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
    message = (
        f"process {process} has waited {seconds:.0f} s for the others in {where}: at least one of "
        "them has stalled. Start again with resume=True, on any number of processes."
    )

    def exit_at_once() -> None:
        # Every process speaks here, not only the main one: which of them waits is the news.
        sys.stderr.write(f"\n{message}\n")
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, exit_at_once)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

"""What can befall a run from outside: memory or disk that is used up, and processes that end or stall."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from peftcls.errors import RunStoppedError

STALL_SECONDS = 60.0
STALL_FACTOR = 10.0  # a process may take so many times as long as another for its share of a step
LOST_MARKS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process does not answer; gloo has no type of its own for it."""
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, RunStoppedError)
        and (
            type(error).__name__.startswith("Dist")
            or any(mark in str(error) for mark in LOST_MARKS)
        )
    )


def patient_seconds(longest_seconds: float) -> float:
    """How long to wait for the others, where the most that this process took for such a share of work is known."""
    return max(STALL_SECONDS, STALL_FACTOR * longest_seconds)


@contextlib.contextmanager
def watched(seconds: float, process: int, where: str) -> Iterator[None]:
    """Within it a process waits for others; after so many seconds it says so in a sentence and ends with exit code 1.

    A thread does it, since a call that waits for other processes hears neither exceptions nor signals.
    """
    sentence = (
        f"process {process} has waited {seconds:.0f} s for the others in {where}: one of them does not go on. Start again with "
        "resume=True, on any number of processes."
    )

    def leave() -> None:
        print(f"\n{sentence}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

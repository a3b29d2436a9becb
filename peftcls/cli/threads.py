"""How many threads a command has, and how they wait for work."""

import os
import sys

from peftcls.processors import thread_limit

# What a user sets to decide how threads wait.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def set_up_threads() -> None:
    """Settle the threads of PyTorch before it is imported; settings of the user stay.

    Threads without work sleep. By default they spin for a while, and where other programs are busy
    that takes the time of threads that have work. There are not more than the quota of a container
    lets compute at once.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    limit = thread_limit()
    if limit is not None:
        os.environ["OMP_NUM_THREADS"] = str(limit)

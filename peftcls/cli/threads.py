"""How the threads of a command wait for work."""

import os
import sys

# What a user, or a launcher, sets to decide it.
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively() -> None:
    """Let threads without work sleep, before PyTorch starts them; settings of the user stay.

    By default they spin for a while. Where other programs are busy, that takes the time of threads
    that have work.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in NAMES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

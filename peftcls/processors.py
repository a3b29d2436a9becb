"""How many threads compute, and how they wait for work.

A container often has a quota of processors that threads ignore.
"""

import math
import os
import sys
from pathlib import Path

# Microseconds of processor time in a period, for control groups of version 2 and of version 1.
QUOTA = "sys/fs/cgroup/cpu.max"
OLD_QUOTA = "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
OLD_PERIOD = "sys/fs/cgroup/cpu/cpu.cfs_period_us"
# What a user, or a launcher, sets to decide the number of threads.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
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


def thread_limit() -> int | None:
    """The threads that a program should have at most, where nobody has decided it.

    Returns:
        The quota of a container; None without one, or where a variable of the environment decides.
    """
    if any(name in os.environ for name in VARIABLES):
        return None
    return processor_quota()


def processor_quota(root: Path = Path("/")) -> int | None:
    """The number of processors that the quota of a container lets work at once.

    Threads beyond it do not compute: when the quota of a period is used up, all of them are stopped
    until the next one, and those that have finished wait for the others.

    Returns:
        The number, rounded up and at least 1; None without a quota, or where it is no limit.
    """
    quota = _quota(root)
    if quota is None or quota >= usable_processors():
        return None
    return max(1, math.ceil(quota))


def usable_processors() -> int:
    """The processors that this process may run on, by its affinity."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    try:
        used, period = (root / QUOTA).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            used = (root / OLD_QUOTA).read_text(encoding="ascii").strip()
            period = (root / OLD_PERIOD).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    if not used.isdigit() or not period.isdigit() or not int(period):
        # "max", or -1: no quota.
        return None
    return int(used) / int(period)

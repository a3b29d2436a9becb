"""How many processors this program may use: a container often has a quota that threads ignore."""

import math
import os
from pathlib import Path

# Microseconds of processor time in a period, for control groups of version 2 and of version 1.
QUOTA = "sys/fs/cgroup/cpu.max"
OLD_QUOTA = "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
OLD_PERIOD = "sys/fs/cgroup/cpu/cpu.cfs_period_us"
# What a user, or a launcher, sets to decide the number of threads.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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

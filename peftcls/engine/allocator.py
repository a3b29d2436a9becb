"""Memory that is no longer used goes back to the system."""

import ctypes
import functools
from collections.abc import Callable


def trim_heap() -> None:
    """Return what was freed: the allocator keeps it, and lays what other threads read, or batches of another size need, beside it."""
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The C library's function that gives freed memory back; None where it has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None

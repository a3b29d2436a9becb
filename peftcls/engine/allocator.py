"""Freed heap memory returned to the operating system."""

import ctypes
import functools
from collections.abc import Callable


def trim_heap() -> None:
    """Return freed heap memory to the OS (malloc_trim); otherwise the heap fragments."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`; None where it has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None

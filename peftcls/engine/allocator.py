"""Memory that is given back to the operating system when it is freed."""

import ctypes
import functools
from collections.abc import Callable

MMAP_THRESHOLD = -3
"""The parameter M_MMAP_THRESHOLD of `mallopt`."""
LARGE_BLOCK = 4 * 1024 * 1024
"""In bytes: layers of a large base are larger, most of what a batch needs is not."""


def map_large_blocks() -> None:
    """Give large blocks back as soon as they are freed, which takes a little time for each.

    By default the C library keeps more and more of them for later: a process with half of a base
    then had more memory than one with the whole base.
    """
    set_option = _function("mallopt")
    if set_option is not None:
        set_option(MMAP_THRESHOLD, LARGE_BLOCK)


def trim_heap() -> None:
    """Return freed heap memory to the OS (malloc_trim); otherwise the heap fragments."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of this name."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
        return found
    except (AttributeError, OSError, TypeError):
        return None

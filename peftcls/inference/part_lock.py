"""A lock on a file that is being written, so that two processes never write into it together."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCKS = Path("/proc/locks")


@contextlib.contextmanager
def locked_for_appending(path: Path) -> Iterator[TextIO]:
    """Open a file to append to it, while no other process does.

    The operating system releases the lock when this process ends, however it ends.

    Raises:
        ValueError: another process is writing into the file.
    """
    with path.open("a", encoding="utf-8") as lines:
        if fcntl is not None:
            _lock(lines, path)
        yield lines


def _lock(lines: TextIO, path: Path) -> None:
    try:
        fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{path} is being written by {_holder(lines)}; wait until it has ended, or choose "
            "another output."
        ) from None
    except OSError:
        # This file system has no locks.
        return
    # The process that had the lock before may have finished, and removed the file.
    if not path.exists() or not os.path.samestat(os.fstat(lines.fileno()), path.stat()):
        raise ValueError(f"{path} was finished by another process just now.")


def _holder(lines: TextIO) -> str:
    """The process that holds the lock, as far as the system tells."""
    inode = os.fstat(lines.fileno()).st_ino
    with contextlib.suppress(OSError):
        for line in LOCKS.read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return f"process {fields[4]}"
    return "another process"

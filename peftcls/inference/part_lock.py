"""A lock on a folder that is being filled, so that two runs never write into it together."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
HOLDERS = Path("/proc/locks")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, while no other process does.

    The operating system releases the lock when this process ends, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    with (folder / LOCK).open("a", encoding="utf-8") as file:
        if fcntl is not None:
            _lock(file, folder)
        yield


def _lock(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{folder} is being written by {_holder(file)}; wait until it has ended, or choose "
            "another output."
        ) from None
    except OSError:
        # This file system has no locks.
        return
    # The process that had the lock before may have finished, and removed the folder.
    path = folder / LOCK
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise ValueError(f"{folder} was finished by another process just now.")


def _holder(file: TextIO) -> str:
    """The process that holds the lock, as far as the system tells."""
    inode = os.fstat(file.fileno()).st_ino
    with contextlib.suppress(OSError):
        for line in HOLDERS.read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return f"process {fields[4]}"
    return "another process"

"""A folder for copies of tables that is removed when the program ends."""

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import datasets

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "peftcls-"
IN_USE = "in_use"
"""A file in a scratch folder that the processes that use it hold a lock on."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells all of its processes, and no other launcher does."""


def scratch_folder() -> Path:
    """The folder for the copies of this program; it is removed when the program ends.

    It is on the disk of the cache of `datasets`, or with other temporary files where that cannot be
    written. The processes that a launcher has started on this machine share one, so that each table
    is copied and tokenized once; the last of them removes it. What programs have left that were
    killed is removed by the next.
    """
    folder = _made_once()
    # Somebody may have cleared the cache meanwhile.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@functools.cache
def _made_once() -> Path:
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        check_cache(cache)
    except ValueError:
        cache = Path(tempfile.gettempdir())
    remove_abandoned(cache)
    folder = _shared_folder(cache) if is_launched() else None
    is_first = folder is None or int(os.environ.get("LOCAL_RANK", "0")) == 0
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=cache))
    lock = _lock(folder)
    if lock is not None or is_first:
        atexit.register(_remove, folder, lock, os.getpid())
    return folder


def forget_scratch_folder() -> None:
    """Remove the folder for copies before the program ends; the next copy makes another."""
    if _made_once.cache_info().currsize and not is_launched():
        shutil.rmtree(_made_once(), ignore_errors=True)


def remove_abandoned(cache: Path) -> None:
    """Remove the scratch folders that no living process uses.

    Of a process that was killed the operating system releases the lock.
    """
    if fcntl is None:
        return
    for lock in cache.glob(f"{PREFIX}*/{IN_USE}"):
        try:
            with lock.open("r+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            # It is in use, somebody else's, or on a file system without locks.
            continue


def _lock(folder: Path) -> TextIO | None:
    """The file of a folder in use, locked together with other processes that use it."""
    if fcntl is None:
        return None
    try:
        while True:
            folder.mkdir(mode=0o700, exist_ok=True)
            file = (folder / IN_USE).open("a", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_SH)
            # Another process may have removed the folder just before it was locked.
            if (folder / IN_USE).exists():
                return file
            file.close()
    except OSError:
        return None


def is_launched() -> bool:
    """Whether a launcher has started several processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1


def check_cache(folder: Path) -> None:
    """Raise ValueError where copies of tables cannot be written into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ValueError(
            f"copies of files cannot be written to {folder} ({error.strerror}); set HF_HOME to a "
            "folder that can be written, or give another folder: cache_dir=... (--cache DIR)."
        ) from None


@contextlib.contextmanager
def writing_copies(folder: Path) -> Iterator[None]:
    """Say in one sentence where the disk of a folder has no room for a copy of a table.

    Raises:
        ValueError: it has none, or no more is allowed there.
    """
    try:
        yield
    except Exception as error:
        reason = _why_no_room(error)
        if reason is None:
            raise
        raise ValueError(
            f"a copy of the rows cannot be written to {folder} ({reason}); free some room there, "
            "or give another folder: cache_dir=... (--cache DIR)."
        ) from None


def _why_no_room(error: BaseException | None) -> str | None:
    """What the system says of a full disk, also where a library has wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return os.strerror(error.errno)
        error = error.__cause__ or error.__context__
    return None


def _shared_folder(cache: Path) -> Path | None:
    """The folder of all processes with the same launcher; None where somebody else owns it."""
    launcher = [str(os.getppid()), *(os.environ.get(name, "") for name in LAUNCHER_VARIABLES)]
    name = hashlib.sha256("\n".join(launcher).encode()).hexdigest()[:16]
    folder = cache / f"{PREFIX}{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Names of temporary files can be guessed, and a link could lead anywhere.
    if folder.is_symlink() or (os.name != "nt" and folder.stat().st_uid != os.getuid()):
        return None
    return folder


def _remove(folder: Path, lock: TextIO | None, process: int) -> None:
    """Remove a folder at the end of a program, unless another process uses it still."""
    # A forked child inherits what is to be done at the end.
    if os.getpid() != process:
        return
    if lock is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with lock, contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)

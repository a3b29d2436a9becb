"""Tables in files that are written once, as a whole or not at all, and then memory-mapped."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from peftcls.data.scratch import check_cache, writing_copies

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

TABLE = "rows.arrow"
LOCK = "lock"
UNFINISHED = "new-"


def cached_table(folder: Path, rows: int, write: Callable[[Path], object]) -> datasets.Dataset:
    """The table in a folder; it is written first where it is not there.

    Of several processes that ask for it, one writes it while the others wait. It is written beside
    its place, and renamed when it is whole, so that a process that dies leaves nothing to be read.

    Args:
        folder: of this table alone; its name says what the table is made of.
        rows: that the table has.
        write: writes the table to a file in the format of Arrow streams.

    Raises:
        ValueError: the folder cannot be written.
    """
    check_cache(folder)
    with _alone_in(folder) as is_alone:
        table = _whole_table(folder / TABLE, rows)
        if table is None:
            if is_alone:
                _remove_unfinished(folder)
            _write_and_rename(folder, write)
            table = datasets.Dataset.from_file(str(folder / TABLE))
    return table


def _whole_table(file: Path, rows: int) -> datasets.Dataset | None:
    """The table in a file; None where there is none, or where it is damaged."""
    try:
        table = datasets.Dataset.from_file(str(file))
    except (pa.ArrowException, OSError):
        return None
    return table if len(table) == rows else None


def _remove_unfinished(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _write_and_rename(folder: Path, write: Callable[[Path], object]) -> None:
    beside = folder / f"{UNFINISHED}{os.getpid()}"
    beside.mkdir()
    try:
        with writing_copies(folder):
            write(beside / TABLE)
            with (beside / TABLE).open("rb") as file:
                os.fsync(file.fileno())
        os.replace(beside / TABLE, folder / TABLE)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Wait until no other process writes into a folder, and let none until the body ends.

    Yields:
        Whether that is so. Without locks in its file system, several processes may write the same
        table, each beside the others'.
    """
    with (folder / LOCK).open("a", encoding="utf-8") as file:
        is_alone = fcntl is not None
        if is_alone:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                is_alone = False
        yield is_alone

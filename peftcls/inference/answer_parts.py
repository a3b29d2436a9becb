"""The answers to a long table while they are being made: a folder with a file for each chunk.

Several processes can fill one folder together. A chunk is written beside its place and then
renamed, so a process that dies leaves no half chunk, and any number of processes can go on.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcls.inference.part_lock import locked

HEADER = "header.json"
CHUNK_SUFFIX = ".jsonl"
# How many rows an interruption can cost; enough for rows of similar length to share a batch.
CHUNK_ROWS = 256
# A longer table has larger chunks, so that the folder does not hold too many files.
LONG_TABLE_ROWS = 2**20
LONG_TABLE_CHUNK_ROWS = 4096
Values = list[Any]


class AnswerParts:
    """The chunks of answers to one table.

    Args:
        folder: where they are kept until all are there.
        about: what they are answers to. A folder that says otherwise is not gone on with.
        rows: of the table.
    """

    def __init__(self, folder: Path, about: dict[str, Any], rows: int) -> None:
        self.folder = folder
        self.rows = rows
        self.chunk_rows = CHUNK_ROWS if rows <= LONG_TABLE_ROWS else LONG_TABLE_CHUNK_ROWS
        self.header = {**about, "count": rows, "chunk_rows": self.chunk_rows}

    @contextlib.contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """Hold the folder for this process, the first, and those that were started with it.

        A folder that is still without answers is removed where an error ends the body.

        Raises:
            ValueError: another run holds the folder, it has answers and `resume` is not set, or
                they belong to something else.
        """
        if self.folder.is_file():
            raise ValueError(
                f"{self.folder} holds answers of an earlier version of peftcls, or something "
                "else; remove it, or choose another output."
            )
        self.folder.mkdir(exist_ok=True)
        with locked(self.folder):
            self._begin(resume=resume)
            try:
                yield
            except BaseException:
                if not self._kept_starts():
                    self.remove()
                raise

    def _begin(self, *, resume: bool) -> None:
        """Check what an earlier run has left, and say what the answers belong to."""
        header = self.folder / HEADER
        if self._kept_starts():
            if not resume:
                raise ValueError(
                    f"{self.folder} holds answers of a run that was not finished; go on with "
                    "--resume, or remove it."
                )
            if self._read_header() != self.header:
                raise ValueError(
                    f"{self.folder} belongs to other rows, another adapter or other settings; "
                    "remove it, or choose another output."
                )
            for start in self._kept_starts():
                if self._read_chunk(start) is None:
                    self._file(start).unlink()
        _write_and_rename(header, json.dumps(self.header))

    def missing(self, process: int, processes: int) -> Iterator[int]:
        """The first rows of the chunks that nobody has answered, each found when it is asked for.

        A process begins with its own share. Then it takes what is left of the others', from the
        end: so they help a slow one, and stand in for one that has died.

        Args:
            process: its number, from 0.
            processes: how many there are.
        """
        starts = self.missing_starts()
        own = starts[process::processes]
        others = sorted(set(starts) - set(own), reverse=True)
        for start in (*own, *others):
            if self.folder.is_dir() and not self._file(start).is_file():
                yield start

    def missing_starts(self) -> list[int]:
        """The first rows of the chunks that are not answered."""
        return sorted(set(range(0, self.rows, self.chunk_rows)) - set(self._kept_starts()))

    def end_of(self, start: int) -> int:
        """The row behind the last one of a chunk."""
        return min(start + self.chunk_rows, self.rows)

    def write(self, start: int, answers: list[Values]) -> None:
        """Keep the answers to a chunk, unless another process has finished the whole already."""
        lines = "".join(json.dumps(values, ensure_ascii=False) + "\n" for values in answers)
        checked = {"sum": _sum(lines.encode())}
        with contextlib.suppress(FileNotFoundError):
            _write_and_rename(self._file(start), json.dumps(checked) + "\n" + lines)

    def answered(self) -> int:
        """The number of rows whose answers are kept."""
        return sum(min(self.chunk_rows, self.rows - start) for start in self._kept_starts())

    def read(self) -> Iterator[Values]:
        """All answers in the rows' order.

        Raises:
            ValueError: a chunk is damaged.
        """
        for start in range(0, self.rows, self.chunk_rows):
            chunk = self._read_chunk(start)
            if chunk is None:
                raise ValueError(
                    f"{self._file(start)} is damaged; go on with --resume, which answers its rows "
                    "again."
                )
            yield from chunk

    def remove(self) -> None:
        """Remove the folder; under another name first, so that no process writes into it still."""
        leaving = self.folder.with_name(f".{self.folder.name}-{os.getpid()}")
        self.folder.rename(leaving)
        shutil.rmtree(leaving)

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:012d}{CHUNK_SUFFIX}"

    def _kept_starts(self) -> list[int]:
        return [int(file.stem) for file in self.folder.glob(f"*{CHUNK_SUFFIX}")]

    def _read_header(self) -> Any:
        """What the folder says it belongs to; None where it says nothing."""
        try:
            return json.loads((self.folder / HEADER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _read_chunk(self, start: int) -> list[Values] | None:
        """The answers of a chunk; None where it is not as it was written."""
        first, _, lines = self._file(start).read_bytes().partition(b"\n")
        try:
            is_whole = json.loads(first) == {"sum": _sum(lines)}
        except ValueError:
            is_whole = False
        if not is_whole:
            return None
        return [json.loads(line) for line in lines.splitlines()]


def count_answered(folder: Path) -> tuple[int, int] | None:
    """How many rows of how many have their answers in a folder; None where none has."""
    chunks = [int(file.stem) for file in folder.glob(f"*{CHUNK_SUFFIX}")]
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        rows, chunk_rows = int(header["count"]), int(header["chunk_rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not chunks:
        return None
    return sum(min(chunk_rows, rows - start) for start in chunks), rows


def _sum(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()


def _write_and_rename(file: Path, text: str) -> None:
    beside = file.with_name(f"{os.getpid()}-{file.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)

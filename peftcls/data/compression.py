"""Open files that are compressed: gzip by its first bytes, and the one file of a zip archive."""

import codecs
import contextlib
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from peftcls.errors import RowError

GZIP_SIGNATURE = b"\x1f\x8b"
COMPRESSED = (".gz", ".zip")
# Names that do not say what a file is: a table if its first line has tabs (as in SMS Spam).
TEXT_SUFFIXES = ("", ".txt")
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_FIRST_LINE = 1 << 16
# What other systems put into an archive beside its files.
HIDDEN = ("__MACOSX/", ".")


def table_suffix(path: Path) -> str:
    """The file extension of the table in a file: ".csv" of "rows.csv.gz".

    It is ".tsv" for a text file with a tab in its first line and no extension, or ".txt".

    Raises:
        RowError: a zip archive does not hold one file.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz" and path.is_file():
        with open_binary(path) as file:
            return _suffix_of_text(Path(path.stem).suffix.lower(), file)
    if suffix == ".gz":
        return Path(path.stem).suffix.lower()
    if suffix == ".zip" and path.is_file():
        with _reported(path), zipfile.ZipFile(path) as archive:
            member = _only_member(archive, path)
            with archive.open(member) as file:
                return _suffix_of_text(Path(member).suffix.lower(), file)
    if suffix in TEXT_SUFFIXES and path.is_file():
        with path.open("rb") as file:
            return _suffix_of_text(suffix, file)
    return suffix


def _suffix_of_text(suffix: str, file: IO[bytes]) -> str:
    """A file extension, or ".tsv" where it says nothing and the first line has a tab in it."""
    if suffix not in TEXT_SUFFIXES:
        return suffix
    first_line = file.readline(MAX_FIRST_LINE)
    is_text = b"\0" not in first_line or first_line.startswith(UTF_16_MARKS)
    return ".tsv" if b"\t" in first_line and is_text else suffix


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading its bytes, decompressed.

    Raises:
        RowError: the file is damaged, or a zip archive does not hold one file.
    """
    with _reported(path):
        if path.suffix.lower() == ".zip":
            with (
                zipfile.ZipFile(path) as archive,
                archive.open(_only_member(archive, path)) as file,
            ):
                yield file
        elif _is_gzip(path):
            with gzip.open(path, "rb") as unpacked:
                # It has all methods of a file; its type only does not say so.
                yield cast(IO[bytes], unpacked)
        else:
            with path.open("rb") as file:
                yield file


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP_SIGNATURE


def _only_member(archive: zipfile.ZipFile, path: Path) -> str:
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/")
        and not name.rpartition("/")[2].startswith(HIDDEN)
        and not name.startswith(HIDDEN)
    ]
    # Data sets are often packed beside a text that explains them.
    others = [name for name in names if not Path(name).stem.casefold().startswith("readme")]
    if len(others) == 1:
        return others[0]
    if len(names) != 1:
        listed = ", ".join(names[:5]) or "none"
        raise RowError(
            f"{path.name} holds {len(names)} files ({listed}), expected one table; unpack it, and "
            "give one of them, or their folder."
        )
    return names[0]


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a RowError; it is raised while the file is read."""
    try:
        yield
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise RowError(
            f"{path.name} is compressed and damaged, or not complete: {error}; copy it again."
        ) from None
    except (RuntimeError, NotImplementedError) as error:
        if path.suffix.lower() != ".zip":
            raise
        raise RowError(f"{path.name} cannot be unpacked: {error}; unpack it yourself.") from None

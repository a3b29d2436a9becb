"""Open text files, with errors that name the file, the line and the encoding."""

import codecs
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from peftcls.data.compression import open_binary
from peftcls.errors import RowError

Row: TypeAlias = dict[str, Any]

# Control characters, without those that part words, lines and pages.
NOT_IN_TEXTS = frozenset({*range(32), 127} - {*b"\t\n\v\f\r"})
MAX_UNLIKELY_SHARE = 0.05
SAMPLE_BYTES = 1 << 16
# The first bytes of xlsx (zip) and xls files.
WORKBOOK_SIGNATURES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@contextlib.contextmanager
def open_text(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    """Open a text file for reading its lines.

    Raises:
        RowError: the file is a workbook, or has bytes that are not in `encoding`; or there is no
            such encoding. It is raised while the lines are read.
    """
    with open_binary(path) as file:
        first_bytes = file.read(4)
    if first_bytes in WORKBOOK_SIGNATURES:
        raise RowError(
            f"{path.name} is a workbook or an archive, expected text; "
            "save the table as CSV in UTF-8."
        )
    try:
        with (
            open_binary(path) as file,
            io.TextIOWrapper(file, encoding=encoding, newline="") as lines,
        ):
            yield lines
    except UnicodeDecodeError as error:
        if _looks_binary(path):
            raise RowError(
                f"{path.name} does not look like a text file: it is full of bytes that no text "
                "has. Give a table as csv, tsv, json, jsonl, parquet or xlsx."
            ) from None
        line = _line_of_bad_byte(path, encoding)
        byte = error.object[error.start]
        name = encoding.removesuffix("-sig").upper()
        raise RowError(
            f"line {line} of {path.name} has the byte 0x{byte:02x}, which is not {name}; "
            "save the file as UTF-8 or pass its encoding, for example encoding='latin-1'."
        ) from None
    except LookupError:
        raise RowError(unknown_encoding(encoding)) from None
    except UnicodeError as error:
        raise RowError(
            f"{path.name} is not {encoding.upper()}: {error}; pass its encoding."
        ) from None


def _looks_binary(path: Path) -> bool:
    """Whether the first bytes of a file are of no text in any encoding with single bytes."""
    with open_binary(path) as file:
        first_bytes = file.read(SAMPLE_BYTES)
    unlikely = sum(byte in NOT_IN_TEXTS for byte in first_bytes)
    return b"\0" in first_bytes or unlikely > MAX_UNLIKELY_SHARE * len(first_bytes)


def utf_8_with_mark(encoding: str) -> str:
    """Return the encoding; UTF-8 then also accepts the byte order mark that spreadsheets write."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise RowError(unknown_encoding(encoding)) from None
    return "utf-8-sig" if name == "utf-8" else encoding


def unknown_encoding(encoding: str) -> str:
    """Say that Python has no such encoding."""
    return (
        f"encoding={encoding!r} is not the name of an encoding; try 'utf-8', 'latin-1' or 'cp1252'."
    )


def _line_of_bad_byte(path: Path, encoding: str) -> int:
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1

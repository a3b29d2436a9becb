"""Records of a csv file, of which a field may be longer than the csv module allows by itself."""

import csv
import threading
from collections.abc import Iterator
from typing import Any

MAX_FIELD_CHARACTERS = 16 * 1024 * 1024

_field_limit_lock = threading.Lock()


def records(reader: Any) -> Iterator[list[str]]:
    """Read the records of a `csv.reader`.

    The csv module has one limit of the length of a field for the whole process. It is changed only
    while a record is read.
    """
    while True:
        with _field_limit_lock:
            limit_before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
            try:
                record = next(reader, None)
            finally:
                csv.field_size_limit(limit_before)
        if record is None:
            return
        yield record


def next_record(reader: Any) -> list[str] | None:
    """The next record; None at the end."""
    return next(records(reader), None)

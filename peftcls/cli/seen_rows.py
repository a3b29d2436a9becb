"""Notice that an adapter is scored on rows that it was trained on."""

import contextlib
import json
from pathlib import Path
from typing import Any

import datasets

from peftcls.data.reading import source_name
from peftcls.models.adapter_manifest import file_sum
from peftcls.models.model_card import CARD
from peftcls.quality.findings import count_of
from peftcls.report.files import METRICS
from peftcls.report.numbers import fingerprint_rows
from peftcls.training.continual import REPLAYED

ADVICE = "the scores say little about new rows; score rows that the adapter has not seen."


def note_of_seen_rows(directory: Path, file: str, rows: datasets.Dataset) -> str | None:
    """A sentence where rows are those that a folder's adapter has learnt from, or their file.

    The report of a training names the content of its rows in their order, and its model card the
    SHA-256 of their file. Without either nothing is noticed; so are no rows in another order, and
    no part of the rows.

    Args:
        directory: the adapter folder.
        file: that the rows were read from.
        rows: that are scored.
    """
    training = _training_rows(directory)
    if training is not None and training["fingerprint"] == fingerprint_rows(rows):
        return f"note: the adapter was trained on these {count_of(len(rows), 'row')}: {ADVICE}"
    if not _is_training_file(directory, file):
        return None
    learnt = "rows"
    # With --replay they are those of two files together.
    if training is not None and REPLAYED not in training["source"]:
        learnt = count_of(training["rows"], "row")
    return f"note: the adapter was trained on {learnt} of {source_name(rows)}: {ADVICE}"


def _training_rows(directory: Path) -> dict[str, Any] | None:
    """What a folder's report says about the training rows; None where it has no report."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        numbers = json.loads((directory / METRICS).read_text(encoding="utf-8"))
        described = numbers["rows"]["training"]
        return {
            "fingerprint": described["fingerprint"],
            "source": str(described["source"]),
            "rows": int(described["rows"]),
        }
    return None


def _is_training_file(directory: Path, file: str) -> bool:
    """Whether the folder's card names the content of this file."""
    with contextlib.suppress(OSError, ValueError):
        return file_sum(Path(file)) in (directory / CARD).read_text(encoding="utf-8")
    return False

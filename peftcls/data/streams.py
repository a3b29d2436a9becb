"""Streams of rows: an `IterableDataset` is written to a file once, and then memory-mapped."""

import shutil
import tempfile
import weakref
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from peftcls.data.row_batches import READ_ROWS
from peftcls.data.scratch import scratch_folder, writing_copies
from peftcls.errors import RowError

# A stream that is given to `learn` and then to `fit` is read once.
_written: weakref.WeakKeyDictionary[datasets.IterableDataset, datasets.Dataset] = (
    weakref.WeakKeyDictionary()
)


def table_of_stream(stream: datasets.IterableDataset, name: str) -> datasets.Dataset:
    """The rows of a stream as a memory-mapped table, whose file is removed with the program.

    The columns have the types that the stream declares, or those of its first rows.

    Args:
        stream: with an end.
        name: what messages call the rows.

    Raises:
        RowError: there are no rows, or some do not have the columns and types of the first ones.
    """
    if stream not in _written:
        folder = Path(tempfile.mkdtemp(prefix="stream-", dir=scratch_folder()))
        try:
            with writing_copies(folder):
                _written[stream] = _write(stream, folder / "rows.arrow", name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return _written[stream]


def _write(stream: datasets.IterableDataset, file: Path, name: str) -> datasets.Dataset:
    rows = 0
    with ArrowWriter(path=str(file), features=stream.features, on_mixed_types=None) as writer:
        for batch in stream.iter(READ_ROWS):
            count = len(next(iter(batch.values())))
            try:
                writer.write_batch(batch)
            except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
                reason = str(error).rstrip(".")
                if isinstance(error, KeyError):
                    reason = f"they have no column {reason}, or the first rows have none"
                raise RowError(
                    f"rows {rows + 1} to {rows + count} of {name} do not fit the rows before them: "
                    f"{reason}. Give all rows of a stream the same columns and types, or name the "
                    "types: stream.cast(features)."
                ) from None
            rows += count
        if not rows:
            raise RowError(f"{name} has no rows.")
        writer.finalize()
    return datasets.Dataset.from_file(str(file))

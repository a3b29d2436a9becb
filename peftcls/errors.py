"""Exceptions that callers can catch: bad rows, runs that cannot go on, and memory that runs out."""

from collections.abc import Sequence


class RowError(ValueError):
    """Something is wrong with a row, a column or a table; the message says what, where and why."""


class MissingColumnsError(RowError):
    """A table lacks columns that are read.

    Args:
        source: the name of the table.
        missing: the columns that it lacks.
        found: the columns that it has.
        needed: all columns that are read.
        reader: what reads them.
        probably_meant: pairs of a missing column and one that may be it.
    """

    def __init__(
        self,
        source: str,
        missing: Sequence[str],
        *,
        found: Sequence[str],
        needed: Sequence[str],
        reader: str,
        probably_meant: Sequence[tuple[str, str]] = (),
    ) -> None:
        listed = " and no ".join(map(repr, missing))
        self.sentence = f"{source} has no column {listed}; it has {[*found]}."
        self.sentence += f" {reader} needs {[*needed]}."
        super().__init__(f"row 1 of {self.sentence}")
        self.probably_meant = list(probably_meant)


class SeveralSplitsError(RowError):
    """A data set has several splits, and none of them was chosen.

    Args:
        sentence: the message.
        splits: their names.
    """

    def __init__(self, sentence: str, splits: Sequence[str]) -> None:
        super().__init__(sentence)
        self.splits = splits


class RunStoppedError(RuntimeError):
    """A run cannot go on: memory, disk or another process failed. Its last checkpoint is whole."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the accelerator or the machine has no memory left."""
    if isinstance(error, MemoryError):
        return True
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, Exception) and should_reduce_batch_size(error)

"""What goes wrong with rows, runs and memory, as exceptions that callers can catch."""

from accelerate.utils.memory import should_reduce_batch_size


class RowError(ValueError):
    """Something is wrong with a row, a column or a whole table; the message says what, where and what to do."""


class RunStoppedError(RuntimeError):
    """A run that cannot go on here and now; its last checkpoint is whole, and its message says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the accelerator or the machine has no memory left."""
    return isinstance(error, MemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )

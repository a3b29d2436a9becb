"""Exceptions that callers can catch: bad rows, runs that cannot go on, and memory that runs out."""


class RowError(ValueError):
    """Something is wrong with a row, a column or a table; the message says what, where and why."""


class RunStoppedError(RuntimeError):
    """A run cannot go on: memory, disk or another process failed. Its last checkpoint is whole."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the accelerator or the machine has no memory left."""
    if isinstance(error, MemoryError):
        return True
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, Exception) and should_reduce_batch_size(error)

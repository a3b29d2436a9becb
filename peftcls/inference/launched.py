"""The processes that a launcher has started to answer one table together."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from peftcls.errors import RunStoppedError


@contextlib.contextmanager
def launched_processes() -> Iterator[tuple[int, int]]:
    """The number of this process, from 0, and how many there are, as the launcher says."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    # On a machine without one, Accelerate finds other processes only if it is to use the CPU.
    processes = PartialState(cpu=not torch.accelerator.is_available())
    try:
        yield processes.process_index, processes.num_processes
    finally:
        processes.destroy_process_group()


@contextlib.contextmanager
def first_enters(
    context: AbstractContextManager[None], process: int, processes: int
) -> Iterator[None]:
    """Enter a context in the first process; the body begins in all of them when it is entered.

    Args:
        context: what the first process enters.
        process: the number of this one.
        processes: how many there are.

    Raises:
        RunStoppedError: the first process could not enter it; that one raises its own error.
    """
    if process > 0:
        (error,) = broadcast_object_list([""])
        if error:
            raise RunStoppedError(f"the first process has stopped: {error}")
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(context)
        except Exception as error:
            _tell_others(str(error) or type(error).__name__, processes)
            raise
        _tell_others("", processes)
        yield


def _tell_others(error: str, processes: int) -> None:
    if processes > 1:
        broadcast_object_list([error])

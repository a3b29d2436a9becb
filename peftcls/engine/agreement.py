"""An error that one of several processes meets ends all of them, with the same sentence.

A process that raised an error by itself would leave the others waiting for it.
"""

import contextlib
from collections.abc import Iterator

from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError

from peftcls.errors import RowError, RunStoppedError

KINDS: tuple[type[Exception], ...] = (
    RunStoppedError,
    RowError,
    ValueError,
    FloatingPointError,
    OSError,
    SafetensorError,
    RuntimeError,
)
"""What an error is in the other processes: the first of these that it is, or the last one."""


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Raise an error of the body in all processes, whichever of them has met it.

    All processes enter it. The body must not wait for other processes: one that fails is no longer
    in it.

    Raises:
        Exception: of the first process that has met one, with its sentence.
    """
    met: Exception | None = None
    try:
        yield
    except Exception as error:
        met = error
    raise_together(met)


def raise_together(error: Exception | None) -> None:
    """Exchange the errors that processes have met; raise the first one in all of them.

    Args:
        error: that this process has met; None for none.

    Raises:
        Exception: of the first process that has met one, with its sentence.
    """
    reports = gather_object([_report(error)])
    number = next((number for number, report in enumerate(reports) if report is not None), None)
    if number is None:
        return
    if error is not None and number == PartialState().process_index:
        raise error
    kind, sentence = reports[number]
    raise KINDS[kind](sentence) from error


def _report(error: Exception | None) -> tuple[int, str] | None:
    """The kind and the sentence of an error, which another process can read whatever its class."""
    if error is None:
        return None
    kind = next((number for number, kind in enumerate(KINDS) if isinstance(error, kind)), -1)
    return kind, str(error) or type(error).__name__

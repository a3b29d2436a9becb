"""Messages and progress bars: one logger, `peftcls`, and how a program shows or hides them."""

import contextlib
import dataclasses
import logging
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

logger = logging.getLogger("peftcls")


@dataclasses.dataclass
class _Display:
    """What this process shows.

    Args:
        is_quiet: nothing is shown; see `set_quiet`.
        without_bars: how many blocks of `without_bars` are under way, in all threads.
        lock: held while the count changes.
    """

    is_quiet: bool = False
    without_bars: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_display = _Display()


class _Output(logging.Handler):
    """Writes messages to the present standard output, or error output, without a prefix."""

    on_stderr = False

    def emit(self, record: logging.LogRecord) -> None:
        file = sys.stderr if self.on_stderr else sys.stdout
        with tqdm.external_write_mode(file=file):  # or it would stick to a progress bar
            print(self.format(record), file=file, flush=True)


_output = _Output()


def show_messages(level: int = logging.INFO, *, on_stderr: bool = False) -> None:
    """Show the messages of this package on the standard output.

    The command and the recipes call it. A second call only changes the level and the place.

    Args:
        level: of the least important messages that are shown.
        on_stderr: show them on the error output, where the standard output is for a program.
    """
    logger.setLevel(level)
    _output.on_stderr = on_stderr
    logger.addHandler(_output)


def set_quiet(is_quiet: bool = True) -> None:
    """Switch all progress bars and messages of this package off, or on again.

    Warnings are off too; errors are raised as ever. It holds for the whole process, in all threads,
    until the next call. Bars and messages of other libraries are left as they are.

    Args:
        is_quiet: False shows again what was shown before.

    Raises:
        ValueError: it is neither True nor False.
    """
    if not isinstance(is_quiet, bool):
        raise ValueError(f"is_quiet={is_quiet!r}: expected True or False.")
    _display.is_quiet = is_quiet
    logger.disabled = is_quiet


def shows_bars() -> bool:
    """Whether progress bars may be shown now."""
    return not _display.is_quiet and _display.without_bars == 0


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bar of this package in any thread until the body ends."""
    with _display.lock:
        _display.without_bars += 1
    try:
        yield
    finally:
        with _display.lock:
            _display.without_bars -= 1

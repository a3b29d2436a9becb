"""Handle SIGTERM and SIGINT during training: finish the step, write a checkpoint, then exit."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# 128 plus the signal's number, as shells count.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# A launcher forwards the signal that its processes have already received from the terminal.
REPEAT_SECONDS = 1.0

Handler = Callable[[int, FrameType | None], Any] | int


class Signals:
    """The signals that this process has received. Only the main thread can receive any.

    Attributes:
        number: of the signal that is to end the run; 0 for none.
        is_deferred: whether a signal only waits in `number`. Otherwise it ends the program at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.is_deferred = False
        self._received_at = 0.0

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Receive signals within this context; afterwards the former handlers are restored.

        A signal that the program ignores stays ignored.
        """
        self.number = 0
        self.is_deferred = False
        former_handlers = _active_handlers()
        for number in former_handlers:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in former_handlers.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def not_deferred(self) -> Iterator[None]:
        """Let a signal end the program at once within this context.

        It is for work that changes no weight, such as an evaluation: it may take longer than the
        time that a program is given to end.
        """
        self.is_deferred = False
        try:
            yield
        finally:
            self.is_deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self._handle_first(number)
            return
        if time.monotonic() - self._received_at > REPEAT_SECONDS:
            os._exit(EXIT_CODES[signal.Signals(number)])

    def _handle_first(self, number: int) -> None:
        self.number = number
        self._received_at = time.monotonic()
        if not self.is_deferred:
            end_by(number)
        if int(os.environ.get("RANK", 0)) != 0:
            return
        message = (
            f"\n{signal.Signals(number).name}: this step is finished and a checkpoint written; "
            "once more ends the program at once.\n"
        )
        # os.write is safe in a signal handler; print and logging may be what was interrupted.
        os.write(2, message.encode())


def _active_handlers() -> dict[int, Handler]:
    """The present handlers of the signals that are to be captured, without ignored signals."""
    # Python allows only the main thread to set handlers.
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers: dict[int, Handler] = {}
    for number in EXIT_CODES:
        handler = signal.getsignal(number)
        if handler is not None and handler != signal.SIG_IGN:
            handlers[number] = handler
    return handlers


def end_by(number: int) -> None:
    """End the program because of a signal: raise KeyboardInterrupt, or SystemExit with code 143."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_CODES[signal.Signals(number)])

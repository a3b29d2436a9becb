"""SIGTERM and SIGINT while a run is under way: the step is finished, a checkpoint is written, and the program ends."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

EXIT_CODES = {
    signal.SIGTERM: 143,
    signal.SIGINT: 130,
}  # 128 and the signal's number, as shells count
SAME_SECONDS = 1.0  # a launcher hands on the signal that its processes have had from the terminal


class Signals:
    """What this process has been asked by signals; nothing is asked of a thread that is not the main one."""

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that is to end the run; 0 for none."""
        self.is_put_off = False
        """Whether a signal only waits in `number`; otherwise it ends the program where it stands."""
        self._since = 0.0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Within it signals come here; at its end they go where they went before. One that is ignored stays ignored."""
        self.number, self.is_put_off = 0, False
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {
                number: found
                for number in EXIT_CODES
                if (found := signal.getsignal(number)) not in (signal.SIG_IGN, None)
            }
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def not_put_off(self) -> Iterator[None]:
        """Within it a signal ends the program where it stands: what changes nothing may take longer than a program is given to end."""
        self.is_put_off = False
        try:
            yield
        finally:
            self.is_put_off = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if not self.is_put_off:
                end_by(number)
            if (
                int(os.environ.get("RANK", 0)) == 0
            ):  # without print, which may be what was interrupted
                os.write(
                    2,
                    f"\n{signal.Signals(number).name}: this step is finished and a checkpoint written; once more ends the program "
                    "at once.\n".encode(),
                )
        elif time.monotonic() - self._since > SAME_SECONDS:
            os._exit(EXIT_CODES[signal.Signals(number)])


def end_by(number: int) -> None:
    """Raise what ends a program that was asked by this signal: KeyboardInterrupt, or SystemExit with the exit code 143."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_CODES[signal.Signals(number)])

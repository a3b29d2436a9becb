"""What the package tells while it works: one logger, `peftcls`, and how a program shows it."""

import logging
import sys

logger = logging.getLogger("peftcls")


class _ToStandardOutput(logging.Handler):
    """Writes messages to the standard output of the moment, without a prefix."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout, flush=True)


def show_messages(level: int = logging.INFO) -> None:
    """Show the messages of this package on the standard output, as the command and the recipes do.

    A second call changes the level only.

    Args:
        level: of the least important messages that are shown.
    """
    logger.setLevel(level)
    if not any(isinstance(handler, _ToStandardOutput) for handler in logger.handlers):
        logger.addHandler(_ToStandardOutput())

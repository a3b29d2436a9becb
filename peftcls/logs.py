"""Messages of the package: one logger, `peftcls`, and how a program shows them."""

import logging
import sys

from tqdm import tqdm

logger = logging.getLogger("peftcls")


class _StandardOutput(logging.Handler):
    """Writes messages to the present standard output, without a prefix."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stdout):  # or it would stick to a progress bar
            print(self.format(record), file=sys.stdout, flush=True)


def show_messages(level: int = logging.INFO) -> None:
    """Show the messages of this package on the standard output.

    The command and the recipes call it. A second call only changes the level.

    Args:
        level: of the least important messages that are shown.
    """
    logger.setLevel(level)
    is_shown = any(isinstance(handler, _StandardOutput) for handler in logger.handlers)
    if not is_shown:
        logger.addHandler(_StandardOutput())

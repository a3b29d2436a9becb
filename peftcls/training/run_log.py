"""The log of a training run: messages, its history, a progress bar, and trackers."""

import logging
import sys
from collections.abc import Callable

from accelerate import PartialState
from tqdm.auto import tqdm

from peftcls.logs import shows_bars
from peftcls.training import data_order
from peftcls.training.checkpoint import Progress
from peftcls.training.config import TrainConfig

logger = logging.getLogger("peftcls")

SMALL_LOSS = 0.05
"""A loss that begins below this, as that of a linear probe may, has no room to fall."""
LEAST_FALL = 0.02
"""The share by which the loss of the last quarter should be below that of the first."""


def log_info(message: str) -> None:
    """Log a fact, in the main process only."""
    if PartialState().is_main_process:
        logger.info(message)


def log_warning(message: str) -> None:
    """Log what a user should act on, in the main process only."""
    if PartialState().is_main_process:
        logger.warning(message)


class RunLog:
    """Logs losses and scores to the run's history, a progress bar and trackers.

    Args:
        progress: of the run; its history gets the entries.
        config: of the run.
        rows: of the training table.
        monitor: the score that decides which step is best.
        shows_bar: whether this process shows a progress bar.
        track: sends values by name, and a step, to the trackers; None without trackers.
    """

    def __init__(
        self,
        progress: Progress,
        config: TrainConfig,
        *,
        rows: int,
        monitor: str,
        shows_bar: bool,
        track: Callable[..., None] | None,
    ) -> None:
        self.progress = progress
        self.monitor = monitor
        self.track = track
        self.bar = tqdm(
            total=rows * config.epochs,
            unit="row",
            disable=not (shows_bar and shows_bars()),
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            initial=data_order.rows_before(rows, config.batch_size, progress.step),
        )

    def count_rows(self, rows: int) -> None:
        """Show that so many more rows have been trained on."""
        self.bar.update(rows)

    def add(self, entry: dict[str, float]) -> None:
        """Log an entry: its `step` (from 1), and losses or scores by name."""
        self.progress.history.append(entry)
        newest = self.progress.newest("loss", f"valid_{self.monitor}")
        self.bar.set_postfix(newest, refresh=False)
        if self.track is not None:
            values = {name: value for name, value in entry.items() if name != "step"}
            self.track(values, step=int(entry["step"]))

    def close(self) -> None:
        """Finish the progress bar, and warn if the loss is as it was at the beginning."""
        self.bar.close()
        losses = [entry["loss"] for entry in self.progress.history if "loss" in entry]
        quarter = len(losses) // 4
        if quarter == 0:
            return
        first = sum(losses[:quarter]) / quarter
        last = sum(losses[-quarter:]) / quarter
        if first > SMALL_LOSS and last > (1 - LEAST_FALL) * first:
            log_warning(
                f"the training loss has hardly moved: {first:.3g} at the beginning, {last:.3g} at "
                "the end. Raise the learning rate or the epochs; if that does not help, look "
                "whether the text alone can tell the answer."
            )

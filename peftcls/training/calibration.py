"""Fitting temperature and thresholds on rows that were not trained on."""

from collections.abc import Sequence

import datasets

from peftcls.quality.split_checks import MIN_EVALUATION_ROWS
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.training.run_log import log_warning


def calibrated_task(
    task: Task, answers: Sequence[Answer], rows: datasets.Dataset, min_accuracy: float | None
) -> Task:
    """A task whose decisions fit these answers; a warning where the rows are few.

    Raises:
        ValueError: as `Trainer.calibrate`.
    """
    calibrated = task.calibrated(answers, rows, min_accuracy=min_accuracy)
    if len(rows) < MIN_EVALUATION_ROWS:
        log_warning(
            f"{len(rows)} rows to calibrate on, expected at least {MIN_EVALUATION_ROWS}; what "
            "is fitted to so few may not suit other rows."
        )
    return calibrated

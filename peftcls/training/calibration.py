"""Fitting temperature and thresholds on rows that were not trained on."""

from collections.abc import Sequence

import datasets

from peftcls.quality.findings import count_of
from peftcls.quality.split_checks import MIN_EVALUATION_ROWS
from peftcls.tasks.answers import Answer
from peftcls.tasks.base import Task
from peftcls.training.run_log import log_info, log_warning


def tell_calibration(
    task: Task, before: dict[str, float], after: dict[str, float], rows: int
) -> dict[str, float]:
    """Log the temperature that was fitted, and a warning where the rows were too good for that.

    Args:
        task: with the new decisions.
        before: the scores of the rows.
        after: the same with the new decisions.
        rows: how many there were.

    Returns:
        The scores after it.
    """
    if task.decisions is None or "loss" not in after:
        return after
    sentence = (
        f"calibrated on {count_of(rows, 'row')}: temperature {task.decisions.temperature:.2f}, "
        f"loss {before['loss']:.3f} before and {after['loss']:.3f} after"
    )
    if after["loss"] > before["loss"]:
        log_warning(
            f"{sentence}. They have too few wrong answers to fit a temperature, so that a cautious "
            "one is taken."
        )
    else:
        log_info(sentence)
    return after


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

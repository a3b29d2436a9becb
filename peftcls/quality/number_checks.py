"""Check the targets of a regression: constant ones, outliers, and numbers in other units."""

from collections.abc import Iterator

import numpy as np

from peftcls.quality.findings import MAX_SHOWN_ROWS, Finding, Severity
from peftcls.quality.scan import SplitScan
from peftcls.tasks.base import Task
from peftcls.tasks.regression import Regression

MAX_DEVIATIONS = 10.0
# The standard deviation of a normal distribution is this multiple of its median absolute deviation.
DEVIATIONS_PER_MEDIAN_DISTANCE = 1.4826


def number_findings(scan: SplitScan) -> Iterator[Finding]:
    """Find targets that are all the same, or far from all others."""
    numbers = np.array(scan.numbers)
    if not len(numbers):
        return
    if scan.maybe_thousands.count and not scan.has_decimals:
        yield scan.maybe_thousands.finding(
            "warning",
            "thousands",
            "each number with a mark has three digits after it, as 1.034 for one thousand and "
            "thirty-four has, and is read as one with decimals; take the marks out if they mark "
            "thousands.",
            scan.name,
        )
    if np.ptp(numbers) == 0:
        severity: Severity = "error" if scan.name == "train" else "warning"
        yield Finding(
            severity,
            "constant-target",
            f"every row has the target {numbers[0]:g}; there is nothing to learn or to compare.",
            scan.name,
        )
        return
    median = np.median(numbers)
    deviation = DEVIATIONS_PER_MEDIAN_DISTANCE * np.median(np.abs(numbers - median))
    if deviation == 0:
        deviation = float(np.std(numbers))
    is_far = np.abs(numbers - median) > MAX_DEVIATIONS * deviation
    if is_far.any():
        rows = np.array(scan.row_numbers)[is_far]
        targets = ", ".join(f"{number:g}" for number in numbers[is_far][:MAX_SHOWN_ROWS])
        yield Finding(
            "warning",
            "outlier",
            f"the targets {targets} are more than {MAX_DEVIATIONS:g} robust deviations from the "
            f"median {median:g}; they will dominate the squared error.",
            scan.name,
            tuple(rows[:MAX_SHOWN_ROWS].tolist()),
            len(rows),
        )


def scale_findings(task: Task, train: SplitScan) -> Iterator[Finding]:
    """Find training targets far from the scale that the task already has.

    This happens when a model is trained further on a table in other units.
    """
    if not isinstance(task, Regression) or not train.numbers:
        return
    if task.mean is None or task.deviation is None:
        return
    median = float(np.median(train.numbers))
    deviations = abs(median - task.mean) / task.deviation
    if deviations > MAX_DEVIATIONS:
        yield Finding(
            "warning",
            "other-scale",
            f"the median target is {median:g}, {deviations:.0f} deviations from the mean "
            f"{task.mean:g} of the first training; use the same units, or start a new training.",
            train.name,
        )

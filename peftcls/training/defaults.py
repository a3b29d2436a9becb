"""Default settings by kind of work and size of table; `docs/defaults.md` shows the same table."""

import dataclasses
import math

from peftcls.tasks.base import Task
from peftcls.training.data_order import steps_per_epoch

MAX_EPOCHS = 40


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What is used where nothing else is asked for.

    Args:
        batch_size: rows of a step.
        learning_rate: the peak.
        epochs: passes over a table that gives enough steps.
        min_steps: a smaller table is passed over more often, until it gives so many steps.
        small_table_rate: the peak for such a table, whose run is short.
    """

    batch_size: int
    learning_rate: float
    epochs: int
    min_steps: int
    small_table_rate: float

    def epochs_for(self, rows: int, batch_size: int) -> int:
        """Passes over a table of so many rows; at most 40."""
        return min(max(self.epochs, self._enough_epochs(rows, batch_size)), MAX_EPOCHS)

    def rate_for(self, rows: int, batch_size: int) -> float:
        """The peak learning rate for a table of so many rows."""
        is_small = self._enough_epochs(rows, batch_size) > self.epochs
        return self.small_table_rate if is_small else self.learning_rate

    def _enough_epochs(self, rows: int, batch_size: int) -> int:
        return math.ceil(self.min_steps / steps_per_epoch(rows, batch_size))


HEAD = Defaults(16, learning_rate=1e-3, epochs=4, min_steps=80, small_table_rate=2e-3)
CLOSED_LABELS = Defaults(8, learning_rate=1e-3, epochs=4, min_steps=80, small_table_rate=1e-3)
TEXT = Defaults(16, learning_rate=2e-3, epochs=4, min_steps=160, small_table_rate=2e-3)
SPANS = Defaults(16, learning_rate=2e-3, epochs=2, min_steps=200, small_table_rate=2e-3)
FEW_ROWS = Defaults(32, learning_rate=1e-3, epochs=4, min_steps=80, small_table_rate=1e-3)
FEW_ROWS_OF_A_LABEL = 64
MAX_LABELS_TO_CONTRAST = FEW_ROWS.batch_size // 2
"""With more labels most rows of a step would have no other one of their label beside them."""
FEW_ROWS_EVAL_EVERY = 10
"""Steps between evaluations: an epoch of a few rows is a step or two."""


def has_few_rows(task: Task, rows: int) -> bool:
    """Whether a table of rows with one label each has so few that they teach more by contrast."""
    # Rows that are compared with one another have no weights of their own.
    if task.answer_kind != "label" or not task.new_head or task.weight is not None:
        return False
    count = len(task.labels or ())
    return count <= MAX_LABELS_TO_CONTRAST and rows <= FEW_ROWS_OF_A_LABEL * count


def defaults_for(task: Task) -> Defaults:
    """The defaults for a kind of work: a head, spans, one of a closed set of labels, or a text."""
    if task.new_head:
        return SPANS if task.answer_kind == "span" else HEAD
    return CLOSED_LABELS if task.labels else TEXT

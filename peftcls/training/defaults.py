"""Default settings by kind of work and size of table; `docs/defaults.md` shows the same table."""

import dataclasses
import math

from peftcls.tasks.base import Task
from peftcls.training.data_order import steps_per_epoch

MAX_EPOCHS = 20


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What is used where nothing else is asked for.

    Args:
        batch_size: rows of a step.
        learning_rate: the peak.
        epochs: passes over a table that gives enough steps.
        min_steps: a smaller table is passed over more often, until it gives so many steps.
    """

    batch_size: int
    learning_rate: float
    epochs: int
    min_steps: int

    def epochs_for(self, rows: int, batch_size: int) -> int:
        """Passes over a table of so many rows; at most 20."""
        enough = math.ceil(self.min_steps / steps_per_epoch(rows, batch_size))
        return min(max(self.epochs, enough), MAX_EPOCHS)


# A head starts from a linear probe, so that few steps are enough.
HEAD = Defaults(batch_size=16, learning_rate=1e-3, epochs=4, min_steps=40)
CLOSED_LABELS = Defaults(batch_size=8, learning_rate=1e-3, epochs=4, min_steps=80)
TEXT = Defaults(batch_size=16, learning_rate=2e-3, epochs=4, min_steps=160)
SPANS = Defaults(batch_size=16, learning_rate=1e-3, epochs=2, min_steps=200)


def defaults_for(task: Task) -> Defaults:
    """The defaults for a kind of work: a head, spans, one of a closed set of labels, or a text."""
    if task.new_head:
        return SPANS if task.answer_kind == "span" else HEAD
    return CLOSED_LABELS if task.labels else TEXT

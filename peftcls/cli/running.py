"""Train with validation rows, and fit the task's decisions on them."""

from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.training.prepare import Prepared, log_warnings
from peftcls.training.trainer import Trainer


def train(
    trainer: Trainer,
    rows: Prepared,
    *,
    resume: bool,
    calibrate: bool,
    shows_warnings: bool = True,
) -> None:
    """Train, and fit the task's decisions.

    Args:
        trainer: of the run.
        rows: of the run.
        resume: continue from the newest checkpoint.
        calibrate: fit temperature and thresholds. The threshold below which a question gets no
            answer is always fitted.
        shows_warnings: whether the findings in the rows are logged.
    """
    if shows_warnings and trainer.accelerator.is_main_process:
        log_warnings(rows.examination)
    trainer.fit(rows, resume=resume)
    task = trainer.task
    valid = rows.valid_rows
    assert valid is not None, "the command always has validation rows"
    if isinstance(task, ExtractiveQA) and task.unanswerable:
        calibrate = any(task.answerable(valid))
    if calibrate:
        trainer.calibrate(valid)

"""What a finished run is worth beside what needs no training: the probe, and counting words."""

import datasets

from peftcls import metrics
from peftcls.baselines import baselines
from peftcls.models.trainable import copy_tensors, put_tensors
from peftcls.quality.split_checks import MIN_EVALUATION_ROWS
from peftcls.tasks.answers import Answer
from peftcls.training.trainer import Trainer

PROBE = "linear probe of the frozen base"
WHAT_TO_TRY = (
    "Try another base (--model minilm or smollm2), more rows, or other settings: a learning rate "
    "three times as high or as low, more epochs, targets='all-linear'."
)


def answers_at_start(trainer: Trainer, rows: datasets.Dataset) -> list[Answer] | None:
    """The answers of the linear probe that a run began with; None where it began otherwise.

    A run that was resumed does not know them any more.

    Args:
        trainer: after `fit`.
        rows: the rows to answer.
    """
    if trainer.start is None:
        return None
    trained = copy_tensors(trainer.parameters)
    put_tensors(trainer.parameters, trainer.start)
    try:
        return trainer.predict(rows)
    finally:
        put_tensors(trainer.parameters, trained)


def weaknesses(
    trainer: Trainer, train: datasets.Dataset, valid: datasets.Dataset | None
) -> list[str]:
    """Sentences about a run that is no better on its validation rows than simpler systems.

    Args:
        trainer: after `fit`.
        train: the rows that were trained on.
        valid: the rows that chose the best step; None for no sentences.
    """
    progress = trainer.progress
    if valid is None or not progress.best_scores:
        return []
    sentences = []
    if progress.best_step == 0:
        sentences.append(
            "No step of the training was better on the validation rows than the linear probe that "
            f"it began with, so the probe is what was saved. {WHAT_TO_TRY}"
        )
    if len(valid) < MIN_EVALUATION_ROWS:
        return sentences
    monitor = trainer.config.monitor or trainer.task.monitor
    own = progress.best_scores[monitor]
    for name, answers in baselines(trainer.task, train, valid).items():
        score = trainer.task.score(answers, valid).get(monitor)
        if score is not None and score > own and monitor not in metrics.LOWER_IS_BETTER:
            sentences.append(
                f"On the validation rows {name} has {monitor} {100 * score:.1f}, this run "
                f"{100 * own:.1f}: it is no good yet. {WHAT_TO_TRY}"
            )
    return sentences

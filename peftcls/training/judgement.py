"""What a finished run is worth beside what needs no training: the probe, and counting words."""

import datasets

from peftcls.baselines import baselines
from peftcls.models.peft_library import PeftModel
from peftcls.models.trainable import copy_tensors, put_tensors
from peftcls.quality.split_checks import MIN_EVALUATION_ROWS
from peftcls.report.verdict import WHAT_TO_TRY
from peftcls.report.wording import write_score
from peftcls.tasks.answers import Answer
from peftcls.tasks.own_metrics import score_answers
from peftcls.training.trainer import Trainer

PROBE = "linear probe of the frozen base"
NEARLY_PERFECT = 0.995
CLEARLY_LESS = 0.97
"""Of an error: one that is at most so large a part of another is better."""


def answers_at_start(trainer: Trainer, rows: datasets.Dataset) -> list[Answer] | None:
    """The answers of the linear probe that a run began with; None where it began otherwise.

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
    monitor = trainer.config.monitor_for(trainer.task, len(valid))
    own = progress.best_scores[monitor]
    is_lower_better = trainer.config.is_lower_better(monitor)
    has_room = is_lower_better or own < NEARLY_PERFECT
    is_probe = progress.best_step == 0 and trainer.start is not None
    if is_probe and has_room and isinstance(trainer.model, PeftModel):
        sentences.append(
            "No step of the training was better on the validation rows than the linear probe that "
            f"it began with, so the probe is what was saved. {WHAT_TO_TRY}"
        )
    if len(valid) < MIN_EVALUATION_ROWS:
        return sentences
    for name, answers in baselines(trainer.task, train, valid).items():
        metrics = trainer.config.own_metrics.for_answers(answers)
        score = score_answers(trainer.task, answers, valid, metrics).get(monitor)
        if score is not None and _is_clearly_better(score, own, len(valid), is_lower_better):
            sentences.append(
                f"On the validation rows {name} has {monitor} {write_score(score, monitor)}, this "
                f"run {write_score(own, monitor)}: it is no good yet. {WHAT_TO_TRY}"
            )
    return sentences


def _is_clearly_better(score: float, own: float, rows: int, is_lower_better: bool) -> bool:
    """Whether another system's score on so many rows is better, and not by chance alone."""
    if is_lower_better:
        return score < own * CLEARLY_LESS
    # One row more or less says nothing.
    return score > own + 1.5 / rows

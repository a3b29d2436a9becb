"""What the head of an encoder reads: the task says, or what its base was trained to sum up with."""

import json
from pathlib import Path
from typing import Literal

from transformers.utils.hub import cached_file

from peftcls.engine.model_choices import Pooling
from peftcls.tasks.base import Task

EncoderPooling = Literal["cls", "mean", "compare"]

# sentence-transformers writes it beside the models that it trains.
POOLING_FILE = "1_Pooling/config.json"
MAX_BYTES = 1 << 16


def choose_pooling(task: Task, source: str, revision: str | None) -> EncoderPooling:
    """What an encoder's head reads, for a task that may leave it open.

    Args:
        task: what the head is for.
        source: a local folder, or the name of a model on the hub.
        revision: of a model on the hub.
    """
    is_open = task.pooling is None and task.peft_type == "SEQ_CLS"
    if not is_open or not was_trained_on_means(source, revision):
        return as_encoder_pooling(task.pooling)
    return "compare" if task.can_compare else "mean"


def as_encoder_pooling(pooling: Pooling | None) -> EncoderPooling:
    """A setting, or what is known of a base, as what a head can read: its own token by default."""
    if pooling == "mean" or pooling == "compare":
        return pooling
    return "cls"


def was_trained_on_means(source: str, revision: str | None) -> bool:
    """Whether a base model's files say that the mean of its tokens stands for a text.

    Args:
        source: a local folder, or the name of a model on the hub.
        revision: of a model on the hub.
    """
    file = Path(source) / POOLING_FILE
    if not Path(source).is_dir():
        try:
            found = cached_file(
                source,
                POOLING_FILE,
                revision=revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except (OSError, ValueError):
            # No such model: reading its configuration says so.
            return False
        if found is None:
            return False
        file = Path(found)
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        return False
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(settings, dict) and settings.get("pooling_mode_mean_tokens") is True

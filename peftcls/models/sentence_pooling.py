"""Which token states a base model was trained to sum a text up with, by its own folder."""

import json
from pathlib import Path

from transformers.utils.hub import cached_file

# sentence-transformers writes it beside the models that it trains.
POOLING_FILE = "1_Pooling/config.json"
MAX_BYTES = 1 << 16


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

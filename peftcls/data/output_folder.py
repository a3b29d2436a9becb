"""Whether a folder, which may not exist yet, can be written to."""

import os
from pathlib import Path


def nearest_existing(folder: Path) -> Path:
    """The folder itself if it exists, otherwise the nearest of its parents that does."""
    candidates = (folder, *folder.absolute().parents)
    return next(path for path in candidates if path.exists())


def check_output_dir(folder: Path) -> None:
    """Check that the output folder, which may not exist yet, can be written to.

    Raises:
        ValueError: it cannot.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"output_dir={str(folder)!r}: {existing} is not a folder that can be written to; "
            "choose another."
        )

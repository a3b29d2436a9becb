"""The names of a report's files, and whether a folder has room for them."""

import json
import shutil
from pathlib import Path

PAGE = "report.html"
METRICS = "metrics.json"
FIGURES = "figures"


def check_out_folder(directory: Path) -> None:
    """Check that a run can write into a folder.

    Raises:
        ValueError: the folder holds a base model, or files that a report would replace.
    """
    if (directory / "config.json").is_file() and not (directory / "peftcls.json").is_file():
        raise ValueError(
            f"{directory} holds a model of its own (config.json), expected a new folder or one of "
            "an adapter; choose another."
        )
    check_report_room(directory)


def check_report_room(directory: Path) -> None:
    """Raise ValueError where a report would replace files that no report of peftcls has written."""
    existing = [name for name in (METRICS, PAGE, FIGURES) if (directory / name).exists()]
    if existing and not _has_report(directory):
        raise ValueError(
            f"{existing[0]} in {directory} belongs to no report of peftcls and would be replaced; "
            "move it, or choose another folder."
        )


def remove_report(directory: Path) -> None:
    """Remove a report from a folder, since what it tells of is no longer what the folder holds."""
    if not _has_report(directory):
        return
    (directory / PAGE).unlink(missing_ok=True)
    (directory / METRICS).unlink(missing_ok=True)
    shutil.rmtree(directory / FIGURES, ignore_errors=True)


def _has_report(directory: Path) -> bool:
    """Whether the metrics in a folder are those of a report."""
    try:
        metrics = json.loads((directory / METRICS).read_text(encoding="utf-8"))
        return {"headline", "format"} <= metrics.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False

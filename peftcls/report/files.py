"""The files of a report, and whether there is room for them in a folder."""

import json
from pathlib import Path

PAGE = "report.html"


METRICS = "metrics.json"


FIGURES = "figures"


def check_out_folder(directory: Path) -> None:
    """Raise ValueError where a run would write into a base model, or its report would replace somebody else's files."""
    if (directory / "config.json").is_file() and not (directory / "peftcls.json").is_file():
        raise ValueError(
            f"{directory} holds a model of its own (config.json), expected a new folder or one of an adapter; choose another."
        )
    check_report_room(directory)


def check_report_room(directory: Path) -> None:
    """Raise ValueError where a report would replace files that are no report of peftcls."""
    there = [name for name in (METRICS, PAGE, FIGURES) if (directory / name).exists()]
    try:
        own = (
            {"headline", "format"}
            <= json.loads((directory / METRICS).read_text(encoding="utf-8")).keys()
            if there
            else True
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        own = False
    if not own:
        raise ValueError(
            f"{there[0]} in {directory} belongs to no report of peftcls and would be replaced; move it, or choose another "
            "folder."
        )

"""`peftcls show`: describe an adapter folder."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.folder_info import describe_folder, tell_folder

METRICS = "metrics.json"
"""The numbers of a report, beside the adapter."""
START_WAS_KEPT = (
    "kept       the adapter that the training continued from: no step was better on the validation "
    "rows"
)
PROBE_WAS_KEPT = (
    "kept       the linear probe that the training began with: no step of the adapter was better "
    "on the validation rows"
)


def show_folder(*, directory: Path, as_json: bool) -> None:
    """Print what is in a folder."""
    facts = describe_folder(directory)
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    print(tell_folder(facts))
    saved = datetime.datetime.fromtimestamp((directory / MANIFEST).stat().st_mtime)
    print(f"saved      {saved:%Y-%m-%d at %H:%M}")
    if not (directory / METRICS).exists():
        return
    try:
        lines = list(_report_lines(directory, is_continued=bool(facts["lineage"])))
    except (OSError, ValueError, KeyError, TypeError):
        # What a report says is not part of the folder, and may be of another version.
        lines = [f"scores     {METRICS} is damaged, or of another version"]
    for line in lines:
        print(line)


def _report_lines(directory: Path, *, is_continued: bool) -> Iterator[str]:
    """What was kept, and the rows and scores of the report."""
    numbers = json.loads((directory / METRICS).read_text(encoding="utf-8"))
    for part, rows in numbers["rows"].items():
        yield f"{part:<10} {rows['rows']} rows of {rows['source']}"
    if numbers["run"]["best_step"] == 0 and is_continued:
        yield START_WAS_KEPT
    elif numbers["run"]["best_step"] == 0 and numbers["run"]["method"]:
        yield PROBE_WAS_KEPT
    scores = numbers["systems"][numbers["headline"]["system"]]
    for name in numbers["headline_scores"]:
        value, low, high = scores[name]
        yield f"score      {name} {value:.4f}, 95 % interval {low:.4f} to {high:.4f} (test rows)"

"""Write a report: numbers, figures and page, first to a temporary folder and then in place."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peftcls.evaluation import Evaluation, evaluate_answers
from peftcls.report import wording
from peftcls.report.examples import Group, choose_examples
from peftcls.report.files import FIGURES, METRICS, PAGE, check_report_room
from peftcls.report.numbers import Numbers, gather_numbers
from peftcls.report.run import Run
from peftcls.report.verdict import TITLES, around_the_other, next_step, tell_verdict
from peftcls.tasks.base import Answer, Task

if TYPE_CHECKING:
    from peftcls.report.figures import Drawing

THIS_RUN = "this run"
RESAMPLES = 500
# Labels whose confusion is shown as a table; with more, only the commonest confusions are listed.
MAX_TABLE_LABELS = 25
MAX_CONFUSIONS = 8
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<circle cx="8" cy="8" r="6" fill="#3f7fd0"/></svg>'
)


def write_report(
    directory: str | Path,
    *,
    task: Task,
    train: datasets.Dataset,
    test: datasets.Dataset,
    answers: Sequence[Answer],
    valid: datasets.Dataset | None = None,
    systems: Mapping[str, Sequence[Answer]] | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
    run: Run | None = None,
    count_tokens: Callable[[str], int] | None = None,
    title: str | None = None,
    resamples: int = RESAMPLES,
    crossed: bool = False,
) -> Path:
    """Write a report: `report.html`, `metrics.json` and a folder `figures` of PNGs.

    The page is one file without network or script. It holds texts of the test rows;
    `metrics.json` holds only labels, answers and keywords.

    Args:
        directory: where to write, which may be the adapter folder; it is made if missing, and an
            earlier report in it is replaced.
        task: with its labels learnt.
        train: the rows that were trained on.
        test: the rows that were answered.
        answers: the run's own, one a row of `test`.
        valid: the rows that decided which step was best.
        systems: answers of others to the same rows, by name: baselines, or the model before it was
            trained.
        evaluations: of "this run" and of every one of `systems`, where `evaluate_answers` has made
            them already.
        run: how the model was trained; see `describe_run`.
        count_tokens: the length of a text in tokens; without it words are counted.
        title: of the page; the folder's name unless given.
        resamples: of the bootstraps that are still to be made.
        crossed: whether each test row is a training row that a model answered which had not seen it
            (cross-validation).

    Returns:
        The path of the page.

    Raises:
        ValueError: a system is called "this run", answers are not one a row, or the folder holds
            files of these names that belong to no report; nothing has been written then.
    """
    directory = Path(directory)
    check_report_room(directory)
    if systems and THIS_RUN in systems:
        raise ValueError(
            f"systems has the name {THIS_RUN!r}, which is the run's own; give the other system "
            "another name."
        )
    all_answers = {THIS_RUN: answers, **(systems or {})}
    all_evaluations = dict(evaluations or {})
    for name, system_answers in all_answers.items():
        if name not in all_evaluations:
            all_evaluations[name] = evaluate_answers(
                task, system_answers, test, resamples=resamples
            )
    numbers = gather_numbers(
        task,
        _name_tables(train, valid, test),
        all_answers,
        {name: all_evaluations[name] for name in all_answers},
        run or Run(),
        count_tokens=count_tokens,
        resamples=resamples,
        crossed=crossed,
    )
    groups = choose_examples(task, test, all_answers)
    numbers["examples"] = [group.to_json() for group in groups]
    # Matplotlib takes a moment, and a folder of its own; what writes no report needs neither.
    from peftcls.report.figures import draw_figures

    drawings = draw_figures(numbers)
    page = render_page(numbers, groups, drawings, title or directory.absolute().name)
    metrics = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _write_files(directory, page, metrics, drawings)
    return directory / PAGE


def read_verdict(directory: Path) -> str:
    """The verdict of a folder's report and what to do next; empty without another system."""
    numbers = json.loads((directory / METRICS).read_text(encoding="utf-8"))
    headline = numbers["headline"]
    rows = numbers["rows"]["test"]["rows"]
    if not headline["verdict"]:
        return ""
    return f"{tell_verdict(headline, numbers['score'], rows)} {next_step(headline, rows)}"


def _name_tables(
    train: datasets.Dataset, valid: datasets.Dataset | None, test: datasets.Dataset
) -> dict[str, datasets.Dataset]:
    if valid is None:
        return {"training": train, "test": test}
    return {"training": train, "validation": valid, "test": test}


def _write_files(directory: Path, page: str, metrics: str, drawings: Mapping[str, Drawing]) -> None:
    """Write all files to a temporary folder, and move them into place."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".reporting-", dir=directory))
    try:
        temporary.chmod(0o755)
        (temporary / FIGURES).mkdir()
        for name, drawing in drawings.items():
            (temporary / FIGURES / f"{name}.png").write_bytes(drawing.png)
        (temporary / METRICS).write_text(metrics, encoding="utf-8")
        (temporary / PAGE).write_text(page, encoding="utf-8")
        if (directory / FIGURES).is_dir():
            os.replace(directory / FIGURES, temporary / "former figures")
        # The page last: where it is, all files that it names exist.
        for name in (FIGURES, METRICS, PAGE):
            os.replace(temporary / name, directory / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def render_page(
    numbers: Numbers, groups: Sequence[Group], drawings: Mapping[str, Drawing], title: str
) -> str:
    """Render the page as HTML; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=wording.write_share,
        plain=wording.write_plain,
        count=wording.write_count,
        bytes=wording.write_bytes,
        seconds=wording.write_seconds,
        score=wording.write_score,
        difference=wording.write_difference,
        title_of=wording.score_title,
        meaning_of=wording.score_meaning,
    )
    headline = numbers["headline"]
    test_rows = numbers["rows"]["test"]["rows"]
    figures = {}
    for name, drawing in drawings.items():
        figures[name] = {
            "svg": Markup(drawing.svg),
            "title": drawing.title,
            "alt": drawing.alt,
            "png": f"{FIGURES}/{name}.png",
        }
    return environment.get_template("page.html.jinja").render(
        n=numbers,
        groups=groups,
        figures=figures,
        title=title,
        verdict_title=TITLES.get(headline["verdict"], ""),
        next_step=next_step(headline, test_rows) if headline["verdict"] else "",
        around_the_other=around_the_other(headline, test_rows) if headline["verdict"] else ("", ""),
        own=numbers["headline"]["system"],
        confusion_table=_confusion_table(numbers),
        confusions=_commonest_confusions(numbers),
        labels=sorted(numbers["labels"], key=lambda row: row["f1"]),
        icon=_icon_address(),
        is_share=wording.is_share,
    )


def _confusion_table(numbers: Numbers) -> list[dict[str, Any]] | None:
    """The confusion matrix with each cell's share of its row; None if missing or too large."""
    confusion = numbers["confusion"]
    if confusion is None or len(confusion["right"]) > MAX_TABLE_LABELS:
        return None
    table = []
    for label, counts in zip(confusion["right"], confusion["rows"], strict=True):
        total = max(sum(counts), 1)
        cells = []
        for given, count in zip(confusion["given"], counts, strict=True):
            cells.append({"rows": count, "share": count / total, "right": given == label})
        table.append({"label": label, "cells": cells})
    return table


def _commonest_confusions(numbers: Numbers) -> list[tuple[int, str, str]]:
    """The commonest confusions: number of rows, right label, given label."""
    confusion = numbers["confusion"]
    if confusion is None:
        return []
    confusions = []
    for right, counts in zip(confusion["right"], confusion["rows"], strict=True):
        for given, count in zip(confusion["given"], counts, strict=True):
            if given != right and count:
                confusions.append((count, right, given))
    confusions.sort(key=lambda found: -found[0])
    return confusions[:MAX_CONFUSIONS]


def _icon_address() -> str:
    """The page's icon as a data address, so that a browser does not ask a server for one."""
    return "data:image/svg+xml;base64," + base64.b64encode(ICON.encode()).decode()

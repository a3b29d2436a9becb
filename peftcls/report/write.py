"""Write a report: numbers, figures and page, each beside first and then in place."""

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peftcls.evaluation import Evaluation, evaluate_answers
from peftcls.report import wording
from peftcls.report.examples import Group, choose_examples
from peftcls.report.figures import Drawing, draw_figures
from peftcls.report.files import FIGURES, METRICS, PAGE, check_report_room
from peftcls.report.numbers import Numbers, gather_numbers
from peftcls.report.run import Run
from peftcls.tasks.base import Answer, Task

THIS_RUN = "this run"
RESAMPLES = 500
MOST_CELLS = (
    25  # labels whose confusion is shown as a table; of more, the commonest confusions are listed
)
MIXED_UP = 8


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
) -> Path:
    """Write `report.html`, `metrics.json` and a folder `figures` of PNGs into a folder, which may be the adapter's own.

    The page is one file that needs no network and no script. It holds texts of the test rows; `metrics.json` holds none
    but labels, answers and keywords.

    Args:
        directory: made if it is not there; an earlier report in it is replaced.
        task: with its labels learnt.
        train: the rows that were learnt from.
        test: the rows that were answered.
        answers: the run's own, one a row of `test`.
        valid: the rows that decided which step was best.
        systems: answers of others to the same rows, by name: baselines, or the model before it was trained.
        evaluations: of "this run" and of every one of `systems`, where `evaluate_answers` has made them already.
        run: how the model was trained; see `describe_run`.
        count_tokens: the length of a text in tokens; without it words are counted.
        title: of the page; the folder's name unless given.
        resamples: of the bootstraps that are still to be made.

    Returns:
        The path of the page.

    Raises:
        ValueError: a system is called "this run", answers are not one a row, or the folder holds files of these names that
            are no report; nothing has been written then.
    """
    directory = Path(directory)
    check_report_room(directory)
    if THIS_RUN in (systems := dict(systems or {})):
        raise ValueError(
            f"systems has the name {THIS_RUN!r}, which is the run's own; give the other system another name."
        )
    every = {THIS_RUN: answers, **systems}
    made = {
        name: (evaluations or {}).get(name)
        or evaluate_answers(task, given, test, resamples=resamples)
        for name, given in every.items()
    }
    tables = {
        "training": train,
        **({"validation": valid} if valid is not None else {}),
        "test": test,
    }
    numbers = gather_numbers(
        task, tables, every, made, run or Run(), count_tokens=count_tokens, resamples=resamples
    )
    groups = choose_examples(task, test, every)
    numbers["examples"] = [group.to_json() for group in groups]
    drawings = draw_figures(numbers)
    page = render_page(numbers, groups, drawings, title or directory.absolute().name)
    _put(
        directory,
        page,
        json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        drawings,
    )
    return directory / PAGE


def _put(directory: Path, page: str, metrics: str, drawings: Mapping[str, Drawing]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".reporting-", dir=directory))
    try:
        beside.chmod(0o755)
        (beside / FIGURES).mkdir()
        for name, drawing in drawings.items():
            (beside / FIGURES / f"{name}.png").write_bytes(drawing.png)
        (beside / METRICS).write_text(metrics, encoding="utf-8")
        (beside / PAGE).write_text(page, encoding="utf-8")
        if (directory / FIGURES).is_dir():
            os.replace(directory / FIGURES, beside / "former figures")
        for name in (
            FIGURES,
            METRICS,
            PAGE,
        ):  # the page last: where it is, all that it names is there
            os.replace(beside / name, directory / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def render_page(
    numbers: Numbers, groups: Sequence[Group], drawings: Mapping[str, Drawing], title: str
) -> str:
    """The page as HTML; every text in it is escaped."""
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
    figures = {
        name: {"svg": Markup(d.svg), "title": d.title, "alt": d.alt, "png": f"{FIGURES}/{name}.png"}
        for name, d in drawings.items()
    }
    return environment.get_template("page.html.jinja").render(
        n=numbers,
        groups=groups,
        figures=figures,
        title=title,
        own=numbers["headline"]["system"],
        cells=_cells(numbers),
        mixed=_mixed_up(numbers),
        labels=sorted(numbers["labels"], key=lambda row: row["f1"]),
        icon=_icon(),
        is_share=wording.is_share,
    )


def _cells(numbers: Numbers) -> list[dict[str, Any]] | None:
    """The confusion as lines of cells with the share of their line; None where there is none, or it is too large."""
    if (confusion := numbers["confusion"]) is None or len(confusion["right"]) > MOST_CELLS:
        return None
    return [
        {
            "label": name,
            "cells": [
                {"rows": count, "share": count / max(sum(line), 1), "right": given == name}
                for given, count in zip(confusion["given"], line, strict=True)
            ],
        }
        for name, line in zip(confusion["right"], confusion["rows"], strict=True)
    ]


def _mixed_up(numbers: Numbers) -> list[tuple[int, str, str]]:
    """The commonest confusions: rows, right label, given label."""
    if (confusion := numbers["confusion"]) is None:
        return []
    pairs = [
        (count, right, given)
        for right, line in zip(confusion["right"], confusion["rows"], strict=True)
        for given, count in zip(confusion["given"], line, strict=True)
        if given != right and count
    ]
    return sorted(pairs, key=lambda pair: -pair[0])[:MIXED_UP]


def _icon() -> str:
    """A tab's picture, so that a browser does not ask a server for one."""
    dot = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="6" fill="#3f7fd0"/></svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(dot.encode()).decode()

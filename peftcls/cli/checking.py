"""`peftcls check`: look for errors and oddities in the rows before training."""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator

import datasets
import numpy as np

from peftcls.cli.column_guessing import guess_columns
from peftcls.cli.holding_out import TRAINING_FILE, check_groups_apart, check_split
from peftcls.cli.label_naming import name_labels
from peftcls.cli.option_names import with_options
from peftcls.cli.sources import Source, Use
from peftcls.cli.task_building import task_for
from peftcls.data.column_names import find_column
from peftcls.data.row_batches import each_cell, each_row
from peftcls.errors import RowError
from peftcls.quality.examine import examine_rows
from peftcls.quality.findings import Examination, Finding
from peftcls.quality.group_checks import FEW, OVERLAP, TRAIN
from peftcls.tasks.base import Task
from peftcls.tasks.labels import is_blank

logger = logging.getLogger("peftcls")

MAX_LABELS_SHOWN = 20


def check_files(
    *,
    file: str,
    kind: str | None,
    text: tuple[str, ...],
    label: str | None,
    labels: str | None,
    label_names: str | None,
    separator: str | None,
    prompt: str | None,
    valid: str | None,
    test: str | None,
    group: str | None,
    weight: str | None,
    decimal: str | None,
    model: str | None,
    max_length: int | None,
    max_new_tokens: int | None,
    source: Source,
    as_json: bool,
) -> bool:
    """Print the findings; return whether the rows can be trained on."""
    logger.addFilter(_is_no_finding)
    try:
        train_rows = source.read(file, use="train")
        others: tuple[tuple[str | None, Use], ...] = ((valid, "valid"), (test, "test"))
        other_rows = [
            None if name is None else source.read_other(name, use=use) for name, use in others
        ]
    finally:
        logger.removeFilter(_is_no_finding)
    weight = None if weight is None else find_column(train_rows, weight)
    group = None if group is None else find_column(train_rows, group)
    columns = guess_columns(
        train_rows,
        kind=kind,
        text=text,
        label=label,
        separator=separator,
        other_columns=[name for name in (weight, group) if name is not None],
    )
    settings = {
        "weight": weight,
        "decimal": decimal,
        "labels": labels,
        "separator": separator,
        "prompt": prompt,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
    }
    task = task_for(columns, settings)
    train_rows = name_labels(train_rows, task, label_names, source)
    valid_rows, test_rows = (
        None if rows is None else name_labels(rows, task, label_names, source)
        for rows in other_rows
    )
    tokenizer = None
    if model is not None:
        from peftcls.models.tokenizers import load_tokenizer_only

        tokenizer = load_tokenizer_only(model)
    examination = examine_rows(
        task, train_rows, valid_rows, test_rows, tokenizer=tokenizer, group=group
    )
    if group is not None:
        examination = _with_splits(examination, task, train_rows, valid_rows, test_rows, group)
    if as_json:
        print(json.dumps(examination.to_json(), indent=1, ensure_ascii=False))
    else:
        print(columns)
        print(*_overview(task, train_rows), sep="\n")
        print(with_options(str(examination)))
    return not examination.errors


def _with_splits(
    examination: Examination,
    task: Task,
    train_rows: datasets.Dataset,
    valid_rows: datasets.Dataset | None,
    test_rows: datasets.Dataset | None,
    group: str,
) -> Examination:
    """The findings, and what a training would refuse where groups stay on one side of a split."""
    if examination.errors:
        return examination
    findings = list(examination.findings)
    others = {"--valid": valid_rows, "--test": test_rows}
    given = {option: rows for option, rows in others.items() if rows is not None}
    try:
        check_groups_apart(group, {TRAINING_FILE: train_rows, **given})
    except RowError as error:
        findings.append(Finding("error", OVERLAP, str(error), TRAIN))
    try:
        check_split(task.learn(train_rows), train_rows, valid_rows, test_rows, group=group)
    except RowError as error:
        findings.append(Finding("error", FEW, str(error), TRAIN))
    return Examination.of(findings, examination.split_rows)


def _is_no_finding(record: logging.LogRecord) -> bool:
    """Whether a message is said; what the findings say again, and count, is not."""
    return not getattr(record, "is_finding", False)


def _overview(task: Task, rows: datasets.Dataset) -> Iterator[str]:
    """The labels with their numbers of rows, the commonest first, and the lengths of the texts."""
    if task.answer_kind in ("label", "label_set"):
        counts = _count_labels(task, rows)
        if counts:
            common = counts.most_common(MAX_LABELS_SHOWN)
            listed = ", ".join(f"{name!r} {count}" for name, count in common)
            more = len(counts) - len(common)
            yield f"labels: {listed}{f' and {more} more' if more else ''}"
    lengths = np.zeros(len(rows), dtype=np.int64)
    for column in task.text_columns():
        words = (len(str(cell or "").split()) for cell in each_cell(rows, column))
        lengths += np.fromiter(words, np.int64, len(rows))
    median, long = np.percentile(lengths, [50, 95])
    yield (
        f"words of a row: median {median:.0f}, 95 % of the rows at most {long:.0f}, "
        f"longest {lengths.max()}"
    )


def _count_labels(task: Task, rows: datasets.Dataset) -> Counter[str]:
    """How many rows have each label; rows that cannot be read are left to the findings."""
    counts: Counter[str] = Counter()
    for row in each_row(rows, task.target_columns()):
        if any(map(is_blank, row.values())):
            continue
        with contextlib.suppress(ValueError):
            counts.update(task.gold_of(row))
    return counts

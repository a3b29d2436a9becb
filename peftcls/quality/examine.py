"""Examine the rows of all splits together, before training: errors, leaks and oddities."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import datasets

from peftcls.data.missing_header import name_among_values
from peftcls.data.reading import as_dataset
from peftcls.data.tables import Rows, split_of
from peftcls.errors import RowError
from peftcls.quality.column_rules import ColumnProperties
from peftcls.quality.findings import Examination, Finding
from peftcls.quality.group_checks import group_findings, missing_groups
from peftcls.quality.label_checks import label_findings
from peftcls.quality.leakage import columns_to_check, label_leakage, split_leakage
from peftcls.quality.length_checks import length_findings
from peftcls.quality.number_checks import number_findings, scale_findings
from peftcls.quality.scan import SplitScan, has_closed_labels, scan_rows
from peftcls.quality.split_checks import few_rows, question_findings, repeated_rows, row_findings
from peftcls.quality.weight_checks import weight_findings
from peftcls.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def examine_rows(
    task: Task,
    train: Rows,
    valid: Rows | None = None,
    test: Rows | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    group: str | None = None,
) -> Examination:
    """Check every row of every split and report errors, leaks and oddities.

    Texts are compared by hashes; none is kept. Bad rows are findings; they never raise an
    exception.

    Args:
        task: what the rows mean; missing labels and scales are learnt from the training rows.
        train: the rows to train on; a `DatasetDict` with all three splits is examined whole.
        valid: the rows that choose the best step.
        test: the rows for the final evaluation.
        tokenizer: from `load_base`; with it lengths in tokens are checked too.
        group: the column that says which rows belong together, such as a customer; with it the
            groups are checked too.

    Raises:
        RowError: the training rows have no column `group`.
    """
    if isinstance(train, datasets.DatasetDict | datasets.IterableDatasetDict) and "train" in train:
        valid = train.get("validation") if valid is None else valid
        test = train.get("test") if test is None else test
        train = split_of(train, "train")
    findings: list[Finding] = []
    tables: dict[str, datasets.Dataset] = {}
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        if rows is None:
            continue
        try:
            tables[name] = as_dataset(rows, name)
        except RowError as error:
            findings.append(Finding("error", "no-table", str(error), name))
            continue
        findings += _missing_columns(task, name, tables[name])
    split_rows = {name: len(table) for name, table in tables.items()}
    if findings:
        return Examination.of(findings, split_rows)

    findings += _missing_headers(tables)
    findings += weight_findings(task, tables["train"])
    # A row is not encoded with a weight that is no number.
    if _has_errors(findings, "train"):
        tokenizer = None
    findings += missing_groups(tables, group)
    learnt_task = _learn(task, tables["train"])
    properties = None
    if task.answer_kind == "label":
        properties = ColumnProperties(columns_to_check(tables["train"], task))
    scans = []
    for name, table in tables.items():
        scans.append(
            scan_rows(
                learnt_task or task,
                name,
                table,
                tokenizer if learnt_task else None,
                properties if name == "train" else None,
            )
        )
    for scan in scans:
        findings += _findings_of_split(scan, task, tokenizer)
    findings += _findings_across_splits(scans, task, properties)
    if learnt_task is not None and not _has_errors(findings, "train"):
        problem = learnt_task.table_problem(tables["train"])
        if problem:
            findings.append(Finding("error", "table", f"the table {problem}.", "train"))
        else:
            findings += group_findings(learnt_task, tables["train"], group)
    return Examination.of(findings, split_rows)


def refuse_errors(
    task: Task, train: Rows, valid: Rows | None = None, test: Rows | None = None
) -> Examination:
    """Examine rows before training on them.

    Raises:
        RowError: the examination found an error.
    """
    examination = examine_rows(task, train, valid, test)
    raise_errors(examination)
    return examination


def raise_errors(examination: Examination) -> None:
    """Raise one RowError for all errors that an examination found."""
    sentences = [f"{error.split} rows: {error.sentence}" for error in examination.errors]
    if sentences:
        raise RowError("\n".join(sentences))


def _missing_columns(task: Task, name: str, table: datasets.Dataset) -> list[Finding]:
    columns = task.columns(with_target=True)
    missing = [column for column in columns if column not in table.column_names]
    if not missing:
        return []
    sentence = (
        f"there is no column {missing[0]!r}, only {table.column_names}; "
        f"{type(task).__name__} needs {columns}."
    )
    return [Finding("error", "no-column", sentence, name)]


def _missing_headers(tables: dict[str, datasets.Dataset]) -> list[Finding]:
    findings = {}
    for name, table in tables.items():
        found = name_among_values(table)
        # Splits of one file have the same columns, and are one finding.
        if found is None or found.column in findings:
            continue
        sentence = (
            f"the first line seems to have been read as the names of the columns: {found} If the "
            f"file has no names, give them: columns={list(found.names)} (--columns "
            f"{','.join(found.names)})."
        )
        findings[found.column] = Finding("warning", "no-header", sentence, name)
    return list(findings.values())


def _learn(task: Task, train: datasets.Dataset) -> Task | None:
    """Learn labels or scale from the training rows; None if the rows are too bad for that."""
    try:
        return task.learn(train)
    except RowError:
        # The findings about the rows say what is wrong.
        return None


def _findings_of_split(
    scan: SplitScan, task: Task, tokenizer: PreTrainedTokenizerBase | None
) -> list[Finding]:
    findings = [
        *row_findings(scan),
        *repeated_rows(scan, has_closed_labels=has_closed_labels(task)),
        *question_findings(scan),
        *number_findings(scan),
    ]
    if tokenizer is not None:
        findings += length_findings(scan, task, tokenizer)
    return findings


def _findings_across_splits(
    scans: list[SplitScan], task: Task, properties: ColumnProperties | None
) -> list[Finding]:
    train = scans[0]
    findings: list[Finding] = []
    if has_closed_labels(task):
        findings += label_findings(task, scans)
    findings += scale_findings(task, train)
    for scan in scans[1:]:
        findings += few_rows(scan)
    for first, second in combinations(scans, 2):
        findings += split_leakage(first, second)
    if properties is not None:
        findings += label_leakage(properties, train, task)
    return findings


def _has_errors(findings: list[Finding], split: str) -> bool:
    return any(finding.severity == "error" and finding.split == split for finding in findings)

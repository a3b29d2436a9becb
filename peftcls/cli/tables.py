"""The rows of a run: to train on, to choose the best epoch by, and to score."""

import dataclasses
import os

import datasets
from transformers import PreTrainedTokenizerBase

from peftcls.cli.holding_out import (
    HELD_OUT_SHARE,
    MAX_HELD_OUT_ROWS,
    TRAINING_FILE,
    check_groups_apart,
)
from peftcls.cli.label_naming import name_labels
from peftcls.cli.skipping import SkippedRows
from peftcls.cli.sources import Source, Use
from peftcls.data.reading import RowError, source_name
from peftcls.data.row_numbers import name_part
from peftcls.quality.examine import refuse_errors
from peftcls.quality.findings import Examination
from peftcls.report.wording import write_list
from peftcls.tasks.base import Task
from peftcls.tasks.row_checks import check_rows
from peftcls.tasks.row_weights import check_weights
from peftcls.tasks.splitting import TooFewTextsError, split_off
from peftcls.training.run_info import first_labels


@dataclasses.dataclass
class Tables:
    """The rows of a run: to train on, to choose the best epoch by, and to score."""

    train: datasets.Dataset
    valid: datasets.Dataset
    test: datasets.Dataset


@dataclasses.dataclass(frozen=True)
class Files:
    """FILE, those of --valid and --test, if any; how they are read, and how FILE is split.

    `offers_folds` says whether the command has --folds, which puts no rows aside; `replays` whether
    old rows will be added to those of FILE, which then may have one label alone.
    """

    file: str
    valid: str | None
    test: str | None
    source: Source
    seed: int
    group: str | None = None
    label_names: str | None = None
    skipped: SkippedRows = dataclasses.field(default_factory=lambda: SkippedRows(None, []))
    offers_folds: bool = False
    replays: bool = False


def split_rows(
    files: Files,
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Tables:
    """The checked rows of the given files; what has no file is split off the training rows.

    Args:
        files: of the run.
        task: that has learnt from the rows.
        rows: of FILE.
        tokenizer: where rows that do not fit are left out.
    """
    rows = files.skipped.left_out(task, rows, training=True, tokenizer=tokenizer)
    check_rows(task, rows, training=not files.replays)
    if files.replays:
        # Only the number of labels waits for the old rows.
        check_weights(task, rows)
    valid = _read_checked(task, files.valid, files, tokenizer, "valid")
    test = _read_checked(task, files.test, files, tokenizer, "test")
    share = min(HELD_OUT_SHARE, MAX_HELD_OUT_ROWS / len(rows))
    valid_share = share
    if test is None:
        rows, test = _put_aside(files, task, rows, share, "test")
        valid_share = share / (1 - share)
    if valid is None:
        rows, valid = _put_aside(files, task, rows, valid_share, "valid")
    if files.group is not None:
        check_groups_apart(files.group, {TRAINING_FILE: rows, "--valid": valid, "--test": test})
    name_part(rows, f"{source_name(rows)}, training rows")
    name_part(valid, f"{source_name(valid)}, validation rows")
    name_part(test, f"{source_name(test)}, test rows")
    return Tables(train=rows, valid=valid, test=test)


def _read_checked(
    task: Task,
    file: str | None,
    files: Files,
    tokenizer: PreTrainedTokenizerBase | None,
    use: Use,
) -> datasets.Dataset | None:
    if not file:
        return None
    rows = files.skipped.read_other(files.source, file, use=use)
    rows = name_labels(rows, task, files.label_names, files.source)
    rows = files.skipped.left_out(task, rows, tokenizer=tokenizer)
    check_rows(task, rows)
    return rows


def _put_aside(
    files: Files, task: Task, rows: datasets.Dataset, share: float, name: str
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split a share off the rows, and say so: the rows that are left, and those put aside."""
    try:
        left, aside = split_off(task, rows, share, name=name, seed=files.seed, group=files.group)
    except TooFewTextsError as error:
        raise RowError(_too_few_sentence(files, rows, error.found)) from None
    same = "text" if files.group is None else f"text or {files.group}"
    print_once(
        f"put {len(aside)} rows of {files.file} aside for --{name} (seed {files.seed}"
        f"{_stratification_remark(task, files.group)}, the same {same} never on both sides)"
    )
    return left, aside


def _too_few_sentence(files: Files, rows: datasets.Dataset, found: str) -> str:
    """That too few rows are there to put some aside, with every option that is missing."""
    given = {"--valid": files.valid, "--test": files.test}
    missing = write_list([option for option, file in given.items() if not file])
    folds = " or score by cross-validation with --folds," if files.offers_folds else ""
    return (
        f"{source_name(rows)} has {found}, too few to put {HELD_OUT_SHARE:.0%} of them aside for "
        f"{missing}; give {missing} a file of rows,{folds} or give more rows."
    )


def _stratification_remark(task: Task, group: str | None) -> str:
    if task.answer_kind == "number":
        return ", spread over all numbers"
    if task.labels:
        return ", the same share of every label" if group is None else ", labels spread evenly"
    return ""


def examine(task: Task, tables: Tables) -> Examination:
    """Examine all rows, print the findings that concern test rows, and return the others.

    Raises:
        RowError: the examination found an error.
    """
    examination = refuse_errors(task, tables.train, tables.valid, tables.test)
    other_findings = []
    for finding in examination.findings:
        if "test" not in finding.split:
            other_findings.append(finding)
        elif finding.severity != "note":
            print_once(f"{finding.severity}, {finding.split} rows: {finding.sentence}")
    other_rows = {
        split: count for split, count in examination.split_rows.items() if split != "test"
    }
    return Examination.of(other_findings, other_rows)


def tell_skipped(skipped: SkippedRows, *, writes: bool) -> None:
    """Write the rows that were left out, on the first process only, and say how many they are."""
    if writes and is_first_process():
        skipped.write()
    for sentence in skipped.sentences(written=writes):
        print_once(sentence)


def labels_remark(task: Task) -> str:
    """The labels that were found, for the line that says what was guessed."""
    if not task.labels:
        return ""
    return f" ({len(task.labels)} labels: {first_labels(task.labels)})"


def is_first_process() -> bool:
    """Whether this process is the first one, where torchrun started several."""
    return int(os.environ.get("RANK", 0)) == 0


def print_once(message: str) -> None:
    """Print, on the first process only where torchrun started several."""
    if is_first_process():
        print(message, flush=True)

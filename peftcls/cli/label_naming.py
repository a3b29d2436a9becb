"""The value of `--label-names`: other names for the labels of a table."""

import datasets

from peftcls.cli.sources import Source, pair_of
from peftcls.data.reading import source_name
from peftcls.data.row_batches import each_cell
from peftcls.tasks.base import Task
from peftcls.tasks.label_renaming import NoSuchLabelsError, with_label_names
from peftcls.tasks.labels import is_blank, label_name
from peftcls.tasks.list_cells import DEFAULT_SEPARATOR

MAX_SHOWN_LABELS = 10
OPTION = "--label-names 0=ham,1=spam"


def name_labels(
    rows: datasets.Dataset, task: Task, label_names: str | None, source: Source
) -> datasets.Dataset:
    """The rows with the labels that --label-names gives them.

    Args:
        rows: of a file.
        task: that reads them; it need not have learnt yet.
        label_names: the value of the option; None where it is not given.
        source: how the file was read; of several files, one without these labels stays as it is.

    Raises:
        RowError: there is no such column, or no row has one of these labels.
        ValueError: the option cannot be read, or the task has no labels to name.
    """
    if label_names is None:
        return rows
    pairs = [pair_of(pair, OPTION) for pair in label_names.split(",")]
    names = {label.strip(): name.strip() for label, name in pairs}
    targets = task.target_columns()
    if task.answer_kind not in ("label", "label_set"):
        raise ValueError(
            f"--label-names is for labels; this is a {type(task).__name__} without a list of them."
        )
    if len(targets) > 1:
        raise ValueError(
            "--label-names is for labels in one column; here each label is a column of its own: "
            f"rename it with --map NEW=OLD, such as --map {targets[0]}=OLD."
        )
    separator = (task.separator or DEFAULT_SEPARATOR) if task.multi_label else None
    try:
        return with_label_names(rows, targets[0], names, separator=separator)
    except NoSuchLabelsError:
        if source.several:
            return rows
        raise


def check_some_label_known(rows: datasets.Dataset, task: Task) -> None:
    """Raise ValueError where a table calls all its labels otherwise than the task does.

    Args:
        rows: to be scored.
        task: of a folder.
    """
    targets = task.target_columns()
    if not task.labels or task.answer_kind != "label" or targets[0] not in rows.column_names:
        return
    found: dict[str, None] = {}
    for cell in each_cell(rows, targets[0]):
        if is_blank(cell):
            continue
        name = label_name(cell)
        if name in task.labels or isinstance(cell, list | dict):
            return
        found[name] = None
    if not found:
        return
    listed = list(found)[:MAX_SHOWN_LABELS]
    raise ValueError(
        f"{source_name(rows)} has the labels {listed} in column {targets[0]!r}, and none of the "
        f"adapter's, {list(task.labels)}; name them, such as --label-names "
        f"{listed[0]}={task.labels[0]}."
    )

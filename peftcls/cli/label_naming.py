"""The value of `--label-names`: other names for the labels of a table."""

import datasets

from peftcls.cli.sources import pair_of
from peftcls.tasks.base import Task
from peftcls.tasks.label_renaming import with_label_names
from peftcls.tasks.list_cells import DEFAULT_SEPARATOR

OPTION = "--label-names 0=ham,1=spam"


def name_labels(rows: datasets.Dataset, task: Task, label_names: str | None) -> datasets.Dataset:
    """The rows with the labels that --label-names gives them.

    Args:
        rows: of a file.
        task: that reads them; it need not have learnt yet.
        label_names: the value of the option; None where it is not given.

    Raises:
        RowError: there is no such column, or no row has one of these labels.
        ValueError: the option cannot be read, or the task has no labels to name.
    """
    if label_names is None:
        return rows
    names = dict(pair_of(pair, OPTION) for pair in label_names.split(","))
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
    return with_label_names(rows, targets[0], names, separator=separator)

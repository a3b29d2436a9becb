"""Leak checks: rows that two splits share, and columns that give the label away (label leakage)."""

from collections.abc import Iterator

import datasets
import numpy as np

from peftcls.quality.column_rules import ColumnProperties
from peftcls.quality.findings import MAX_SHOWN_ROWS, Finding
from peftcls.quality.scan import SplitScan
from peftcls.tasks.base import Task

# Held-out recall of a rule on one column. Honest clues in real texts stay below.
MIN_LEAK_RECALL = 0.97


def split_leakage(first: SplitScan, second: SplitScan) -> Iterator[Finding]:
    """Find rows of the second split whose text, or context, is also in the first."""
    splits = f"{first.name} and {second.name}"
    first_hashes = np.array(first.text_hashes, dtype=np.int64)
    second_hashes = np.array(second.text_hashes, dtype=np.int64)
    is_shared = np.isin(second_hashes, first_hashes)
    if is_shared.any():
        rows = np.array(second.row_numbers)[is_shared]
        yield Finding(
            "warning",
            "leak",
            f"{len(rows)} of {second.rows} rows of {second.name} ({is_shared.mean():.1%}) have a "
            f"text that is also in {first.name}, apart from case and spaces: the scores say less "
            "about new rows. Leave them out.",
            splits,
            tuple(rows[:MAX_SHOWN_ROWS].tolist()),
            len(rows),
        )
    shared_contexts = len(first.context_hashes & second.context_hashes)
    if shared_contexts:
        yield Finding(
            "warning",
            "shared-context",
            f"{shared_contexts} of {len(second.context_hashes)} contexts of {second.name} are also "
            f"in {first.name}: the scores say less about new documents.",
            splits,
        )


def columns_to_check(table: datasets.Dataset, task: Task) -> list[str]:
    """The columns that may leak the label: texts and numbers, except the target and the weight."""
    targets = (*task.target_columns(), task.weight)
    columns = []
    for name, feature in table.features.items():
        is_single_value = isinstance(feature, datasets.Value | datasets.ClassLabel)
        if is_single_value and name not in targets:
            columns.append(name)
    return columns


def label_leakage(properties: ColumnProperties, train: SplitScan, task: Task) -> Iterator[Finding]:
    """Find columns of the training rows that predict the label by themselves."""
    read_columns = task.columns(with_target=False)
    for leak in properties.leaking_columns(train.sampled_labels, min_recall=MIN_LEAK_RECALL):
        if leak.column in read_columns:
            advice = "do not let the model read it unless new rows have the same form"
        else:
            advice = "do not add it to what the model reads"
        yield Finding(
            "warning",
            "giveaway",
            f"column {leak.column!r} leaks the label: {leak.rule} is enough to predict it for "
            f"{leak.recall:.1%} of held-out rows, averaged over the labels (chance "
            f"{leak.chance:.1%}); {advice}.",
            train.name,
        )

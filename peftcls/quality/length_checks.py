"""Check lengths: the tokens of rows, and rows that are longer than the model reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from peftcls.quality.findings import Finding, Severity
from peftcls.quality.scan import SplitScan
from peftcls.tasks.base import Task, token_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# With a larger share of shortened rows, the finding is a warning.
MAX_SHORTENED_SHARE = 0.1
PERCENTILES = (50, 90, 99, 100)


def length_findings(
    scan: SplitScan, task: Task, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    """Describe the lengths of the rows in tokens, and count those that are shortened."""
    if not scan.token_counts:
        return
    limit = token_limit(tokenizer, task.max_length)
    few_positions = ""
    if limit < task.max_length:
        few_positions = (
            f": the model has no more positions, fewer than max_length={task.max_length}"
        )
    lengths = np.percentile(scan.token_counts, PERCENTILES)
    quantiles = ", ".join(
        f"{percent} % at most {int(length)}"
        for percent, length in zip(PERCENTILES, lengths, strict=True)
    )
    yield Finding(
        "note",
        "tokens",
        f"tokens of a row's texts: {quantiles}; the limit, including the prompt and special "
        f"tokens, is {limit}{few_positions}.",
        scan.name,
    )
    if scan.shortened.count:
        yield _shortened_rows(scan, task, limit)


def _shortened_rows(scan: SplitScan, task: Task, limit: int) -> Finding:
    rows = f"{scan.shortened.count} of {scan.rows} rows are longer than {limit} tokens"
    if task.reads_windows:
        sentence = f"{rows} and are read in several windows."
        return scan.shortened.finding("note", "windows", sentence, scan.name)
    is_frequent = scan.shortened.count > MAX_SHORTENED_SHARE * scan.rows
    severity: Severity = "warning" if is_frequent else "note"
    sentence = f"{rows} and lose the end of their text; {_advice(task, limit)}."
    return scan.shortened.finding(severity, "shortened", sentence, scan.name)


def _advice(task: Task, limit: int) -> str:
    can_use_windows = hasattr(task, "long_text")
    can_raise_limit = limit >= task.max_length
    if can_raise_limit and can_use_windows:
        return "raise max_length or use long_text='windows'"
    if can_raise_limit:
        return "raise max_length"
    if can_use_windows:
        return "the model cannot read more at once, so use long_text='windows'"
    return "the model cannot read more"

"""What a linear probe that finds answers in texts reads, and its loss.

The same loss as `ExtractiveQA` has, for a head that reads each token of a frozen base: the logits
of a row's candidates are normalised over all of its windows.
"""

import numpy as np
import torch

from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import row_of_windows
from peftcls.tasks.encoding import EncodedTable
from peftcls.training.linear_probe import ROW

MAX_VALUES = 2**24
"""Of all states together: about 240 questions for a base of width 384."""
MIN_QUESTIONS = 16
ENDS = ("starts", "ends")


def questions_to_read(table: EncodedTable, width: int, seed: int) -> list[int]:
    """A random sample of the rows, so many that their states fit into memory; in their order."""
    order = np.random.default_rng(seed).permutation(len(table.lengths))
    values = np.cumsum(table.lengths[order]) * width
    count = max(int(np.searchsorted(values, MAX_VALUES)), MIN_QUESTIONS)
    return sorted(order[:count].tolist())


def span_examples(
    states: torch.Tensor, batch: Batch, *, unanswerable: bool
) -> tuple[torch.Tensor, Batch]:
    """The states of the tokens that an answer can begin or end with, and where it does.

    With `unanswerable` a row has one more candidate, the mean of its windows' first states, whose
    logit is that of there being no answer.

    Args:
        states: what the head reads, of shape (windows, tokens, width).
        batch: of an `ExtractiveQA`, on the same device.
        unanswerable: of the task.
    """
    allowed = batch["allowed"]
    row = row_of_windows(batch["windows"], len(allowed))
    kept = {name: batch[name][allowed] for name in ENDS}
    kept[ROW] = row.unsqueeze(1).expand_as(allowed)[allowed]
    chosen = states[allowed]
    if unanswerable:
        counts = batch["windows"].unsqueeze(1)
        first = (states * batch["null"].unsqueeze(2)).sum(1)
        null = torch.zeros(len(counts), states.shape[2]).to(first).index_add(0, row, first)
        chosen = torch.cat([chosen, null / counts])
        for name in ENDS:
            has_end = torch.zeros(len(counts), device=row.device)
            has_end = has_end.index_add(0, row, batch[name].any(1).float())
            kept[name] = torch.cat([kept[name], has_end == 0])
        kept[ROW] = torch.cat([kept[ROW], torch.arange(len(counts), device=row.device)])
    return chosen.float().cpu(), {name: values.cpu() for name, values in kept.items()}


def span_loss(logits: torch.Tensor, targets: Batch) -> torch.Tensor:
    """The sum of the rows' losses, each the mean of both ends'."""
    row = targets[ROW]
    rows = int(row.max()) + 1
    total = logits.new_zeros(())
    for end, name in enumerate(ENDS):
        every = _logsumexp(logits[:, end], row, rows)
        right = targets[name]
        total = total + (every - _logsumexp(logits[right, end], row[right], rows)).sum() / 2
    return total


def _logsumexp(logits: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """The logarithm of the sum of exponentials over each row's candidates, of shape (rows,)."""
    highest = logits.new_full((rows,), -torch.inf).scatter_reduce(0, row, logits.detach(), "amax")
    scaled = (logits - highest[row]).exp()
    return highest + logits.new_zeros(rows).index_add(0, row, scaled).log()

"""The frozen layers of whole tables, computed once: for all epochs of a training, or for all trainings of a sweep."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from peftcls.engine import frozen_cache
from peftcls.engine.batch import Batch
from peftcls.engine.batching import micro_batches
from peftcls.engine.head_logits import unwrapped
from peftcls.engine.kernels import batch_tokens
from peftcls.tasks.base import Task
from peftcls.tasks.encoding import TrainingTable


@contextlib.contextmanager
def computed_once(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    tables: Sequence[TrainingTable],
    *,
    folder: Path,
    rows: int | None = None,
    shown: bool = True,
) -> Iterator[None]:
    """Within it the layers below everything that is trained hand out states that were computed once.

    Opened around several trainings of a model, it serves them all: what is trained may change, what is frozen may not.

    Args:
        model: with its adapter, or with a part of it opened.
        task: what the tables' rows mean.
        tokenizer: pads them.
        tables: all rows that will be read.
        folder: for the states, where they are too many for the memory.
        rows: at most this many at once.
        shown: with a progress bar, and a sentence about what was done, or why nothing was.
    """
    if not tables or frozen_cache.TRUNK in vars(unwrapped(model)):
        yield
        return
    plans = _plans(model, tables, rows)
    batches = (
        _collated(model, task, tokenizer, t, micro)
        for t, micro in tqdm(
            plans,
            unit="batch",
            desc="frozen layers",
            leave=False,
            disable=not shown or not sys.stderr.isatty(),
        )
    )
    with frozen_cache.frozen_once(
        model,
        batches,
        task.loss_sum,
        folder=folder,
        tokens=sum(int(t.lengths.sum()) for t in tables),
        lines=sum(t.lines for t in tables),
    ) as remark:
        if remark and shown:
            print(remark)
        yield


@contextlib.contextmanager
def computed_for(
    owner: torch.nn.Module,
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: TrainingTable,
    *,
    rows: int | None = None,
) -> Iterator[bool]:
    """Within it a model reads what was computed for another one of the same base; see `trunk.lent`."""
    if owner is model or frozen_cache.TRUNK not in vars(unwrapped(owner)):
        yield owner is model
        return
    _, longest = _plans(model, [table], rows)[0]
    with frozen_cache.lent(
        owner, model, _collated(model, task, tokenizer, table, longest), task.loss_sum
    ) as reads:
        yield reads


def _plans(
    model: torch.nn.Module, tables: Sequence[TrainingTable], rows: int | None
) -> list[tuple[TrainingTable, list[int]]]:
    tokens = batch_tokens(next(model.parameters()).device)
    return [
        (t, micro)
        for t in tables
        for micro in micro_batches(range(len(t.lengths)), t.lengths, tokens=tokens, rows=rows)
    ]


def _collated(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: TrainingTable,
    rows: list[int],
) -> Batch:
    device = next(model.parameters()).device
    return {k: v.to(device) for k, v in task.collate(table.of(rows), tokenizer).items()}

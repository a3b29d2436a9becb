"""Cache the frozen layers of whole tables: for all epochs of a run, or for all runs of a sweep."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from peftcls.engine.batch import Batch
from peftcls.engine.batching import MicroBatch, micro_batches
from peftcls.engine.frozen_layers import caching_frozen_layers, sharing_cache
from peftcls.engine.kernels import batch_tokens
from peftcls.engine.model_state import state_of
from peftcls.logs import shows_bars
from peftcls.tasks.base import Task
from peftcls.tasks.encoding import EncodedTable

logger = logging.getLogger("peftcls")


@contextlib.contextmanager
def caching_tables(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    tables: Sequence[EncodedTable],
    *,
    folder: Path,
    max_rows: int | None = None,
    shows_progress: bool = True,
) -> Iterator[None]:
    """Compute the frozen layers of all rows once, and let the model use the cached states.

    Frozen layers are those below everything that is trained. Around several runs of a model, one
    cache serves them all: trained weights may change, frozen ones may not.

    Args:
        model: with its adapter, or with a part of it trained.
        task: what the tables' rows mean.
        tokenizer: pads them.
        tables: all rows that will be read; without any, nothing is cached.
        folder: for the states, where they are too large for memory.
        max_rows: at most this many rows are computed at once.
        shows_progress: show a progress bar, and log what was cached, or why nothing was.
    """
    if not tables or state_of(model).uses_frozen_cache:
        yield
        return
    plan = _micro_batches(model, tables, max_rows)
    with caching_frozen_layers(
        model,
        _collate_all(model, task, tokenizer, plan, shows_progress),
        task.loss_sum,
        tokens=sum(int(table.lengths.sum()) for table in tables),
        sequences=sum(table.sequences for table in tables),
        folder=folder,
    ) as remark:
        if remark and shows_progress:
            logger.info(remark)
        yield


@contextlib.contextmanager
def sharing_cached_table(
    owner: torch.nn.Module,
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: EncodedTable,
    *,
    max_rows: int | None = None,
) -> Iterator[bool]:
    """Let a model use the states that were cached for another one of the same base.

    Args:
        owner: for which `caching_tables` is open.
        model: made of the same weights, with as many frozen layers.
        task: what the table's rows mean.
        tokenizer: pads them.
        table: some of the rows that were cached.
        max_rows: as for `caching_tables`.

    Yields:
        Whether the model uses the cached states.
    """
    if owner is model or not state_of(owner).uses_frozen_cache:
        yield owner is model
        return
    _, longest = _micro_batches(model, [table], max_rows)[0]
    batch = _collate(model, task, tokenizer, table, longest)
    with sharing_cache(owner, model, batch, task.loss_sum) as uses_cache:
        yield uses_cache


def _micro_batches(
    model: torch.nn.Module, tables: Sequence[EncodedTable], max_rows: int | None
) -> list[tuple[EncodedTable, MicroBatch]]:
    tokens = batch_tokens(next(model.parameters()).device)
    plan = []
    for table in tables:
        rows = range(len(table.lengths))
        for batch in micro_batches(rows, table.lengths, tokens=tokens, rows=max_rows):
            plan.append((table, batch))
    return plan


def _collate_all(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    plan: Sequence[tuple[EncodedTable, MicroBatch]],
    shows_progress: bool,
) -> Iterator[Batch]:
    bar = tqdm(
        plan,
        unit="batch",
        desc="frozen layers",
        leave=False,
        disable=not (shows_progress and shows_bars() and sys.stderr.isatty()),
    )
    for table, rows in bar:
        yield _collate(model, task, tokenizer, table, rows)


def _collate(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    table: EncodedTable,
    rows: Sequence[int],
) -> Batch:
    device = next(model.parameters()).device
    batch = task.collate(table.take(rows), tokenizer)
    return {name: tensor.to(device) for name, tensor in batch.items()}

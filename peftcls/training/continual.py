"""Continual training: continue from a saved folder, replay old rows, and measure forgetting."""

import contextlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.argument_checks import check_argument_types
from peftcls.data.reading import (
    RowError,
    as_dataset,
    name_source,
    source_name,
    without_progress_bars,
)
from peftcls.data.row_numbers import number_rows, row_numbers
from peftcls.data.tables import Rows, split_of
from peftcls.engine.model_choices import DeviceMap, Quantize
from peftcls.metrics import is_lower_better
from peftcls.models.adapter_folder import load_adapter
from peftcls.tasks.base import Task

logger = logging.getLogger("peftcls")

REPLAYED = " rows) and "
"""In the name of new rows and replayed ones, between their files."""

Scores = Mapping[str, Mapping[str, float]]
"""The scores of each table of rows: by the name of the table, then by the name of the score."""


def learn_on(
    directory: str | Path,
    rows: Rows,
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    tasks: Sequence[type[Task]] = (),
    shard: bool | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[torch.nn.Module, Task, PreTrainedTokenizerBase]:
    """Load a saved folder as the start of a new run (continual training).

    What it returns goes to `Trainer`, as the model that `attach_lora` returns does.

    Labels that the folder does not know are added after its own. The head grows: the rows of the
    old labels are kept, and before training the model answers as the folder does. Fitted decisions
    (temperature, thresholds) are dropped, since they belong to the old weights; calibrate again.
    The new folder names the old one in its lineage.

    With validation rows and no new label, the folder's weights are the first candidate for the best
    step; where no step is better, they are what is saved.

    Args:
        directory: written by `Trainer.fit`, `Trainer.save` or `Trainer.calibrate`.
        rows: the new training rows; only their labels are read here.
        base: where the base model is now, if it moved.
        quantize: as in the first training unless given.
        tasks: your own task classes, beside the four built-in ones.
        shard: hold the base in shares, as `load_base` does.
        device_map: spread the base over GPUs, as `load_base` does.

    Raises:
        ValueError: the folder is incomplete or damaged, or the base is not the one it was trained
            on.
        RowError: the rows lack a column that the folder's task reads.
    """
    check_argument_types({"directory": directory, "base": base, "quantize": quantize}, learn_on)
    table = as_dataset(rows)

    def add_labels(task: Task) -> Task:
        return task.extended(table)

    return load_adapter(
        directory,
        base=base,
        quantize=quantize,
        grow=add_labels,
        tasks=tasks,
        shard=shard,
        device_map=device_map,
    )


def with_replay(
    new_rows: Rows,
    old_rows: Rows,
    *,
    share: float = 0.3,
    seed: int = 0,
) -> datasets.Dataset:
    """Add a sample of old rows to new ones, against forgetting (experience replay).

    The method is that of Rolnick et al. 2019, "Experience Replay for Continual Learning".

    Args:
        new_rows: all of them are used; of a `DatasetDict` those of its split "train".
        old_rows: likewise; a sample of them is used, without repetition.
        share: the part of the result that is old; less if there are not enough old rows.
        seed: of the sample.

    Returns:
        The new rows, then the old ones. In messages each has the number of its own file.

    Raises:
        ValueError: the share is below 0, or not below 1.
        RowError: the two tables have no column in common, or a column has values of two types.
    """
    check_argument_types({"share": share, "seed": seed}, with_replay)
    new = as_dataset(split_of(new_rows, "train"), "new_rows")
    old = as_dataset(split_of(old_rows, "train"), "old_rows")
    if not 0 <= share < 1:
        raise ValueError(f"share={share}: expected a share of at least 0 and below 1.")
    chosen, _ = choose_replayed(new, old, share=share, seed=seed)
    return add_old_rows(new, old, chosen)


def add_old_rows(
    new: datasets.Dataset, old: datasets.Dataset, chosen: Sequence[int]
) -> datasets.Dataset:
    """The new rows, then the chosen old ones, counted from 0; each keeps its number in its file.

    Raises:
        RowError: the two tables have no column in common, or a column has values of two types.
    """
    columns = _common_columns(new, old)
    mixed = _concatenate(new.select_columns(columns), old.select(chosen).select_columns(columns))
    named = f"{source_name(new)} ({len(new)}{REPLAYED}{source_name(old)} ({len(chosen)} rows)"
    numbers = [*row_numbers(new), *(row_numbers(old)[index] for index in chosen)]
    return number_rows(name_source(mixed, named), numbers)


def choose_replayed(
    new: datasets.Dataset, old: datasets.Dataset, *, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """The numbers, from 0, of the old rows that are trained on again, and of the others."""
    _warn_of_few(new, old, share)
    count = min(_replay_needed(new, share), len(old))
    order = np.random.default_rng(seed).permutation(len(old)).tolist()
    return order[:count], sorted(order[count:])


def _common_columns(new: datasets.Dataset, old: datasets.Dataset) -> list[str]:
    """The columns that both tables have, without ids that occur in both."""
    columns = [name for name in new.column_names if name in old.column_names]
    if not columns:
        raise RowError(
            f"{source_name(new)} has the columns {new.column_names} and {source_name(old)} "
            f"{old.column_names}; expected some in common."
        )
    # Two files may both count from 1, so the same id can mean two rows.
    if "id" in columns and set(new["id"]) & set(old["id"]):
        columns.remove("id")
    dropped = {*new.column_names, *old.column_names} - set(columns)
    if dropped:
        logger.info(
            "Dropped columns %s: missing in one table, or ids that occur in both.", sorted(dropped)
        )
    return columns


def _replay_needed(new: datasets.Dataset, share: float) -> int:
    """How many old rows make up this share of the result."""
    return round(share / (1 - share) * len(new))


def _warn_of_few(new: datasets.Dataset, old: datasets.Dataset, share: float) -> None:
    """Say it if there are too few old rows to make up this share of the result."""
    count = len(old)
    if _replay_needed(new, share) <= count:
        return
    reached = count / (count + len(new))
    logger.warning(
        "%s has only %d rows to replay: they are %.0f%% of the result, expected %.0f%%.",
        source_name(old),
        count,
        100 * reached,
        100 * share,
    )


def _concatenate(new: datasets.Dataset, old: datasets.Dataset) -> datasets.Dataset:
    """Both tables as one. If their column types differ, one table is cast to those of the other."""
    with without_progress_bars():
        for features in (None, old.features, new.features):
            with contextlib.suppress(ValueError, TypeError, NotImplementedError, pa.ArrowException):
                tables = [new, old]
                if features is not None:
                    tables = [table.cast(features) for table in tables]
                return datasets.concatenate_datasets(tables)
    differing = [name for name in new.column_names if new.features[name] != old.features[name]]
    raise RowError(
        f"{source_name(new)} and {source_name(old)} hold values of different types in column "
        f"{differing[0]!r}; write them in the same way."
    )


def compare_scores(before: Scores, after: Scores, *, scores: Sequence[str] | None = None) -> str:
    """A table of scores before and after a run, which shows what was forgotten.

    Each line has one score of one table of rows, and says "worse" if it got worse.

    Args:
        before: the scores by the name of their rows, for example
            {"old": trainer.evaluate(old), "new": trainer.evaluate(new)}.
        after: likewise.
        scores: the names of the scores that are shown; all unless given.

    Raises:
        ValueError: no table has a score of that name.
    """
    check_argument_types({"scores": scores}, compare_scores)
    for argument, tables in (("before", before), ("after", after)):
        _check_tables(argument, tables)
    names = _score_names(before, after)
    unknown = [score for score in scores or () if score not in names]
    if unknown:
        raise ValueError(f"scores names {unknown[0]!r}, expected some of {names}.")
    lines = []
    for rows in dict.fromkeys([*after, *before]):
        old_scores = before.get(rows, {})
        new_scores = after.get(rows, {})
        shown = scores or [name for name in names if name in old_scores or name in new_scores]
        for score in shown:
            lines.append(_score_line(rows, score, old_scores.get(score), new_scores.get(score)))
    return pd.DataFrame(lines).to_string(index=False)


def _check_tables(argument: str, tables: Scores) -> None:
    """Raise ValueError if an argument of `compare_scores` holds no tables of scores."""
    if isinstance(tables, Mapping) and all(isinstance(own, Mapping) for own in tables.values()):
        return
    raise ValueError(
        f"{argument}={tables!r}: expected scores by the name of their rows, such as "
        "{'new': trainer.evaluate(rows)}."
    )


def _score_names(*tables: Scores) -> list[str]:
    """The names of all scores, in the order of their first occurrence."""
    names: list[str] = []
    for table in tables:
        for scores in table.values():
            names += scores
    return list(dict.fromkeys(names))


def _score_line(rows: str, score: str, old: float | None, new: float | None) -> dict[str, str]:
    """One line of `compare_scores`; a cell is empty if its score is missing."""
    line = {"rows": rows, "score": score, "before": "", "after": "", "difference": "", "": ""}
    if old is not None:
        line["before"] = f"{old:.4f}"
    if new is not None:
        line["after"] = f"{new:.4f}"
    if old is not None and new is not None:
        line["difference"] = f"{new - old:+.4f}"
        is_worse = new > old if is_lower_better(score) else new < old
        line[""] = "worse" if is_worse else ""
    return line


def side_by_side(before: Scores, after: Scores, *, scores: Sequence[str] | None = None) -> str:
    """Deprecated: call `compare_scores`, its new name."""
    warnings.warn("side_by_side is now called compare_scores.", DeprecationWarning, stacklevel=2)
    return compare_scores(before, after, scores=scores)

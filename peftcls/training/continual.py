"""Learning on from a saved folder: more rows, new labels, some of the old rows again, and what was forgotten."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from peftcls.metrics import LOWER_IS_BETTER
from peftcls.models.adapter_folder import load_adapter
from peftcls.models.state import Quantize
from peftcls.tasks.base import Task


def learn_on(
    directory: str | Path,
    rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
) -> tuple[torch.nn.Module, Task, PreTrainedTokenizerBase]:
    """Load a saved folder as the start of a new run; what `Trainer` gets from it is what `attach_lora` would have given.

    Labels that the folder does not know are added behind its own: the head grows, its old rows are kept, and until something
    is learnt it answers as the folder does. Decisions that were fitted (temperature, thresholds) are forgotten, since they
    belong to the old weights; calibrate again. The new folder names the old one in its lineage.

    Args:
        directory: written by `Trainer.fit`, `Trainer.save` or `Trainer.calibrate`.
        rows: that will be learnt from; looked at for labels alone.
        base: where the base model is now, if it moved.
        quantize: as at the first training unless given.

    Raises:
        ValueError: the folder is incomplete or damaged, or the base is not the one it was trained on.
        RowError: the rows lack a column that the folder's task reads.
    """
    check_argument_types({"directory": directory, "base": base, "quantize": quantize}, learn_on)
    table = as_dataset(rows)
    return load_adapter(
        directory, base=base, quantize=quantize, grow=lambda task: task.extended(table)
    )


def with_replay(
    new_rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    old_rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    *,
    share: float = 0.3,
    seed: int = 0,
) -> datasets.Dataset:
    """New rows and a sample of old ones, so that the old are not forgotten (Rolnick et al. 2019, "Experience Replay").

    Args:
        new_rows: all of them are taken.
        old_rows: a sample of them is taken, without repetition.
        share: of the result that is old, as far as there are enough old rows.
        seed: of the sample.

    Raises:
        ValueError: the share is not at least 0 and below 1.
        RowError: the two tables have no column in common.
    """
    check_argument_types({"share": share, "seed": seed}, with_replay)
    new, old = as_dataset(new_rows, "new_rows"), as_dataset(old_rows, "old_rows")
    if not 0 <= share < 1:
        raise ValueError(f"share={share}: expected a share of at least 0 and below 1.")
    columns = [name for name in new.column_names if name in old.column_names]
    if not columns:
        raise RowError(
            f"{source_name(new)} has the columns {new.column_names} and {source_name(old)} {old.column_names}; expected some "
            "in common."
        )
    if "id" in columns and set(new["id"]) & set(old["id"]):  # each file counts its own
        columns.remove("id")
    if left := sorted({*new.column_names, *old.column_names} - set(columns)):
        print(
            f"the columns {left} are left out: not both tables have them, or their values are not each row's own."
        )
    wanted = round(share / (1 - share) * len(new))
    if (count := min(len(old), wanted)) < wanted:
        reached = count / (count + len(new))
        print(
            f"all {count} rows of {source_name(old)} are taken, {reached:.0%} of the result, where {share:.0%} was asked for."
        )
    chosen = np.random.default_rng(seed).permutation(len(old))[:count].tolist()
    first, second = new.select_columns(columns), old.select(chosen).select_columns(columns)
    mixed = _joined(first, second)
    if mixed is None:
        odd = [name for name in columns if first.features[name] != second.features[name]]
        raise RowError(
            f"{source_name(new)} and {source_name(old)} hold other kinds of values in column {odd[0]!r}; write it in one way."
        )
    return name_source(mixed, f"{source_name(new)} and {count} rows of {source_name(old)}")


def _joined(first: datasets.Dataset, second: datasets.Dataset) -> datasets.Dataset | None:
    """Both tables as one, in the kinds of values of either; None where neither can hold the other's."""
    with without_progress_bars():
        for kinds in (None, second.features, first.features):
            with contextlib.suppress(ValueError, TypeError, NotImplementedError, pa.ArrowException):
                return datasets.concatenate_datasets(
                    [table if kinds is None else table.cast(kinds) for table in (first, second)]
                )
    return None


def side_by_side(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    *,
    scores: Sequence[str] | None = None,
) -> str:
    """A table of scores before and after a run, a line for each table of rows, so that forgetting is seen.

    Args:
        before: the scores by the name of their rows, for example {"old": trainer.evaluate(old), "new": ...}.
        after: likewise.
        scores: the names of the scores that are shown; all unless given.

    Raises:
        ValueError: no table has a score of that name.
    """
    check_argument_types({"scores": scores}, side_by_side)
    known = list(
        dict.fromkeys(score for found in (*before.values(), *after.values()) for score in found)
    )
    if unknown := [score for score in scores or () if score not in known]:
        raise ValueError(f"scores names {unknown[0]!r}, expected some of {known}.")
    lines = []
    for name in dict.fromkeys([*after, *before]):
        for score in scores or [
            score for score in known if score in {**before.get(name, {}), **after.get(name, {})}
        ]:
            old, new = before.get(name, {}).get(score), after.get(name, {}).get(score)
            there = old is not None and new is not None
            worse = there and (new > old if score in LOWER_IS_BETTER else new < old)  # type: ignore[operator]
            lines.append(
                {
                    "rows": name,
                    "score": score,
                    "before": "" if old is None else f"{old:.4f}",
                    "after": "" if new is None else f"{new:.4f}",
                    "difference": f"{new - old:+.4f}" if there else "",  # type: ignore[operator]
                    "": "worse" if worse else "",
                }
            )
    return pd.DataFrame(lines).to_string(index=False)

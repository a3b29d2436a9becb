"""The adapters of a service: loaded on as few bases as possible, each known by its name."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row
from peftcls.inference.loading import load_predictor
from peftcls.inference.multi_loading import group_by_base
from peftcls.inference.multi_predictor import ManyPredictor
from peftcls.inference.predictor import Predictor, tokenize_rows
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.row_checks import check_mappings

Adapters = str | Path | ManyPredictor | Sequence[str | Path] | Mapping[str, Predictor]


@dataclasses.dataclass(frozen=True)
class Served:
    """An adapter that answers requests.

    Args:
        task: what its rows mean.
        tokenizer: of its folder.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase

    def tokenize(self, rows: Sequence[Row], *, source: str) -> list[Feature]:
        """Check rows and tokenize them.

        Args:
            rows: mappings with the columns of the task, and perhaps others.
            source: what messages call the rows.

        Raises:
            RowError: the task cannot read one of them.
        """
        check_mappings(self.task, rows, range(len(rows)), source=source)
        selected = []
        for row in rows:
            columns = self.task.columns_among(row, with_target=False)
            selected.append({name: row[name] for name in columns})
        return tokenize_rows(
            self.task, selected, self.tokenizer, source=source, numbers=itertools.count(1)
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """Adapters whose rows are answered together, because they share a base.

    Args:
        adapters: by name.
        answer: answers tokenized rows, each with the adapter of its name, at most so many at once.
        device: where the model computes.
    """

    adapters: dict[str, Served]
    answer: Callable[[Sequence[str], Sequence[Feature], int], list[Answer]]
    device: torch.device


def load_groups(
    adapters: Adapters, *, base: str | Path | None = None, device: str | None = None
) -> list[Group]:
    """Load folders, or take predictors that are loaded.

    Args:
        adapters: a folder or several; or predictors by name; or a `ManyPredictor`.
        base: where the base model of the folders is now, if it moved.
        device: where folders compute.

    Raises:
        ValueError: there is none, a folder cannot be loaded, or two have the same name.
    """
    if isinstance(adapters, ManyPredictor):
        return [_group_of_many(adapters)]
    if isinstance(adapters, Mapping):
        _check_predictors(adapters)
        return [_group_of_one(name, predictor) for name, predictor in adapters.items()]
    folders = [adapters] if isinstance(adapters, str | Path) else adapters
    if not isinstance(folders, Sequence) or not all(isinstance(f, str | Path) for f in folders):
        raise ValueError(
            f"adapters={adapters!r}: expected folders, predictors by name such as "
            "{'spam': predictor}, or a ManyPredictor."
        )
    return _load_folders([Path(folder) for folder in folders], base, device)


def _check_predictors(predictors: Mapping[Any, Any]) -> None:
    if not predictors:
        raise _no_adapter()
    for name, predictor in predictors.items():
        if not isinstance(name, str) or not isinstance(predictor, Predictor):
            raise ValueError(
                f"adapters has {name!r}: {type(predictor).__name__}, expected names with a "
                "Predictor each, from load_predictor(folder)."
            )


def _load_folders(
    folders: Sequence[Path], base: str | Path | None, device: str | None
) -> list[Group]:
    if not folders:
        raise _no_adapter()
    by_name: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in by_name:
            raise ValueError(
                f"{by_name[name]} and {folder} have the same name, and an adapter is known by the "
                "name of its folder; rename one of the folders."
            )
        by_name[name] = folder
    groups = []
    for members in group_by_base(folders):
        if len(members) == 1:
            predictor = load_predictor(members[0], base=base, device=device)
            groups.append(_group_of_one(members[0].resolve().name, predictor))
        else:
            groups.append(_group_of_many(load_predictor(members, base=base, device=device)))
    return groups


def _group_of_one(name: str, predictor: Predictor) -> Group:
    def answer(names: Sequence[str], features: Sequence[Feature], batch_size: int) -> list[Answer]:
        return predictor.answer(features, batch_size)

    device = next(predictor.model.parameters()).device
    return Group({name: Served(predictor.task, predictor.tokenizer)}, answer, device)


def _group_of_many(predictor: ManyPredictor) -> Group:
    served = {
        name: Served(predictor.tasks[name], predictor.tokenizers[name]) for name in predictor.names
    }
    return Group(served, predictor.answer, predictor.model.device)


def _no_adapter() -> ValueError:
    return ValueError("there is no adapter to serve, expected at least one.")

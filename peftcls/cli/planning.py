"""`peftcls plan`: what a training takes on each GPU, before anything is loaded."""

import json
from typing import Any

import torch

from peftcls.cli.task_building import MAX_KEYWORD_TOKENS
from peftcls.cli.train_setup import adapter_targets, parse_layers
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.training.planning import plan_memory


def print_plan(
    *,
    model: str,
    kind: str,
    max_length: int | None,
    max_new_tokens: int | None,
    targets: str | None,
    layers: str | None,
    dtype: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Print the plan; `settings` are arguments of `plan_memory`.

    Raises:
        ValueError: as `plan_memory`, or an option does not fit the kind of task.
    """
    plan = plan_memory(
        model,
        _task(kind, max_length, max_new_tokens),
        targets=adapter_targets(targets),
        layers=None if layers is None else parse_layers(layers),
        dtype=getattr(torch, dtype),
        **settings,
    )
    if as_json:
        print(json.dumps(plan.to_json(), indent=1, ensure_ascii=False))
    else:
        print(plan)


def _task(kind: str, max_length: int | None, max_new_tokens: int | None) -> Task:
    """A task of a kind. How many labels it has changes next to nothing, so it has two."""
    settings: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    if kind in ("instruction", "keywords"):
        if max_new_tokens is not None:
            settings["max_new_tokens"] = max_new_tokens
        elif kind == "keywords":
            settings["max_new_tokens"] = MAX_KEYWORD_TOKENS
        return Instruction(**settings)
    if max_new_tokens is not None:
        raise ValueError(f"--max-new-tokens cannot be used with --task {kind}.")
    if kind == "qa":
        return ExtractiveQA(**settings)
    return Classification(labels=("0", "1"), **settings)

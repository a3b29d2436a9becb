"""What a model trains, saves and freezes, in numbers, and what identifies a training run."""

from collections.abc import Sequence
from typing import Any

import datasets
import pandas as pd
import torch

from peftcls.engine.model_state import base_facts, state_of
from peftcls.engine.probes import describe_capabilities
from peftcls.models import adapter_methods
from peftcls.models.trainable import trained_parameters
from peftcls.processors import usable_processors
from peftcls.tasks.base import Task
from peftcls.training.config import TrainConfig
from peftcls.training.prepare import Prepared

# Settings that may be others when a run is resumed.
FREE_ON_RESUME = (
    # These do not change the weights.
    "output_dir",
    "log_every",
    "trackers",
    "cache_dir",
    # These change them only by rounding, and by the dropout masks that are drawn.
    "gradient_checkpointing",
    "fast_paths",
    # This changes them only where the run would have ended otherwise.
    "max_skipped_steps",
)
ADAPTER_MARKS = (".lora_", "ia3_")
MAX_LISTED_LABELS = 10


def model_parts(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Count the tensors, parameters and bytes of each part of a model.

    The parts are the adapter, the head, trained blocks of the base, and the frozen base itself,
    which is never saved.
    """
    facts = base_facts(model)
    trained = trained_parameters(model)
    base_part = f"base {facts.name}"
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in trained:
            part = _trained_part(name, facts.heads)
        elif ".original_module." in name:
            # PEFT's untouched copy of the head.
            continue
        else:
            part = base_part
        parts.setdefault(part, []).append(parameter)
    return [
        {
            "part": part,
            "trained": part != base_part,
            "tensors": len(tensors),
            "parameters": sum(t.numel() for t in tensors),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
        }
        for part, tensors in sorted(parts.items())
    ]


def describe_model(model: torch.nn.Module, task: Task) -> str:
    """Describe a model: the sizes of its parts, its fast paths, and what it was continued from.

    On a CPU also the number of threads that compute.

    New labels are named: a label in another spelling would become one of them.
    """
    rows = [
        {
            "part": part["part"],
            "trained": "yes" if part["trained"] else "no",
            "saved": "yes" if part["trained"] else "no",
            "parameters": f"{part['parameters']:,}",
            "bytes": f"{part['bytes']:,}",
        }
        for part in model_parts(model)
    ]
    lines = [pd.DataFrame(rows).to_string(index=False), describe_capabilities(model)]
    if next(model.parameters()).device.type == "cpu":
        lines.append(f"threads: {torch.get_num_threads()}, of {usable_processors()} processors")
    lineage = state_of(model).lineage
    if lineage:
        lines.append(_describe_start(lineage[-1], task))
    return "\n".join(lines)


def first_labels(labels: Sequence[str]) -> str:
    """The first few labels, and three dots if there are more."""
    listed = [repr(label) for label in labels[:MAX_LISTED_LABELS]]
    if len(labels) > MAX_LISTED_LABELS:
        listed.append("...")
    return ", ".join(listed)


def identify_run(
    model: torch.nn.Module, task: Task, config: TrainConfig, prepared: Prepared
) -> dict[str, Any]:
    """All that must be the same when a run is resumed, by the names that a message uses.

    Rows are compared by what is in the columns that the task reads, wherever they come from.
    """
    facts = base_facts(model)
    validation_rows = None
    if prepared.valid_rows is not None:
        validation_rows = f"{len(prepared.valid_rows)} rows, sum {prepared.valid_sum}"
    identity = {
        "task": task.to_json(),
        "method": state_of(model).method,
        "adapter": adapter_methods.method_settings(model),
        "start": [folder["sum"] for folder in state_of(model).lineage],
        "base": facts.fingerprint,
        "dtype": facts.dtype,
        "training rows": f"{len(prepared.train_rows)} rows, sum {prepared.train_sum}",
        "validation rows": validation_rows,
        "trained tensors": {name: list(p.shape) for name, p in trained_parameters(model).items()},
    }
    for name, value in config.to_json().items():
        if name not in FREE_ON_RESUME:
            identity[name] = value
    return identity


def _trained_part(name: str, heads: tuple[str, ...]) -> str:
    if any(mark in name for mark in ADAPTER_MARKS):
        return "adapter"
    if any(f".{head}." in f".{name}" for head in heads):
        return "head"
    return "block"


def knows_labels(model: torch.nn.Module, task: Task) -> bool:
    """Whether a model was continued from a folder that knows all labels of its task.

    Such a model can be the best step before its first one; with a label that is new it cannot: it
    would never give that label.
    """
    lineage = state_of(model).lineage
    return bool(lineage) and not _added_labels(lineage[-1], task)


def labels_without_judge(
    model: torch.nn.Module, task: Task, valid_rows: datasets.Dataset | None
) -> list[str]:
    """The labels that are new since the folder a model was continued from, if no row has any.

    Such rows cannot choose the best step: the fewer steps, the better they would be answered.

    Args:
        model: with its adapter.
        task: with all labels.
        valid_rows: those that are to choose; None for none.
    """
    lineage = state_of(model).lineage
    added = _added_labels(lineage[-1], task) if lineage else []
    if valid_rows is None or not added:
        return []
    read = valid_rows.select_columns(task.columns_among(valid_rows.column_names, with_target=True))
    judged = {label for row in read for label in task.gold_of(row)}
    return [] if judged & set(added) else added


def _added_labels(start: dict[str, Any], task: Task) -> list[str]:
    """The labels of a task that the folder it was continued from does not know."""
    known = start["task"].get("labels") or []
    return [label for label in task.labels or () if label not in known]


def _describe_start(start: dict[str, Any], task: Task) -> str:
    """The folder that a model was continued from, and the labels that are new since."""
    line = f"continued from {start['folder']}"
    known = start["task"].get("labels") or []
    added = _added_labels(start, task)
    if added:
        line += f"; {len(added)} added to its {len(known)} labels: {first_labels(added)}"
    return line

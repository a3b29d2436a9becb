"""What of a model is trained, saved and frozen, in numbers, and what makes a run the one that it is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
import pandas as pd
import torch

from peftcls.models import adapter_methods
from peftcls.models.adapter_folder import LINEAGE
from peftcls.models.state import base_facts
from peftcls.models.trainable import trained_parameters
from peftcls.tasks.base import Task
from peftcls.tasks.encoding import TrainingTable, content_sum
from peftcls.training.config import TrainConfig

FREE_ON_RESUME = (
    "output_dir",
    "log_every",
    "trackers",  # they do not change the weights
    "gradient_checkpointing",
    "cuda_graphs",  # they do so by rounding, and by the dropout masks that are drawn
    "max_skipped_steps",
)  # it does so where the run would have ended without
SHOWN_LABELS = 10


def model_parts(model: torch.nn.Module) -> list[dict[str, Any]]:
    """The adapter, the head, and the frozen rest that is never saved: for each its tensors, parameters and bytes."""
    facts, trained = base_facts(model), trained_parameters(model)
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in trained:
            adapter = any(mark in name for mark in (".lora_", "ia3_"))
            parts.setdefault(
                "adapter" if adapter else "head" if _in_head(name, facts.heads) else "block", []
            ).append(parameter)
        elif ".original_module." not in name:  # PEFT's untouched copy of the head
            parts.setdefault(f"base {facts.name}", []).append(parameter)
    return [
        {
            "part": part,
            "trained": not part.startswith("base"),
            "tensors": len(tensors),
            "parameters": sum(t.numel() for t in tensors),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
        }
        for part, tensors in sorted(parts.items())
    ]


def describe_model(model: torch.nn.Module, task: Task) -> str:
    """A table of counts and bytes: the adapter, the head, and the frozen rest that is never saved; and what is learnt on from.

    Labels that the earlier folder does not know are named: a label in another spelling would become one of them.
    """
    rows = [
        {
            "part": part["part"],
            "trained": part["trained"],
            "saved": part["trained"],
            "parameters": f"{part['parameters']:,}",
            "bytes": f"{part['bytes']:,}",
        }
        for part in model_parts(model)
    ]
    told = pd.DataFrame(rows).replace({True: "yes", False: "no"}).to_string(index=False)
    if lineage := vars(model).get(LINEAGE):
        known, labels = lineage[-1]["task"].get("labels") or [], getattr(task, "labels", None) or ()
        added = [label for label in labels if label not in known]
        told += f"\nlearning on from {lineage[-1]['folder']}"
        told += (
            f"; {len(added)} added to its {len(known)} labels: {first_labels(added)}"
            if added
            else ""
        )
    return told


def first_labels(labels: Sequence[str]) -> str:
    """The first few labels, and three dots where there are more."""
    return ", ".join(
        [*map(repr, labels[:SHOWN_LABELS]), *(["..."] if len(labels) > SHOWN_LABELS else [])]
    )


def identify_run(
    model: torch.nn.Module,
    task: Task,
    config: TrainConfig,
    table: TrainingTable,
    valid: datasets.Dataset | None,
) -> dict[str, Any]:
    """All that must be the same when a run is taken up again, by the names that a message uses.

    Rows are compared by what is in the columns that the task reads, wherever they come from.
    """
    facts = base_facts(model)
    held = (
        None if valid is None else content_sum(valid.select_columns(task.columns(with_target=True)))
    )
    return {
        "task": task.to_json(),
        "method": vars(model).get(adapter_methods.METHOD),
        "adapter": adapter_methods.method_settings(model),
        "start": [old["sum"] for old in vars(model).get(LINEAGE, [])],
        "base": facts.fingerprint,
        "dtype": facts.dtype,
        "training rows": f"{len(table.features)} rows, sum {content_sum(table.features)}",
        "validation rows": None if valid is None else f"{len(valid)} rows, sum {held}",
        "trained tensors": {name: list(p.shape) for name, p in trained_parameters(model).items()},
        **{
            name: value
            for name, value in dataclasses.asdict(config).items()
            if name not in FREE_ON_RESUME
        },
    }


def _in_head(name: str, heads: tuple[str, ...]) -> bool:
    return any(f".{head}." in f".{name}" for head in heads)

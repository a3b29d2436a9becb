"""Describing an adapter folder from its files; the base is not needed."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcls.models.adapter_manifest import MANIFEST, read_manifest, read_task
from peftcls.models.folder_safety import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PART_WEIGHTS,
    check_adapter_folder,
    tensor_shapes,
)
from peftcls.tasks.base import Task

ADAPTER_SETTINGS = ("r", "target_r", "lora_alpha", "lora_dropout")
"""PEFT's settings that a description contains."""
OWN_LINES = ("name", "labels", "decisions", "template")
"""Fields of a task that are not listed among its settings."""


def describe_folder(directory: str | Path, *, tasks: Sequence[type[Task]] = ()) -> dict[str, Any]:
    """Describe a folder, ready for JSON: task, base, adapter, tensors, lineage, versions, sizes.

    Args:
        directory: written by `Trainer.save`.
        tasks: your own task classes, beside the four built-in ones.

    Raises:
        ValueError: the folder is incomplete or damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    check_adapter_folder(directory, manifest)
    read_task(directory, manifest, tasks=tasks)
    return folder_facts(directory, manifest)


def folder_facts(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of `describe_folder`, of a folder that was checked."""
    has_adapter = (directory / ADAPTER_WEIGHTS).is_file()
    weights = ADAPTER_WEIGHTS if has_adapter else PART_WEIGHTS
    started_from = manifest.get("started_from")
    earlier = [] if started_from is None else [started_from]
    file_names = [*sorted(manifest["files"]), MANIFEST]
    return {
        "folder": str(directory),
        "task": manifest["task"],
        "base": manifest["base"],
        "adapter": _adapter_settings(directory, manifest) if has_adapter else None,
        "weights": weights,
        "tensors": tensor_shapes(directory / weights),
        "lineage": [*earlier, *manifest.get("lineage", [])],
        "versions": manifest.get("versions", {}),
        "sum": manifest["sum"],
        "bytes": {name: (directory / name).stat().st_size for name in file_names},
    }


def _adapter_settings(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"method": manifest.get("method")}
    text = (directory / ADAPTER_CONFIG).read_text(encoding="utf-8")
    config = json.loads(text)
    for name in ADAPTER_SETTINGS:
        if config.get(name) is not None:
            settings[name] = config[name]
    settings["targets"] = sorted(config.get("target_modules") or ())
    return settings


# As text


def tell_folder(facts: dict[str, Any]) -> str:
    """The facts of `describe_folder` as lines of text."""
    lines = [
        ("folder", f"{facts['folder']}, {sum(facts['bytes'].values()):,} bytes"),
        *_task_lines(facts["task"]),
        *_base_lines(facts["base"]),
        ("adapter", tell_adapter(facts)),
        *_tensor_lines(facts),
    ]
    for earlier in facts["lineage"]:
        lines.append(("continued", f"from {earlier['folder']} ({earlier['sum'][:12]})"))
    lines.append(("versions", tell_versions(facts)))
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _task_lines(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    settings = []
    for name, value in task.items():
        if name not in OWN_LINES and value is not None:
            settings.append(f"{name}={value!r}")
    yield "task", f"{task['name']} ({', '.join(settings)})"
    if task.get("labels"):
        yield "labels", ", ".join(map(repr, task["labels"]))
    if task.get("template"):
        yield "template", repr(task["template"])
    decisions = tell_decisions(task)
    if decisions:
        yield "decisions", decisions


def _base_lines(base: dict[str, Any]) -> Iterator[tuple[str, str]]:
    revision = f" at {base['revision']}" if base["revision"] else ""
    yield "base", f"{base['name']}{revision}"
    parts = [
        f"fingerprint {base['fingerprint'][:12]}",
        base["quantize"] or "not quantized",
        base["dtype"],
    ]
    if base.get("random_seed") is not None:
        parts.append(f"random weights of seed {base['random_seed']}")
    yield "", ", ".join(parts)


def _tensor_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tensors: dict[str, list[int]] = facts["tensors"]
    weights = facts["weights"]
    numbers = sum(math.prod(shape) for shape in tensors.values())
    yield (
        "trained",
        f"{numbers:,} numbers in {len(tensors)} tensors of {weights}, "
        f"{facts['bytes'][weights]:,} bytes",
    )
    # The tensors of all layers that differ by the layer's number only are one line.
    counts: Counter[str] = Counter()
    for name, shape in tensors.items():
        in_all_layers = re.sub(r"[.][0-9]+[.]", ".*.", name)
        counts[f"{in_all_layers} {'x'.join(map(str, shape))}"] += 1
    for text, count in counts.items():
        yield "", f"{text}, in {count} layers" if count > 1 else text


def tell_versions(facts: dict[str, Any]) -> str:
    """The libraries that wrote the folder, with their versions."""
    return ", ".join(f"{name} {number}" for name, number in facts["versions"].items())


def tell_adapter(facts: dict[str, Any]) -> str:
    """How the base was changed, in a few words."""
    adapter = facts["adapter"]
    if adapter is None:
        parts = sorted({_module_of(name) for name in facts["tensors"]})
        return f"none; a part of the model was trained itself ({', '.join(parts)})"
    words = [str(adapter["method"])]
    # AdaLoRA has a target rank, and r means nothing there.
    if "target_r" in adapter:
        words.append(f"rank {adapter['target_r']}")
    elif "r" in adapter:
        words.append(f"rank {adapter['r']}")
    if "lora_alpha" in adapter:
        words.append(f"alpha {adapter['lora_alpha']}")
    endings = sorted({target.rpartition(".")[2] for target in adapter["targets"]})
    words.append(f"on {', '.join(endings)}")
    return ", ".join(words)


def tell_decisions(task: dict[str, Any]) -> str:
    """What was fitted on held-out rows: temperature and thresholds; empty where nothing was."""
    decisions = task.get("decisions") or {}
    parts = []
    if decisions.get("temperature", 1.0) != 1.0:
        parts.append(f"temperature {decisions['temperature']:.3g}")
    thresholds = decisions.get("thresholds")
    if thresholds:
        listed = ", ".join(f"{name!r} {value:.3g}" for name, value in thresholds.items())
        parts.append(f"thresholds {listed}")
    if decisions.get("abstain_below") is not None:
        parts.append(f"no label below the probability {decisions['abstain_below']:.3g}")
    if task.get("null_threshold", 0.5) != 0.5:
        parts.append(f"no answer above the null probability {task['null_threshold']:.3g}")
    return "; ".join(parts)


def _module_of(name: str) -> str:
    """A tensor's module down to the number of its layer: "encoder.layer.1" for the whole block."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1])

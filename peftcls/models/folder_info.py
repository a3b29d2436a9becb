"""What is in an adapter folder, told from its files alone: the base is not needed."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import safe_open

from peftcls.models.adapter_folder import MANIFEST, read_manifest, read_task
from peftcls.models.folder_safety import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PART_WEIGHTS,
    check_adapter_folder,
)

KEPT = ("r", "target_r", "lora_alpha", "lora_dropout")


def describe_folder(directory: str | Path) -> dict[str, Any]:
    """The facts of a folder, ready for JSON: task, base, adapter, tensors, lineage, versions and sizes.

    Raises:
        ValueError: the folder is incomplete or damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    check_adapter_folder(directory, manifest)
    read_task(directory, manifest)
    adapter: dict[str, Any] = {"method": manifest.get("method")}
    if (file := directory / ADAPTER_CONFIG).is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        adapter |= {name: config[name] for name in KEPT if config.get(name) is not None}
        adapter["targets"] = sorted(config.get("target_modules") or ())
    weights = directory / (
        ADAPTER_WEIGHTS if (directory / ADAPTER_WEIGHTS).is_file() else PART_WEIGHTS
    )
    tensors: dict[str, list[int]] = {}
    with safe_open(weights, framework="pt") as opened:
        for name in sorted(opened.keys()):
            tensors[name] = list(opened.get_slice(name).get_shape())
    sizes = {
        name: (directory / name).stat().st_size for name in [*sorted(manifest["files"]), MANIFEST]
    }
    return {
        "folder": str(directory),
        "task": manifest["task"],
        "base": manifest["base"],
        "adapter": adapter if weights.name == ADAPTER_WEIGHTS else None,
        "weights": weights.name,
        "tensors": tensors,
        "lineage": manifest.get("lineage", []),
        "versions": manifest.get("versions", {}),
        "sum": manifest["sum"],
        "bytes": sizes,
    }


def tell_folder(facts: dict[str, Any]) -> str:
    """The facts of `describe_folder` in lines for a reader."""
    task, base = facts["task"], facts["base"]
    apart = ("name", "labels", "decisions", "template")
    settings = {
        name: value for name, value in task.items() if name not in apart and value is not None
    }
    trained = sum(math.prod(shape) for shape in facts["tensors"].values())
    lines = [
        ("folder", f"{facts['folder']}, {sum(facts['bytes'].values()):,} bytes"),
        (
            "task",
            f"{task['name']} ({', '.join(f'{name}={value!r}' for name, value in settings.items())})",
        ),
    ]
    lines += [("labels", ", ".join(map(repr, task["labels"])))] if task.get("labels") else []
    lines += [("template", repr(task["template"]))] if task.get("template") else []
    lines += [("decisions", told)] if (told := tell_decisions(task)) else []
    lines += [
        ("base", f"{base['name']}" + (f" at {base['revision']}" if base["revision"] else "")),
        (
            "",
            f"fingerprint {base['fingerprint'][:12]}, {base['quantize'] or 'not quantized'}, {base['dtype']}"
            + (
                ""
                if base.get("random_seed") is None
                else f", random weights of seed {base['random_seed']}"
            ),
        ),
    ]
    lines += [
        ("adapter", tell_adapter(facts)),
        (
            "trained",
            f"{trained:,} numbers in {len(facts['tensors'])} tensors of {facts['weights']}, "
            f"{facts['bytes'][facts['weights']]:,} bytes",
        ),
    ]
    alike = Counter(
        f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} {'x'.join(map(str, shape))}"
        for name, shape in facts["tensors"].items()
    )
    lines += [
        ("", told + (f", in {count} layers" if count > 1 else "")) for told, count in alike.items()
    ]
    lines += [
        ("learnt on", f"from {old['folder']} ({old['sum'][:12]})") for old in facts["lineage"]
    ]
    lines += [
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    ]
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def tell_adapter(facts: dict[str, Any]) -> str:
    """How the base was changed, in a few words."""
    if (adapter := facts["adapter"]) is None:
        return f"none; a part of the model was trained itself ({', '.join(sorted({_place(name) for name in facts['tensors']}))})"
    ends = sorted({target.rpartition(".")[2] for target in adapter["targets"]})
    size = "".join(
        f", {name} {adapter[key]}"
        for key, name in (("target_r", "rank"), ("r", "rank"), ("lora_alpha", "alpha"))
        if key in adapter and not (key == "r" and "target_r" in adapter)
    )
    return f"{adapter['method']}{size}, on {', '.join(ends)}"


def tell_decisions(task: dict[str, Any]) -> str:
    """What was fitted on rows that were not learnt from; empty where nothing was."""
    decisions = task.get("decisions") or {}
    parts = (
        [f"temperature {decisions['temperature']:.3g}"]
        if decisions.get("temperature", 1.0) != 1.0
        else []
    )
    if thresholds := decisions.get("thresholds"):
        parts.append(
            "thresholds " + ", ".join(f"{name!r} {value:.3g}" for name, value in thresholds.items())
        )
    if decisions.get("abstain_below") is not None:
        parts.append(f"no label below the probability {decisions['abstain_below']:.3g}")
    if task.get("null_threshold", 0.5) != 0.5:
        parts.append(f"no answer above the null probability {task['null_threshold']:.3g}")
    return "; ".join(parts)


def _place(name: str) -> str:
    """A tensor's module down to the number of its layer: "encoder.layer.1" for all of that block."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])

"""What of a model is trained, saved and frozen, in numbers."""

from typing import Any

import pandas as pd
import torch

from peftcls.adapt import trained_parameters
from peftcls.models import base_facts


def model_parts(model: torch.nn.Module) -> list[dict[str, Any]]:
    """The adapter, the head, and the frozen rest that is never saved: for each its tensors, parameters and bytes."""
    facts, trained = base_facts(model), trained_parameters(model)
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in trained:
            adapter = any(mark in name for mark in (".lora_", "ia3_"))
            parts.setdefault("adapter" if adapter else "head" if _in_head(name, facts.heads) else "block", []).append(parameter)
        elif ".original_module." not in name:  # PEFT's untouched copy of the head
            parts.setdefault(f"base {facts.name}", []).append(parameter)
    return [{"part": part, "trained": not part.startswith("base"), "tensors": len(tensors), "parameters": sum(t.numel() for t in tensors),
             "bytes": sum(t.numel() * t.element_size() for t in tensors)} for part, tensors in sorted(parts.items())]


def describe_model(model: torch.nn.Module) -> str:
    """A table of counts and bytes: the adapter, the head, and the frozen rest that is never saved."""
    rows = [{"part": part["part"], "trained": part["trained"], "saved": part["trained"], "parameters": f"{part['parameters']:,}",
             "bytes": f"{part['bytes']:,}"} for part in model_parts(model)]
    return pd.DataFrame(rows).replace({True: "yes", False: "no"}).to_string(index=False)


def _in_head(name: str, heads: tuple[str, ...]) -> bool:
    return any(f".{head}." in f".{name}" for head in heads)

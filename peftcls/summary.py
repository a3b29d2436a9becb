"""What of a model is trained, saved and frozen, in numbers."""

import pandas as pd
import torch

from peftcls.adapt import trained_parameters
from peftcls.models import base_facts


def describe_model(model: torch.nn.Module) -> str:
    """A table of counts and bytes: the adapter, the head, and the frozen rest that is never saved."""
    facts, trained = base_facts(model), trained_parameters(model)
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in trained:
            adapter = any(mark in name for mark in (".lora_", "ia3_"))
            parts.setdefault("adapter" if adapter else "head" if _in_head(name, facts.heads) else "block", []).append(parameter)
        elif ".original_module." not in name:  # PEFT's untouched copy of the head
            parts.setdefault(f"base {facts.name}", []).append(parameter)
    rows = [{"part": part, "trained": not part.startswith("base"), "saved": not part.startswith("base"),
             "parameters": f"{sum(t.numel() for t in tensors):,}", "bytes": f"{sum(t.numel() * t.element_size() for t in tensors):,}"}
            for part, tensors in sorted(parts.items())]
    return pd.DataFrame(rows).replace({True: "yes", False: "no"}).to_string(index=False)


def _in_head(name: str, heads: tuple[str, ...]) -> bool:
    return any(f".{head}." in f".{name}" for head in heads)

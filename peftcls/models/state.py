"""What is known of a model: its base, its adapter's method, where it comes from."""

import dataclasses
from typing import Any, Literal

from peftcls.engine.head_logits import unwrapped

Quantize = Literal["8bit", "4bit"]


@dataclasses.dataclass(frozen=True)
class BaseFacts:
    """What has to be known about a base model to load the same one again."""

    name: str
    revision: str | None
    fingerprint: str
    quantize: Quantize | None
    dtype: str
    heads: tuple[str, ...]
    causal: bool
    random_seed: int | None = None


def base_facts(model: Any) -> BaseFacts:
    """The facts that `load_base` left with the model."""
    if not isinstance(facts := getattr(unwrapped(model), "base_facts", None), BaseFacts):
        raise ValueError(
            "this model does not come from load_base; use model, tokenizer = load_base(name, task), so that the "
            "adapter can name the base it belongs to."
        )
    return facts

"""Labels in a language model's output layer: a small adapter that can hold a linear probe."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.engine.model_state import state_of, unwrapped
from peftcls.engine.sharding import own_class
from peftcls.models.adapter_methods import Method
from peftcls.tasks.base import Task

MAX_LABELS = 64
"""With more labels, the adapter of a large vocabulary would outgrow all others."""
METHODS = ("lora", "lora+")
"""Methods whose update starts as a plain product of two matrices."""


def label_layer_name(model: PreTrainedModel, task: Task, method: Method) -> str | None:
    """The name of the output layer if a closed set of labels is to get an adapter there.

    Returns:
        None where the answers are no closed set, the labels are too many, or the output layer is
        no plain linear layer.
    """
    is_closed = task.peft_type == "CAUSAL_LM" and task.labels is not None
    if not is_closed or len(task.labels or ()) > MAX_LABELS or method not in METHODS:
        return None
    layer = model.get_output_embeddings()
    if layer is None or own_class(layer) is not torch.nn.Linear:
        return None
    return next(name for name, module in model.named_modules() if module is layer)


@dataclasses.dataclass(frozen=True)
class LabelLayer:
    """The adapter of an output layer, of rank = labels and scale 1: added logits are B A state.

    Args:
        layer: PEFT's layer.
        token_ids: of the first token in which all labels differ.
        depth: how many tokens before it all labels share.
    """

    layer: Any
    token_ids: tuple[int, ...]
    depth: int

    def set_rows(self, weight: torch.Tensor) -> None:
        """Make the adapter add these products to the labels' logits, and nothing to others.

        Args:
            weight: of shape (labels, width).
        """
        down, up = self.parameters()
        with torch.no_grad():
            down.copy_(weight)
            up.zero_()
            for number, token_id in enumerate(self.token_ids):
                up[token_id, number] = 1.0

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The matrices A, of shape (labels, width), and B, of shape (vocabulary, labels)."""
        yield self.layer.lora_A["default"].weight
        yield self.layer.lora_B["default"].weight


def find_label_layer(
    model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase
) -> LabelLayer | None:
    """The adapter of a model's output layer, where it is new and one token tells all labels apart.

    Args:
        model: from `attach_lora`.
        task: the one given to it.
        tokenizer: from `load_base`.
    """
    if task.peft_type != "CAUSAL_LM" or not task.labels or state_of(model).lineage:
        return None
    layer = unwrapped(model).get_output_embeddings()
    down = getattr(layer, "lora_A", None)
    if not down or down["default"].out_features != len(task.labels):
        return None
    labels = task.label_tokens(tokenizer)
    for depth, tokens in enumerate(zip(*labels, strict=False)):
        if len(set(tokens)) == len(labels):
            return LabelLayer(layer, tokens, depth)
        if len(set(tokens)) > 1:
            return None
    return None

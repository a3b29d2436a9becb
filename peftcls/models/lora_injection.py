"""LoRA injection: adapters are put into the attention projections of a frozen base."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcls.argument_checks import check_argument_types, check_kinds
from peftcls.argument_names import names_arguments
from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.models.adapter_methods import Method, method_config
from peftcls.models.fused_lora import fuse_lora_layers
from peftcls.models.label_layer import label_layer_name
from peftcls.models.late_shares import share_when_adapted
from peftcls.models.mixed_precision import keep_in_float32
from peftcls.models.peft_library import PeftConfig, PeftModel, get_peft_model
from peftcls.models.target_modules import target_modules
from peftcls.models.trainable import _above_backbone
from peftcls.models.weight_sharing import own_weights
from peftcls.tasks.base import Task

DEFAULT_RANK = 16
READS_WHOLE_WEIGHTS = ("dora", "pissa")


@names_arguments
def attach_lora(
    model: PreTrainedModel,
    task: Task,
    *,
    rank: int = DEFAULT_RANK,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Literal["attention", "all-linear"] | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    method: Method = "lora",
    seed: int = 0,
) -> PeftModel:
    """Put LoRA adapters into the attention projections; only they and the head are trained.

    An instruction with a closed set of labels has no head: a language model's output layer gets an
    adapter of its own instead, of rank = labels, which can start from a linear probe as a head can
    (methods "lora" and "lora+", at most 64 labels).

    Args:
        model: from `load_base`.
        task: the one given to `load_base`.
        rank: of the update matrices (r in Hu et al. 2021, section 4.1); the average rank for
            "adalora"; "ia3" has none.
        alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) for "rslora"; twice the
            rank unless given.
        dropout: on the input of the update, and of the head; the frozen base has none.
        targets: "attention" (the default), "all-linear" for all linear layers of the backbone, or
            endings of module names.
        layers: numbers of the layers that get adapters, from 0; negative numbers count from the
            top.
        method: "lora", "lora+" (Hayou et al. 2024), "dora" (Liu et al. 2024), "rslora"
            (Kalajdzievski 2023), "pissa" (Meng et al. 2024), "adalora" (Zhang et al. 2023) or
            "ia3" (Liu et al. 2022; it scales the outputs of the targets).
        seed: for the new weights.

    Raises:
        ValueError: no module fits, or the method is not known.
    """
    arguments = {
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "targets": targets,
        "layers": layers,
        "method": method,
        "seed": seed,
    }
    check_model_and_task("attach_lora", model, task)
    check_argument_types(arguments, attach_lora)
    alpha_is_wrong = alpha is not None and not 0 < alpha < float("inf")
    if rank < 1 or alpha_is_wrong or not 0 <= dropout < 1:
        raise ValueError(
            f"rank={rank!r}, alpha={alpha!r}, dropout={dropout!r}: expected a whole number of at "
            "least 1, a number above 0, and a share of at least 0 and below 1."
        )
    facts = base_facts(model)
    if method == "pissa" and facts.quantize:
        raise ValueError(
            f"method='pissa' on a base in {facts.quantize}: it splits the base's own weights, "
            "which must be in full precision; use another method."
        )
    if state_of(model).shares is not None:
        check_method_in_shares(method)
    if method == "adalora" and state_of(model).devices is not None:
        raise ValueError(
            "method='adalora' on a base that is spread over GPUs: it compares the matrices of all "
            "layers, which must be on one; use 'lora' or 'rslora'."
        )
    names = target_modules(model, targets, layers)
    # PiSSA subtracts from the base's weights what the adapter starts with.
    if method == "pissa":
        own_weights(model, [model.get_submodule(name) for name in names])
    return attach_to(
        model,
        task,
        names,
        method,
        rank=rank,
        alpha=2 * rank if alpha is None else alpha,
        dropout=dropout,
        seed=seed,
    )


def check_model_and_task(owner: str, model: Any, task: Any) -> None:
    """Raise a ValueError where `owner` was not given a model and a task, in this order."""
    check_kinds(
        owner,
        model=(model, torch.nn.Module, "a model from load_base"),
        task=(task, Task, "a task, such as Classification(...)"),
    )


def attach_to(
    model: PreTrainedModel,
    task: Task,
    names: Sequence[str],
    method: Method,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    patterns: Mapping[str, Mapping[str, int]] | None = None,
) -> PeftModel:
    """Put an adapter on modules with these full names, and one on the labels of an output layer.

    Args:
        model: as of `attach_lora`, like the other arguments.
        task: what the rows mean.
        names: of the modules.
        method: how the adapter learns.
        rank: of the update matrices.
        alpha: a number here, not None.
        dropout: on the input of the update, and of the head.
        seed: for the new weights.
        patterns: PEFT's rank_pattern and alpha_pattern, for modules with values of their own.
    """
    facts = base_facts(model)
    label_layer = label_layer_name(model, task, method)
    config = method_config(
        method,
        names,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        patterns=patterns or {},
        label_layer=label_layer,
        labels=len(task.labels or ()),
        task_type=task.peft_type,
        modules_to_save=list(facts.heads) or None,
        base_model_name_or_path=model.name_or_path,
        revision=facts.revision,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in names),
    )
    set_head_dropout(model, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = wrap_adapter(model, config)
    state_of(wrapped).method = method
    return wrapped


def set_head_dropout(model: PreTrainedModel, dropout: float) -> None:
    """Set the head's dropout to the adapter's, whatever the base was pretrained with."""
    for child in _above_backbone(model):
        for module in child.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout


def wrap_adapter(model: Any, config: PeftConfig) -> PeftModel:
    """Put an adapter and copies of the heads on a base; the heads run in float32."""
    with warnings.catch_warnings():
        # PEFT uses the old name of a method of transformers.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        # The labels' adapter changes the output layer alone; merging unties it first.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)
        # It is a Linear in models whose other layers are Conv1D; PEFT sets the switch itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        fan_in_fan_out = getattr(config, "fan_in_fan_out", None)
        wrapped = get_peft_model(model, config)
    if fan_in_fan_out is not None:
        config.fan_in_fan_out = fan_in_fan_out  # type: ignore[attr-defined]
    fuse_lora_layers(wrapped)
    for head in base_facts(wrapped).heads:
        keep_in_float32(unwrapped(wrapped).get_submodule(head))
    share_when_adapted(wrapped)
    return wrapped.eval()


def check_method_in_shares(method: str | None) -> None:
    """Raise ValueError for a method that cannot train a base in shares."""
    if method in READS_WHOLE_WEIGHTS:
        raise ValueError(
            f"method={method!r} on a base in shares: it starts from whole weights, and no process "
            "holds them; use 'lora' or 'rslora'."
        )

"""Adapter methods: PEFT's configuration of each, and what a method needs in the training loop."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch

from peftcls.engine.model_state import state_of
from peftcls.models.peft_library import (
    AdaLoraConfig,
    AdaLoraModel,
    IA3Config,
    LoraConfig,
    PeftConfig,
)
from peftcls.models.peft_settings import PATTERN_SETTINGS

Method = Literal["lora", "lora+", "dora", "rslora", "pissa", "adalora", "ia3"]
LORA_PLUS_RATIO = 16.0
"""How much faster B learns than A: 2^4 (Hayou et al. 2024, "LoRA+", section 4.2)."""
WARMUP_SHARE = 0.1
"""The share of AdaLoRA's steps before ranks are pruned (Zhang et al. 2023, appendix)."""
FINAL_SHARE = 0.3
"""The share of AdaLoRA's steps after the last pruning (Zhang et al. 2023, appendix)."""
INITIAL_RANK_FACTOR = 1.5
"""AdaLoRA's first rank, in units of its target rank (Zhang et al. 2023, section 4)."""
MAX_ALLOCATIONS = 100
"""AdaLoRA allocates its ranks at most this often."""
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
}
"""PEFT's settings of the methods that are LoRA with one thing changed."""
RESUME_SETTINGS = (
    "r",
    "target_r",
    "init_r",
    "lora_alpha",
    "lora_dropout",
    "use_dora",
    "use_rslora",
    "init_lora_weights",
)


def method_config(
    method: Method,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    patterns: Mapping[str, Mapping[str, int]],
    label_layer: str | None = None,
    labels: int = 0,
    **common: Any,
) -> PeftConfig:
    """PEFT's configuration of a method on the given modules.

    Args:
        method: how the adapter learns.
        targets: full names of modules.
        rank: as of `attach_lora`.
        alpha: as of `attach_lora`.
        dropout: as of `attach_lora`.
        patterns: as of `attach_to`.
        label_layer: a further target, whose rank is the number of labels, at a scale of 1, if any.
        labels: their number.
        common: settings that all methods have.

    Raises:
        ValueError: no method has this name.
    """
    _check_method_name(method)
    names = list(targets)
    if method == "ia3":
        return IA3Config(target_modules=names, feedforward_modules=[], **common)
    if method == "adalora":
        # total_step is known only when the training starts.
        return AdaLoraConfig(
            target_modules=names,
            target_r=rank,
            init_r=round(INITIAL_RANK_FACTOR * rank),
            lora_alpha=int(alpha),
            lora_dropout=dropout,
            total_step=1,
            **common,
        )
    by_module: dict[str, Any] = {name: dict(patterns.get(name, {})) for name in PATTERN_SETTINGS}
    if label_layer is not None:
        names.append(label_layer)
        for numbers in by_module.values():
            numbers[label_layer] = labels
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        **by_module,
        **LORA_VARIANTS.get(method, {}),
        **common,
    )


def _check_method_name(method: str) -> None:
    known = get_args(Method)
    if method in known:
        return
    sentence = f"method={method!r}: expected one of {sorted(known)}"
    similar = difflib.get_close_matches(method, known, 1)
    if similar:
        raise ValueError(f"{sentence}; did you mean {similar[0]!r}?")
    raise ValueError(f"{sentence}.")


def method_settings(model: torch.nn.Module) -> dict[str, Any]:
    """The settings of a method that must be the same when a run is resumed."""
    config = getattr(model, "peft_config", {}).get("default")
    return {name: getattr(config, name) for name in RESUME_SETTINGS if hasattr(config, name)}


def rate_factor(model: torch.nn.Module, name: str) -> float:
    """The factor that the learning rate of a trained parameter is multiplied by."""
    if state_of(model).method == "lora+" and ".lora_B." in name:
        return LORA_PLUS_RATIO
    return 1.0


def parameter_groups(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """The optimizer's groups; each has one weight decay and one factor of the learning rate."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = weight_decay if decays(name, parameter) else 0.0
        factor = rate_factor(model, name)
        groups.setdefault((decay, factor), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "factor": factor}
        for (decay, factor), members in groups.items()
    ]


def make_optimizer(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], rate: float, decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over `parameter_groups`; one fused kernel on a GPU."""
    on_gpu = all(parameter.device.type == "cuda" for parameter in parameters.values())
    groups = parameter_groups(model, parameters, decay)
    return torch.optim.AdamW(groups, lr=rate, fused=on_gpu or None)


def begin_method(model: torch.nn.Module, steps: int) -> None:
    """Set the number of steps that a method will have, and reset its progress."""
    adalora = _adalora(model)
    if adalora is None:
        return
    config = _adalora_config(adalora)
    config.total_step = steps
    config.rank_pattern = None
    config.tinit = int(WARMUP_SHARE * steps)
    config.tfinal = int(FINAL_SHARE * steps)
    config.deltaT = max(1, steps // MAX_ALLOCATIONS)
    adalora.rankallocator.reset_ipt()


def method_penalty(model: torch.nn.Module) -> torch.Tensor | None:
    """The regularization term that a method adds to the loss of a step; None where it has none.

    AdaLoRA keeps its singular vectors orthogonal (Zhang et al. 2023, equation 4, with PEFT's
    weight). PEFT would add this term to a loss that the model computes, and ours is computed
    outside the model.
    """
    adalora = _adalora(model)
    if adalora is None:
        return None
    distances = []
    for name, matrix in adalora.model.named_parameters():
        if ".lora_A." in name:
            distances.append(_distance_from_identity(matrix @ matrix.T, matrix.dtype))
        elif ".lora_B." in name:
            distances.append(_distance_from_identity(matrix.T @ matrix, matrix.dtype))
    return _adalora_config(adalora).orth_reg_weight * torch.stack(distances).mean()


def _distance_from_identity(product: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    identity = torch.eye(len(product), dtype=dtype, device=product.device)
    return torch.linalg.matrix_norm(product - identity)


def end_step(model: torch.nn.Module, step: int) -> None:
    """Let AdaLoRA allocate its ranks after a step (from 1), before gradients are cleared."""
    adalora = _adalora(model)
    if adalora is None:
        return
    config = _adalora_config(adalora)
    steps_past_last_pruning = step - _last_pruning_step(config)
    if steps_past_last_pruning < 0:
        is_due = True
    elif steps_past_last_pruning == 0:
        # In a run of one step no importance is known to allocate by.
        is_due = bool(adalora.rankallocator.exp_avg_ipt)
    else:
        is_due = bool(config.rank_pattern)
    if is_due:
        adalora.update_and_allocate(step)


def has_settled(model: torch.nn.Module, step: int) -> bool:
    """Whether the adapter has its final shape after this step (from 1).

    AdaLoRA has more than its target rank until its last pruning.
    """
    adalora = _adalora(model)
    if adalora is None:
        return True
    return step >= _last_pruning_step(_adalora_config(adalora))


def decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: to matrices, not to norms, biases and IA3."""
    return parameter.ndim > 1 and ".ia3_l." not in name


def end_method(model: torch.nn.Module) -> None:
    """After the last step, keep AdaLoRA's pruned ranks as zeros.

    PEFT would otherwise cut them out and rescale the rest.
    """
    adalora = _adalora(model)
    if adalora is not None:
        _adalora_config(adalora).rank_pattern = None


def method_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A method's own state for a checkpoint, beside the trained parameters; empty for most."""
    adalora = _adalora(model)
    if adalora is None:
        return {}
    state = {}
    for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        for name, tensor in getattr(adalora.rankallocator, kind).items():
            state[f"{kind}/{name}"] = tensor
    rank_pattern = _adalora_config(adalora).rank_pattern or {}
    for name, kept in rank_pattern.items():
        state[f"rank_pattern/{name}"] = torch.tensor(kept)
    return state


def restore_method_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what `method_state` returned."""
    adalora = _adalora(model)
    if adalora is None:
        return
    config = _adalora_config(adalora)
    device = next(adalora.model.parameters()).device
    for key, tensor in state.items():
        kind, name = key.split("/", 1)
        if kind == "rank_pattern":
            config.rank_pattern = {**(config.rank_pattern or {}), name: tensor.tolist()}
        else:
            getattr(adalora.rankallocator, kind)[name] = tensor.to(device)


def _adalora(model: torch.nn.Module) -> AdaLoraModel | None:
    tuner = getattr(model, "base_model", None)
    if isinstance(tuner, AdaLoraModel):
        return tuner
    return None


def _adalora_config(adalora: AdaLoraModel) -> AdaLoraConfig:
    return cast(AdaLoraConfig, adalora.peft_config["default"])


def _last_pruning_step(config: AdaLoraConfig) -> int:
    return int(config.total_step or 0) - config.tfinal

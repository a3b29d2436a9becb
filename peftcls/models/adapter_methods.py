"""Adapter methods: PEFT's own configuration of each, and what a method asks of the training loop."""

import difflib
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig
from peft.tuners.adalora import AdaLoraModel

METHOD = "adapter_method"  # the attribute of a model that says how its adapter learns
Method = Literal["lora", "lora+", "dora", "rslora", "pissa", "adalora", "ia3"]
LORA_PLUS_RATIO = 16.0  # Hayou et al. 2024, "LoRA+", section 4.2: B learns 2^4 times faster than A
WARM_SHARE, FINAL_SHARE = (
    0.1,
    0.3,
)  # of AdaLoRA's steps: before ranks fall, and after (Zhang et al. 2023, appendix)
EXTRA_RANK = (
    1.5  # where AdaLoRA's ranks start, in units of where they end (Zhang et al. 2023, section 4)
)
ALLOCATIONS = 100  # at most this often are ranks dealt out anew


def method_config(
    method: Method,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    **common: Any,
) -> PeftConfig:
    """PEFT's configuration of a method on the given modules. Raises ValueError for a name that is no method."""
    if method not in get_args(Method):
        near = difflib.get_close_matches(method, get_args(Method), 1)
        raise ValueError(
            f"method={method!r}: expected one of {sorted(get_args(Method))}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
        )
    names = list(targets)
    if method == "ia3":
        return IA3Config(target_modules=names, feedforward_modules=[], **common)
    if method == "adalora":  # the number of steps is known when the training starts
        return AdaLoraConfig(
            target_modules=names,
            target_r=rank,
            init_r=round(EXTRA_RANK * rank),
            lora_alpha=int(alpha),
            lora_dropout=dropout,
            total_step=1,
            **common,
        )
    settings: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True},
        "rslora": {"use_rslora": True},
        "pissa": {"init_lora_weights": "pissa"},
    }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        **settings.get(method, {}),
        **common,
    )


def method_settings(model: torch.nn.Module) -> dict[str, Any]:
    """What of a method must be the same when a run is taken up again."""
    config = getattr(model, "peft_config", {}).get("default")
    kept = (
        "r",
        "target_r",
        "init_r",
        "lora_alpha",
        "lora_dropout",
        "use_dora",
        "use_rslora",
        "init_lora_weights",
    )
    return {name: getattr(config, name) for name in kept if hasattr(config, name)}


def rate_factor(model: torch.nn.Module, name: str) -> float:
    """What the learning rate of a trained parameter is multiplied by."""
    return LORA_PLUS_RATIO if vars(model).get(METHOD) == "lora+" and ".lora_B." in name else 1.0


def parameter_groups(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """The optimizer's groups: the same decay, and the same factor of the learning rate, in each."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, p in parameters.items():
        groups.setdefault(
            (weight_decay if decays(name, p) else 0.0, rate_factor(model, name)), []
        ).append(p)
    return [
        {"params": own, "weight_decay": decay, "factor": factor}
        for (decay, factor), own in groups.items()
    ]


def make_optimizer(
    model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], rate: float, decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over these groups; on a GPU its arithmetic is one call for all tensors."""
    on_gpu = all(p.device.type == "cuda" for p in parameters.values())
    return torch.optim.AdamW(
        parameter_groups(model, parameters, decay), lr=rate, fused=on_gpu or None
    )


def begin_method(model: torch.nn.Module, steps: int) -> None:
    """Tell a method how many steps there will be, and that none is done."""
    if (adalora := _adalora(model)) is not None:
        config = _settings(adalora)
        config.total_step, config.rank_pattern = steps, None
        config.tinit, config.tfinal = int(WARM_SHARE * steps), int(FINAL_SHARE * steps)
        config.deltaT = max(1, steps // ALLOCATIONS)
        adalora.rankallocator.reset_ipt()


def method_penalty(model: torch.nn.Module) -> torch.Tensor | None:
    """What a method adds to the loss of a step; None where it adds nothing.

    AdaLoRA keeps its singular vectors orthogonal (Zhang et al. 2023, equation 4, as PEFT weighs it); PEFT would add
    this to a loss that the model computes, and ours is computed outside.
    """
    if (adalora := _adalora(model)) is None:
        return None
    parts = []
    for name, p in adalora.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            product = p @ p.T if ".lora_A." in name else p.T @ p
            parts.append(
                torch.linalg.matrix_norm(
                    product - torch.eye(len(product), dtype=p.dtype, device=p.device)
                )
            )
    return _settings(adalora).orth_reg_weight * torch.stack(parts).mean()


def end_step(model: torch.nn.Module, step: int) -> None:
    """After step number `step` (from 1), before its gradients are cleared: AdaLoRA deals out its ranks."""
    if (adalora := _adalora(model)) is None:
        return
    config = _settings(adalora)
    settling = step - (int(config.total_step or 0) - config.tfinal)
    if (
        settling < 0
        or (settling == 0 and adalora.rankallocator.exp_avg_ipt)
        or (settling > 0 and config.rank_pattern)
    ):
        adalora.update_and_allocate(step)  # in a run of one step nothing is known to deal out by


def has_settled(model: torch.nn.Module, step: int) -> bool:
    """Whether the adapter has its final form after step number `step`: before, AdaLoRA has more ranks than were asked for."""
    if (adalora := _adalora(model)) is None:
        return True
    config = _settings(adalora)
    return step >= int(config.total_step or 0) - config.tfinal


def decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether weight decay is meant for a parameter: for matrices, not for norms, biases and the scales of IA3."""
    return parameter.ndim > 1 and ".ia3_l." not in name


def end_method(model: torch.nn.Module) -> None:
    """After the last step: AdaLoRA's dropped ranks stay as zeros; PEFT would cut them out and scale the rest anew."""
    if (adalora := _adalora(model)) is not None:
        _settings(adalora).rank_pattern = None


def method_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a method knows beside the trained parameters, for a checkpoint; empty for most."""
    if (adalora := _adalora(model)) is None:
        return {}
    ranks = adalora.rankallocator
    state = {
        f"{kind}/{name}": tensor
        for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc")
        for name, tensor in getattr(ranks, kind).items()
    }
    pattern = _settings(adalora).rank_pattern or {}
    return state | {f"rank_pattern/{name}": torch.tensor(kept) for name, kept in pattern.items()}


def restore_method_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what `method_state` gave."""
    if (adalora := _adalora(model)) is None:
        return
    device = next(adalora.model.parameters()).device
    for key, tensor in state.items():
        kind, name = key.split("/", 1)
        if kind == "rank_pattern":
            config = _settings(adalora)
            config.rank_pattern = {**(config.rank_pattern or {}), name: tensor.tolist()}
        else:
            getattr(adalora.rankallocator, kind)[name] = tensor.to(device)


def _adalora(model: torch.nn.Module) -> AdaLoraModel | None:
    tuner = getattr(model, "base_model", None)
    return tuner if isinstance(tuner, AdaLoraModel) else None


def _settings(adalora: AdaLoraModel) -> AdaLoraConfig:
    return cast(AdaLoraConfig, adalora.peft_config["default"])

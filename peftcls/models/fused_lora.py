"""A linear layer with its low-rank update, computed together: fewer passes over the tokens than one after another."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

Tensor = torch.Tensor


class UpdatedLinear(Linear):
    """PEFT's layer, which does by itself what is not a plain update: merged, several adapters, other methods, dropout."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What PEFT's layer gives; in bfloat16 the update is computed in it too, as under autocast, and stays in float32 itself."""
        base: Any = self.get_base_layer()
        name, *more = self.active_adapters or [""]
        plain = (
            not (
                more or args or kwargs or self.disable_adapters or self.merged or self.lora_variant
            )
            and name in self.lora_A
            and self.lora_B[name].bias is None
            and not (self.training and isinstance(self.lora_dropout[name], torch.nn.Dropout))
            and type(base) in (torch.nn.Linear, Conv1D)
            and base.weight.dtype == x.dtype
            and not any(p.requires_grad for p in base.parameters())
            and not torch.is_autocast_enabled(x.device.type)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        weight = base.weight if isinstance(base, torch.nn.Linear) else base.weight.t()
        return _Updated.apply(
            x,
            weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )


class _Updated(torch.autograd.Function):
    """x W' + b + scale (x A') B', with W and b frozen (Hu et al. 2021, section 4.1)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a, b = down.to(x.dtype), up.to(x.dtype)
        between = flat @ a.t()
        ctx.save_for_backward(flat, weight, a, b, between)
        ctx.scale = scale
        return (
            F.linear(flat, weight, bias)
            .addmm_(between, b.t(), alpha=scale)
            .view(*x.shape[:-1], len(b))
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        flat, weight, a, b, between = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        back = (g @ b).mul_(ctx.scale)
        of_x = (
            (g @ weight).addmm_(back, a).view(*gradient.shape[:-1], -1)
            if ctx.needs_input_grad[0]
            else None
        )
        return of_x, None, None, back.t() @ flat, (g.t() @ between).mul_(ctx.scale), None


def compute_together(model: torch.nn.Module) -> None:
    """Let a model's adapted linear layers compute their update with themselves."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = UpdatedLinear

"""A linear layer fused with its LoRA update: fewer passes over the tokens."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftcls.models.peft_library import LoraLinear

Tensor = torch.Tensor


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer with a fused forward pass.

    PEFT's own forward pass is used for everything but one plain update: merged weights, several
    adapters, other methods, dropout.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of PEFT's layer.

        In bfloat16 the update is computed in bfloat16 too, as under autocast; its weights stay in
        float32.
        """
        if args or kwargs or not self._is_plain_update(x):
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        name = self.active_adapters[0]
        weight = base.weight if isinstance(base, torch.nn.Linear) else base.weight.t()
        return _FusedUpdate.apply(
            x,
            weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )

    def _is_plain_update(self, x: Tensor) -> bool:
        """Whether one LoRA update is added to a frozen layer in the dtype of the inputs."""
        if self.disable_adapters or self.merged or self.lora_variant:
            return False
        if len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or self.lora_B[name].bias is not None:
            return False
        has_dropout = isinstance(self.lora_dropout[name], torch.nn.Dropout)
        if self.training and has_dropout:
            return False
        return self._base_is_plain(x)

    def _base_is_plain(self, x: Tensor) -> bool:
        base: Any = self.get_base_layer()
        if type(base) not in (torch.nn.Linear, Conv1D) or base.weight.dtype != x.dtype:
            return False
        if any(parameter.requires_grad for parameter in base.parameters()):
            return False
        # The meta device has no autocast.
        return x.is_meta or not torch.is_autocast_enabled(x.device.type)


class _FusedUpdate(torch.autograd.Function):
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
        a = down.to(x.dtype)
        b = up.to(x.dtype)
        hidden = flat @ a.t()
        ctx.save_for_backward(flat, weight, a, b, hidden)
        ctx.scale = scale
        output = F.linear(flat, weight, bias).addmm_(hidden, b.t(), alpha=scale)
        return output.view(*x.shape[:-1], len(b))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        flat, weight, a, b, hidden = ctx.saved_tensors
        flat_gradient = gradient.reshape(-1, gradient.shape[-1])
        hidden_gradient = (flat_gradient @ b).mul_(ctx.scale)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            flat_x_gradient = (flat_gradient @ weight).addmm_(hidden_gradient, a)
            x_gradient = flat_x_gradient.view(*gradient.shape[:-1], -1)
        a_gradient = hidden_gradient.t() @ flat
        b_gradient = (flat_gradient.t() @ hidden).mul_(ctx.scale)
        return x_gradient, None, None, a_gradient, b_gradient, None


def fuse_lora_layers(model: torch.nn.Module) -> None:
    """Let a model's LoRA layers use the fused forward pass.

    The class of a layer is changed in place. PEFT's own way to register a layer class, which is
    experimental, would have to be repeated whenever a saved configuration is read.
    """
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLoraLinear


def unfuse_lora_layers(model: torch.nn.Module) -> None:
    """Undo `fuse_lora_layers`."""
    for module in model.modules():
        if type(module) is FusedLoraLinear:
            module.__class__ = LoraLinear  # type: ignore[assignment]

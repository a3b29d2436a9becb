"""The transformer layers of a model, found by structure."""

import contextlib
from collections.abc import Iterator

import torch


def layers_of(backbone: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of a backbone in order: its longest list of modules; empty where it has none."""
    return named_layers(backbone)[1]


def named_layers(backbone: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """The name of the longest list of modules of a backbone, and that list."""
    name, layers = "", torch.nn.ModuleList()
    for other_name, module in backbone.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) > len(layers):
            name, layers = other_name, module
    return name, layers


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, so that two forward passes can be compared."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

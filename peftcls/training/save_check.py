"""What is saved is what was trained: a saved folder is loaded onto a fresh base and asked the same."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from peftcls.data.reading import Row
from peftcls.engine import frozen_cache
from peftcls.engine.allocator import trim_heap
from peftcls.inference.loading import load_predictor
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import MANIFEST
from peftcls.models.state import base_facts

TOLERANCE = (
    1e-4  # of a probability; the same kernels on the same weights differ by rounding at most
)


def share_weights(loaded: torch.nn.Module, trained: torch.nn.Module) -> None:
    """Hold what two models have alike, value for value and under one name, once; what differs stays each one's own."""
    own = dict(trained.named_parameters())
    for name, weight in loaded.named_parameters():
        kept = own.get(name)
        if (
            kept is not None
            and (kept.shape, kept.dtype) == (weight.shape, weight.dtype)
            and torch.equal(kept, weight.to(kept.device))
        ):
            weight.data = kept.data


def compare_reloaded(directory: Path, trained: Predictor, probe: Sequence[Row]) -> None:
    """Load a folder onto a fresh base and compare its answers to a few rows with those of the model that was saved.

    Raises:
        RuntimeError: the loaded folder answers otherwise.
    """
    if not probe:
        return
    trim_heap()
    loaded = load_predictor(
        directory, device="cpu"
    )  # on a GPU there may be no room for a second base
    share_weights(loaded.model, trained.model)
    if base_facts(loaded.model).quantize is None:
        loaded.model.to(next(trained.model.parameters()).device)
    if (
        next(p.dtype for p in trained.model.parameters() if p.is_floating_point()) == torch.float64
    ):  # a model that was widened by hand
        loaded.model.double()
    with frozen_cache.computing(trained.model):
        answers = trained.predict(list(probe))
    for place, (kept, again) in enumerate(
        zip(answers, loaded.predict(list(probe)), strict=True), 1
    ):
        differences = [
            abs(p - (again.probabilities or {}).get(n, math.inf))
            for n, p in (kept.probabilities or {}).items()
        ]
        for own, other in ((kept.value, again.value), (kept.probability, again.probability)):
            if own is not None:
                differences.append(
                    abs(own - (math.inf if other is None else other)) / max(1.0, abs(own))
                )
        if max(differences, default=0.0) > TOLERANCE or (not differences and kept != again):
            (directory / MANIFEST).unlink()  # without it nobody loads the folder
            raise RuntimeError(
                f"{directory} was saved but answers otherwise than the trained model: row {place} gives {again}, "
                f"expected {kept}. Do not use it; please report the model and the settings."
            )

"""From a saved folder, or several, to a predictor."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch

from peftcls.inference.multi_predictor import ManyPredictor, load_many
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import load_adapter
from peftcls.models.state import Quantize, base_facts


@overload
def load_predictor(  # type: ignore[overload-overlap]
    directory: str | Path,
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
) -> Predictor: ...


@overload
def load_predictor(
    directory: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
) -> ManyPredictor: ...


def load_predictor(
    directory: str | Path | Sequence[str | Path],
    *,
    base: str | Path | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
) -> Predictor | ManyPredictor:
    """Load an adapter folder for prediction: one call, and nothing but the folder and its base is needed.

    Args:
        directory: written by `Trainer.fit` or `Trainer.save`; or several in a list, which then share one base in memory, for
            their names' rows (see `ManyPredictor`).
        base: where the base model is now, if it moved; another model of the same shape is refused.
        quantize: "8bit" or "4bit"; as at training unless given.
        device: where to compute; the first GPU if there is one, unless given.

    Raises:
        ValueError: the folder is incomplete or damaged, or the base is not the one it was trained on; of several folders, two
            cannot share a base, or have the same name.
    """
    if not isinstance(directory, str | Path):
        return load_many(directory, base=base, quantize=quantize, device=device)
    model, task, tokenizer = load_adapter(directory, base=base, quantize=quantize)
    model.requires_grad_(False)
    if base_facts(model).quantize is None:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model.eval(), task, tokenizer)

"""The save check: a saved folder, loaded onto a fresh base, must answer as the trained model."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import torch

from peftcls.data.reading import Row
from peftcls.engine.allocator import trim_heap
from peftcls.engine.frozen_layers import without_frozen_cache
from peftcls.engine.model_state import base_facts, state_of, use_fast_paths
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import Folder, load_adapter, save_adapter
from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.model_card import write_card
from peftcls.tasks.base import Answer, Task

logger = logging.getLogger("peftcls")

PROBE_ROWS = 4
# Of a probability: the same kernels on the same weights differ by rounding at most.
TOLERANCE = 1e-4


def share_weights(loaded: torch.nn.Module, trained: torch.nn.Module) -> None:
    """Keep the weights that two models have in common in memory once; others stay each model's own.

    Weights are common where name, shape, type and all values are the same.
    """
    trained_weights = dict(trained.named_parameters())
    for name, weight in loaded.named_parameters():
        other = trained_weights.get(name)
        if other is None or (other.shape, other.dtype) != (weight.shape, weight.dtype):
            continue
        if torch.equal(other, weight.to(other.device)):
            weight.data = other.data


def probe_rows(task: Task, rows: datasets.Dataset) -> list[Row]:
    """The first few rows, without their targets, for the save check to answer."""
    first_rows = rows.select(range(min(PROBE_ROWS, len(rows))))
    columns = task.columns_among(rows.column_names, with_target=False)
    return first_rows.select_columns(columns).to_list()


def save_and_check(directory: str | Path, trained: Predictor, probe: Sequence[Row]) -> None:
    """Write the adapter folder and its model card, and check that it can be loaded.

    Args:
        directory: the adapter folder.
        trained: the model to save.
        probe: a few rows to answer; without any, the loaded model's answers are not compared.

    Raises:
        RuntimeError: the loaded model's answers differ. The folder can no longer be loaded then.
    """
    started = time.perf_counter()
    folder = save_adapter(directory, trained.model, trained.task, trained.tokenizer)
    compare_reloaded(folder, trained, probe)
    write_card(folder)
    seconds = time.perf_counter() - started
    logger.info("saved to %s, loaded again and compared in %.1f s", directory, seconds)


def compare_reloaded(folder: Folder, trained: Predictor, probe: Sequence[Row]) -> None:
    """Load a saved folder onto a fresh base and compare its answers with the trained model's.

    Args:
        folder: as `save_adapter` gave it.
        trained: the model that was saved.
        probe: a few rows to answer; without any, nothing is compared.

    Raises:
        RuntimeError: the answers differ. The folder can no longer be loaded then.
    """
    if not probe:
        return
    rows = list(probe)
    loaded = _load_beside(folder, trained)
    with without_frozen_cache(trained.model):
        expected_answers = trained.predict(rows)
    loaded_answers = loaded.predict(rows)
    pairs = zip(expected_answers, loaded_answers, strict=True)
    for number, (expected, found) in enumerate(pairs, 1):
        if _same_answer(expected, found):
            continue
        # A folder without its manifest is never loaded.
        (folder.directory / MANIFEST).unlink()
        raise RuntimeError(
            f"{folder.directory} was saved, but when it is loaded its answers differ from the "
            f"trained model's: row {number} gives {found}, expected {expected}. Do not use it; "
            "please report the model and the settings."
        )


def _load_beside(folder: Folder, trained: Predictor) -> Predictor:
    """Load a folder beside the trained model, with their common weights in memory once."""
    trim_heap()
    # The base is loaded on the CPU: a GPU may have no room for a second one.
    model, task, tokenizer = load_adapter(folder)
    model.requires_grad_(False)
    share_weights(model, trained.model)
    first = next(p for p in trained.model.parameters() if p.is_floating_point())
    if base_facts(model).quantize is None:
        model.to(first.device)
    # The caller may have widened the trained model with model.double().
    if first.dtype == torch.float64:
        model.double()
    use_fast_paths(model, state_of(trained.model).fast_paths)
    return Predictor(model.eval(), task, tokenizer)


def _same_answer(expected: Answer, found: Answer) -> bool:
    """Whether two answers are the same up to rounding."""
    differences = list(_differences(expected, found))
    if not differences:
        return expected == found
    return not any(difference > TOLERANCE for difference in differences)


def _differences(expected: Answer, found: Answer) -> Iterator[float]:
    """How far apart the numbers of two answers are; infinitely far where one is missing."""
    found_probabilities = found.probabilities or {}
    for label, probability in (expected.probabilities or {}).items():
        yield abs(probability - found_probabilities.get(label, math.inf))
    yield from _relative_difference(expected.value, found.value)
    yield from _relative_difference(expected.probability, found.probability)


def _relative_difference(expected: float | None, found: float | None) -> Iterator[float]:
    if expected is None:
        return
    if found is None:
        yield math.inf
    else:
        yield abs(expected - found) / max(1.0, abs(expected))

"""The save check: a saved folder, loaded onto a fresh base, must answer as the trained model."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import datasets
import torch
from accelerate import PartialState

from peftcls.data.reading import Row
from peftcls.engine.agreement import failing_together
from peftcls.engine.allocator import trim_heap
from peftcls.engine.device_map import spread_layers
from peftcls.engine.frozen_layers import without_frozen_cache
from peftcls.engine.model_state import base_facts, state_of, unwrapped, use_fast_paths
from peftcls.inference.predictor import Predictor
from peftcls.models.adapter_folder import Folder, load_adapter, save_adapter
from peftcls.models.adapter_manifest import MANIFEST
from peftcls.models.adapter_weights import loaded_beside, same_part
from peftcls.models.folder_safety import all_finite
from peftcls.models.model_card import write_card
from peftcls.models.peft_library import PeftModel
from peftcls.models.trainable import trained_parameters
from peftcls.report.files import remove_report
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

    The main process does it; all processes do where they hold the base in shares. Where one of
    them fails, all do. A report in the folder is removed: it tells of an earlier adapter.

    Args:
        directory: the adapter folder.
        trained: the model to save.
        probe: a few rows to answer; without any, the loaded model's answers are not compared.

    Raises:
        FloatingPointError: a trained tensor is not finite in one of the processes; nothing is
            written.
        RuntimeError: the loaded model's answers differ. The folder can no longer be loaded then.
    """
    started = time.perf_counter()
    with failing_together():
        _check_finite(trained.model)
    is_main_process = PartialState().is_main_process
    is_shared = state_of(trained.model).shares is not None
    folder: Folder | None = None
    with failing_together():
        if is_main_process:
            folder = save_adapter(directory, trained.model, trained.task, trained.tokenizer)
            remove_report(Path(directory))
            if not is_shared:
                compare_reloaded(folder, trained, probe)
    if is_shared:
        compare_in_shares(Path(directory), trained, probe)
    with failing_together():
        if folder is not None:
            write_card(folder)
    if folder is not None:
        seconds = time.perf_counter() - started
        logger.info("saved to %s, loaded again and compared in %.1f s", directory, seconds)


def _check_finite(model: torch.nn.Module) -> None:
    """Raise FloatingPointError for a trained tensor that is not finite."""
    for name, parameter in trained_parameters(model).items():
        if not all_finite(parameter.detach()):
            process = PartialState().process_index
            raise FloatingPointError(
                f"the trained tensor {name} is not finite in process {process}, so nothing is "
                "saved; go on from the last checkpoint with resume=True, or train again with a "
                "lower learning rate."
            )


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
    loaded = _for_comparison(_load_beside(folder, trained))
    trained = _for_comparison(trained)
    with without_frozen_cache(trained.model):
        expected_answers = trained.predict(rows)
    _compare(folder.directory, expected_answers, loaded.predict(rows))


def compare_in_shares(directory: Path, trained: Predictor, probe: Sequence[Row]) -> None:
    """Compare a saved folder with the trained model, in all processes that hold the base together.

    There is no room for a second base. The folder's adapter is loaded beside the model's own and
    answers through the same base; the tensors of a trained part are compared with the model's.

    Args:
        directory: the adapter folder, which the main process has written.
        trained: the model that was saved.
        probe: as for `compare_reloaded`.

    Raises:
        RuntimeError: they differ. The folder can no longer be loaded then.
    """
    model = trained.model
    if not isinstance(model, PeftModel):
        with failing_together():
            if not same_part(model, directory):
                _refuse(directory, "it holds other tensors than the trained model")
        return
    if not probe:
        return
    rows = list(probe)
    trained = _for_comparison(trained)
    with without_frozen_cache(model):
        expected_answers = trained.predict(rows)
        with loaded_beside(model, directory):
            found_answers = trained.predict(rows)
    with failing_together():
        _compare(directory, expected_answers, found_answers)


def _for_comparison(predictor: Predictor) -> Predictor:
    """The same model, with answers that do not change where numbers are rounded otherwise."""
    return Predictor(predictor.model, predictor.task.for_comparison(), predictor.tokenizer)


def _compare(directory: Path, expected: Sequence[Answer], found: Sequence[Answer]) -> None:
    """Compare the answers of the trained model with those of the saved folder."""
    pairs = zip(expected, found, strict=True)
    for number, (expected_answer, found_answer) in enumerate(pairs, 1):
        if not _same_answer(expected_answer, found_answer):
            _refuse(
                directory,
                "when it is loaded its answers differ from the trained model's: row "
                f"{number} gives {found_answer}, expected {expected_answer}",
            )


def _refuse(directory: Path, difference: str) -> NoReturn:
    """Raise RuntimeError for a saved folder; without its manifest it is never loaded."""
    (directory / MANIFEST).unlink(missing_ok=True)
    raise RuntimeError(
        f"{directory} was saved, but {difference}. Do not use it; please report the model and the "
        "settings."
    )


def _load_beside(folder: Folder, trained: Predictor) -> Predictor:
    """Load a folder beside the trained model, with their common weights in memory once."""
    trim_heap()
    # The base is loaded on the CPU: a GPU may have no room for a second one.
    model, task, tokenizer = load_adapter(folder)
    model.requires_grad_(False)
    share_weights(model, trained.model)
    first = next(p for p in trained.model.parameters() if p.is_floating_point())
    devices = state_of(trained.model).devices
    if devices is not None:
        spread_layers(unwrapped(model), devices, first=first.device)
    elif base_facts(model).quantize is None:
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
    # Written so that a difference of nan is too large.
    return all(difference <= TOLERANCE for difference in differences)


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

"""Checkpoints: trained tensors, optimizer state and the best tensors so far; no base weights."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftcls.data.output_folder import nearest_existing
from peftcls.errors import RunStoppedError
from peftcls.models.folder_safety import all_finite
from peftcls.models.trainable import Tensors, copy_tensors, put_tensors

PREFIX = "checkpoint-"
# Other programs' checkpoints in the same folder have shorter numbers.
NAME = re.compile(PREFIX + r"[0-9]{8,}")
WRITING_PREFIX = ".writing-"
# What a killed program leaves behind: half a checkpoint, half an adapter, states of frozen layers.
TEMPORARY_PREFIXES = (WRITING_PREFIX, ".saving-", ".states-")
STATE = "state.json"
TENSORS = "tensors.safetensors"
MANIFEST = "manifest.json"
# If the newest one is damaged, the one before it is used.
KEPT_CHECKPOINTS = 2
# This many times the size of a checkpoint must be free on the disk.
FREE_SPACE_FACTOR = 2
# Adam keeps two moments of every parameter.
ADAM_MOMENTS = 2


@dataclasses.dataclass
class Progress:
    """What has happened so far: with the tensors, all that the rest of a run depends on.

    Attributes:
        step: optimizer steps done.
        best_step: the step with the best validation score so far.
        best_scores: its scores.
        evaluations_since_best: evaluations in a row without a better score.
        history: the entries of the log.
        losses: of the steps since the last entry of the log.
        examined_step: the last step after which a checkpoint was written, and an evaluation was
            made if there are validation rows.
        tokens: how many fit into memory at once, if they turned out to be fewer than were set.
        skipped_steps: the steps, from 1, that were skipped since their loss or gradient was not
            finite.
    """

    step: int = 0
    best_step: int | None = None
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations_since_best: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    examined_step: int = 0
    tokens: int | None = None
    skipped_steps: list[int] = dataclasses.field(default_factory=list)

    def newest(self, *names: str) -> dict[str, str]:
        """The newest values of some entries of the log, as text for a progress bar."""
        latest: dict[str, float] = {}
        for entry in self.history:
            latest |= entry
        shown = {}
        for name in names:
            if name in latest:
                shown[name.replace("valid_", "valid ")] = f"{latest[name]:.3f}"
        return shown


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds beside the parameters and the optimizer's state.

    Args:
        progress: how far the run was.
        best: the tensors of its best step; None before the first evaluation.
        start: the tensors before its first step, if they are a linear probe.
        method: the state of the adapter's method.
    """

    progress: Progress
    best: Tensors | None
    start: Tensors | None
    method: Tensors


def checkpoint_bytes(parameters: dict[str, torch.nn.Parameter]) -> int:
    """The size of a checkpoint: the tensors now, at the best step and at the start; the moments."""
    size = sum(p.numel() * p.element_size() for p in parameters.values())
    return (3 + ADAM_MOMENTS) * size


def check_disk_space(folder: Path, size: int) -> None:
    """Check that a checkpoint of `size` bytes can be written, and that as many bytes stay free.

    Raises:
        RunStoppedError: the disk has too little free space.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    expected = FREE_SPACE_FACTOR * size
    if free < expected:
        raise RunStoppedError(
            f"{folder} has {free / 2**20:.0f} MiB free, expected {expected / 2**20:.0f} for a "
            "checkpoint. Free some and go on with resume=True."
        )


# Writing


def write_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Tensors | None,
    method: Tensors,
    run: dict[str, Any],
    *,
    start: Tensors | None = None,
) -> None:
    """Write `folder`/checkpoint-STEP, so that it is either whole or not there.

    The files are written to a temporary folder, which is renamed when all of it is on the disk.
    The checkpoint before it is kept and older ones are removed. Checkpoints of later steps are
    removed too: they were found to be damaged.

    Args:
        folder: of the run.
        progress: how far the run is.
        parameters: the trained parameters, by name.
        optimizer: its state is written too.
        best: the tensors of the best step so far.
        method: the state of the adapter's method, beside the parameters.
        run: what must be the same when the run is resumed, as JSON values.
        start: the tensors before the first step, where the scores of a run need them.

    Raises:
        RunStoppedError: the disk is full or cannot be written to, or a tensor is not finite. The
            checkpoints written before are still whole.
    """
    tensors = _collect_tensors(parameters, optimizer, method, {"best": best, "start": start})
    check_tensors(tensors, progress.step)
    checkpoint = folder / f"{PREFIX}{progress.step:08d}"
    # A whole checkpoint of the same step holds the same: a run is a function of its start.
    if checkpoint.exists() and find_damage(checkpoint) is None:
        return
    state = {"progress": dataclasses.asdict(progress), "run": run}
    try:
        if checkpoint.exists():
            remove_checkpoint(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        check_disk_space(folder, sum(tensor.nbytes for tensor in tensors.values()))
        with _temporary_folder(folder) as temporary:
            _write_files(temporary, tensors, state)
            os.replace(temporary, checkpoint)
            sync_to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise RunStoppedError(
            f"{checkpoint} cannot be written ({error}); the checkpoints before it are whole. Free "
            "some room on its disk, and go on with resume=True."
        ) from None
    _remove_other_checkpoints(folder, checkpoint)


def _collect_tensors(
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    method: Tensors,
    kept: Mapping[str, Tensors | None],
) -> Tensors:
    """All tensors of a checkpoint, on the CPU, under the names that they have in its file."""
    tensors: Tensors = {}
    for name, tensor in copy_tensors(parameters).items():
        tensors[f"model/{name}"] = tensor
    for moment, values in kept.items():
        for name, tensor in (values or {}).items():
            tensors[f"{moment}/{name}"] = tensor
    for name, tensor in method.items():
        tensors[f"method/{name}"] = tensor.detach().cpu().clone()
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().clone()
    return tensors


def check_tensors(tensors: Mapping[str, torch.Tensor], step: int, where: str = "") -> None:
    """Check that what a checkpoint would hold is finite.

    Args:
        tensors: by name.
        step: after which the checkpoint would be.
        where: which process has them, for the message (" in process 1").

    Raises:
        RunStoppedError: a tensor is not.
    """
    for name, tensor in tensors.items():
        if not all_finite(tensor.detach()):
            raise RunStoppedError(
                f"the tensor {name} is not finite{where} after step {step}, so no checkpoint of "
                "it is written; the checkpoints before it are whole. Start again with a lower "
                "learning rate."
            )


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`; it is removed at the end, unless it was renamed."""
    temporary = Path(tempfile.mkdtemp(prefix=WRITING_PREFIX, dir=folder))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write a checkpoint's files and see that they are on the disk; the manifest comes last."""
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    sync_to_disk(folder / TENSORS)
    sync_to_disk(folder / STATE)
    (folder / MANIFEST).write_text(_manifest_text(folder), encoding="utf-8")
    sync_to_disk(folder / MANIFEST)
    sync_to_disk(folder)


def _manifest_text(checkpoint: Path) -> str:
    """What a checkpoint's manifest must say: the SHA-256 of each of its other files."""
    sums = {}
    for name in (STATE, TENSORS):
        with (checkpoint / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps({"sha256": sums}, indent=1)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (fsync)."""
    # Windows cannot open a folder.
    if path.is_dir() and os.name == "nt":
        return
    mode = os.O_RDWR if path.is_file() else os.O_RDONLY
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Finding and removing


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    checkpoints = []
    for path in folder.glob(f"{PREFIX}*"):
        if NAME.fullmatch(path.name) and path.is_dir():
            checkpoints.append(path)
    return sorted(checkpoints, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint: it is renamed first, so that no half of one is left under its name.

    This needs no free space on the disk.
    """
    renamed = checkpoint.with_name(WRITING_PREFIX + checkpoint.name)
    shutil.rmtree(renamed, ignore_errors=True)
    os.replace(checkpoint, renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def _remove_other_checkpoints(folder: Path, newest: Path) -> None:
    """Keep a checkpoint and the one before it; remove older ones, and those of later steps."""
    checkpoints = find_checkpoints(folder)
    first = checkpoints.index(newest)
    kept = checkpoints[first : first + KEPT_CHECKPOINTS]
    for checkpoint in checkpoints:
        if checkpoint in kept:
            continue
        # A failure is harmless: the next checkpoint tries again.
        with contextlib.suppress(OSError):
            remove_checkpoint(checkpoint)


def remove_temporary_files(folder: Path) -> None:
    """Remove what programs that were killed while writing have left in a folder."""
    for prefix in TEMPORARY_PREFIXES:
        for path in folder.glob(f"{prefix}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as a sentence; None if no bit of it has changed."""
    try:
        manifest = (checkpoint / MANIFEST).read_bytes()
        expected = _manifest_text(checkpoint)
        if manifest == expected.encode():
            return None
        written_sums = json.loads(manifest)["sha256"]
        sums = json.loads(expected)["sha256"]
        damaged = [name for name in sums if written_sums[name] != sums[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{checkpoint} is not a whole checkpoint ({type(error).__name__}: {error})"
    file = damaged[0] if len(damaged) == 1 else MANIFEST
    return f"{checkpoint / file} is damaged: its SHA-256 is not the one that was written"


# Reading


def choose_checkpoint(folder: Path, *, resume: bool) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with the damaged ones that are newer.

    The main process looks, and tells all others.

    Args:
        folder: of the run.
        resume: whether the run is to continue from a checkpoint.

    Raises:
        ValueError: there are checkpoints, but `resume` is not set, or none of them is whole.
    """
    answer: tuple[Path | None, list[str], str | None] = (None, [], None)
    if PartialState().is_main_process:
        answer = _choose(folder, resume=resume)
    chosen, damaged, problem = broadcast_object_list(list(answer))
    if problem is not None:
        raise ValueError(problem)
    return chosen, damaged


def _choose(folder: Path, *, resume: bool) -> tuple[Path | None, list[str], str | None]:
    """What `choose_checkpoint` returns, and as the third value the message of its error."""
    remove_temporary_files(folder)
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        return None, [], None
    if not resume:
        return (
            None,
            [],
            f"{folder} holds {checkpoints[0].name} of a run that was not finished; go on with "
            "resume=True, or remove it.",
        )
    damaged: list[str] = []
    for checkpoint in checkpoints:
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint, damaged, None
        damaged.append(damage)
    return (
        None,
        damaged,
        f"{'; '.join(damaged)}. No checkpoint in {folder} is whole: remove them and start again.",
    )


def read_checkpoint(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    run: dict[str, Any],
) -> "Restored":
    """Restore parameters and optimizer from a checkpoint.

    Args:
        checkpoint: from `choose_checkpoint`.
        parameters: the trained parameters, by name; they get their values back.
        optimizer: of these parameters; it gets its state back.
        run: what must be the same as when the checkpoint was written, as JSON values.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to a run with other settings, rows or
            base.
    """
    damage = find_damage(checkpoint)
    if damage is not None:
        raise ValueError(f"{damage}; output_dir must be a folder that all processes share.")
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    _check_same_run(checkpoint, state["run"], run)
    progress = _progress_from(checkpoint, state["progress"])
    tensors = load_file(checkpoint / TENSORS)
    put_tensors(parameters, _tensors_under("model/", tensors))
    _restore_optimizer(optimizer, parameters, tensors)
    return Restored(
        progress,
        best=_tensors_under("best/", tensors) or None,
        start=_tensors_under("start/", tensors) or None,
        method=_tensors_under("method/", tensors),
    )


def _check_same_run(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ValueError that names each setting that has changed."""
    before = _flatten(before)
    # JSON turns tuples into lists, as it did when the checkpoint was written.
    now = _flatten(json.loads(json.dumps(now)))
    changes = []
    for name in sorted(now | before):
        if now.get(name) != before.get(name):
            changes.append(f"{name} was {before.get(name)!r}, is {now.get(name)!r}")
    if changes:
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(changes)}. Go on with the same "
            "settings and rows, or choose another output_dir."
        )


def _flatten(run: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under names such as "task: labels", so that a message can name one."""
    flat: dict[str, Any] = {}
    for name, value in run.items():
        if isinstance(value, dict):
            flat |= {f"{name}: {inner}": setting for inner, setting in value.items()}
        else:
            flat[name] = value
    return flat


def _progress_from(checkpoint: Path, fields: dict[str, Any]) -> Progress:
    try:
        return Progress(**fields)
    except TypeError as error:
        raise ValueError(
            f"{checkpoint} was written by another version of peftcls ({error}); go on with that "
            "one, or choose another output_dir."
        ) from None


def _tensors_under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with a prefix, under the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    tensors: Tensors,
) -> None:
    """Put the optimizer's state back, each tensor on the device where the optimizer keeps it."""
    states: dict[str, Tensors] = {}
    for path, value in _tensors_under("optimizer/", tensors).items():
        key, _, name = path.partition("/")
        states.setdefault(name, {})[key] = value
    # Adam counts its steps in a tensor on the CPU, unless the fused kernel runs on a GPU.
    is_fused = optimizer.defaults.get("fused")
    for name, parameter in parameters.items():
        if name not in states:
            continue
        restored = {}
        for key, value in states[name].items():
            moves = value.ndim > 0 or is_fused
            restored[key] = value.to(parameter.device) if moves else value
        optimizer.state[parameter] = restored

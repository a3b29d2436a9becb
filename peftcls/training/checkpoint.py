"""Where a run stands, on disk: trained tensors, optimizer, the best so far; never a weight of the base."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftcls.errors import RunStoppedError
from peftcls.models.folder_safety import all_finite
from peftcls.models.trainable import Tensors, copy_tensors, put_tensors

PREFIX = "checkpoint-"
NAME = re.compile(
    PREFIX + r"[0-9]{8,}"
)  # other programs' checkpoints, which may lie in the same folder, have names of their own
LEFT_OVER = (
    ".writing-",
    ".saving-",
    ".states-",
)  # what a killed program leaves of checkpoints, adapters and frozen layers' states
STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
KEPT = 2  # a damaged newest one has one to fall back to
ROOM = 2  # times the size of a checkpoint must be free
MOMENTS = 2  # Adam's, of every parameter


@dataclasses.dataclass
class Progress:
    """What has happened so far; with the tensors, all that the rest of a run depends on."""

    step: int = 0
    best_step: int | None = None
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations_since_best: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    """Of the steps since the last entry of the log."""
    examined_step: int = 0
    """The last one after which there was an evaluation, if there are validation rows, and a checkpoint."""
    tokens: int | None = None
    """What fits into memory at once, where it turned out to be less than was set."""
    skipped_steps: list[int] = dataclasses.field(default_factory=list)
    """Those, from 1, that were left out since their loss or gradient was not finite."""

    def newest(self, *names: str) -> dict[str, str]:
        """The newest value of some entries of the log, for a progress bar."""
        latest = {name: value for entry in self.history for name, value in entry.items()}
        return {
            name.replace("valid_", "valid "): f"{latest[name]:.3f}"
            for name in names
            if name in latest
        }


def checkpoint_bytes(parameters: dict[str, torch.nn.Parameter]) -> int:
    """How large a checkpoint will be: the tensors, the best ones, and the optimizer's moments."""
    return (2 + MOMENTS) * sum(p.numel() * p.element_size() for p in parameters.values())


def check_room(folder: Path, size: int) -> None:
    """See that a checkpoint of so many bytes can be written, with as many to spare. Raises RunStoppedError."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(above).free) < ROOM * size:
        raise RunStoppedError(
            f"{folder} has {free / 2**20:.0f} MiB free, expected {ROOM * size / 2**20:.0f} for a checkpoint. Free some "
            "and go on with resume=True."
        )


def write_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Tensors | None,
    method: Tensors,
    run: dict[str, Any],
) -> None:
    """Write `folder`/checkpoint-STEP beside, the sums of its files last, and rename it when all of it is on the disk.

    The one before it is kept, older ones are removed, and so are those of later steps, which were found to be damaged.

    Args:
        method: what the adapter's method knows beside the parameters.
        run: what must be the same when the run is taken up again, as JSON values.

    Raises:
        RunStoppedError: the disk is full, or cannot be written to, or a tensor is not finite; the checkpoints that were there are still
            whole.
    """
    tensors = {f"model/{name}": tensor for name, tensor in copy_tensors(parameters).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    tensors |= {f"method/{name}": tensor.detach().cpu().clone() for name, tensor in method.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().clone()
    if spoilt := [name for name, tensor in tensors.items() if not all_finite(tensor)]:
        raise RunStoppedError(
            f"the tensor {spoilt[0]} is not finite after step {progress.step}, so no checkpoint of it is written; the "
            f"checkpoints before it are whole. Start again with a lower learning rate."
        )
    final, beside = folder / f"{PREFIX}{progress.step:08d}", None
    if (
        final.exists() and damage(final) is None
    ):  # of the same step, and all that comes after it follows from it
        return
    try:
        if final.exists():
            remove_checkpoint(final)
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
        beside = Path(tempfile.mkdtemp(prefix=LEFT_OVER[0], dir=folder))
        save_file(tensors, beside / TENSORS)
        (beside / STATE).write_text(
            json.dumps({"progress": dataclasses.asdict(progress), "run": run}, indent=1),
            encoding="utf-8",
        )
        for name in (TENSORS, STATE):
            flush(beside / name)
        (beside / MANIFEST).write_text(_manifest(beside), encoding="utf-8")
        flush(beside / MANIFEST)
        flush(beside)
        os.replace(beside, final)
        flush(folder)
    except (OSError, SafetensorError) as error:
        raise RunStoppedError(
            f"{final} cannot be written ({error}); the checkpoints before it are whole. Free some room on its disk, and "
            "go on with resume=True."
        ) from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    found = find_checkpoints(folder)
    for other in found[: (place := found.index(final))] + found[place + KEPT :]:
        with contextlib.suppress(OSError):  # it is tried again after the next one
            remove_checkpoint(other)


def remove_checkpoint(checkpoint: Path) -> None:
    """Take a checkpoint away at once: there is never a half of one under its name. It needs no room on the disk."""
    away = checkpoint.with_name(LEFT_OVER[0] + checkpoint.name)
    shutil.rmtree(away, ignore_errors=True)
    os.replace(checkpoint, away)
    shutil.rmtree(away, ignore_errors=True)


def flush(path: Path) -> None:
    """See that a file, or the names in a folder, are on the disk and not only on their way to it."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    opened = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _manifest(checkpoint: Path) -> str:
    """The text that a checkpoint's manifest must have: the sum of each of its files."""
    sums = {}
    for name in (STATE, TENSORS):
        with (checkpoint / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps({"sha256": sums}, indent=1)


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [
        path for path in folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def remove_left_overs(folder: Path) -> None:
    """Remove what programs that were killed in the midst of writing have left in a folder."""
    for prefix in LEFT_OVER:
        for path in folder.glob(f"{prefix}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as a sentence; None where it is as it was written, to the last bit."""
    try:
        whole, expected = (checkpoint / MANIFEST).read_bytes(), _manifest(checkpoint)
        if whole == expected.encode():
            return None
        sums = json.loads(whole)["sha256"]
        wrong = [name for name, own in json.loads(expected)["sha256"].items() if sums[name] != own]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{checkpoint} is not a whole checkpoint ({type(error).__name__}: {error})"
    return f"{checkpoint / (wrong[0] if len(wrong) == 1 else MANIFEST)} is damaged: its SHA-256 is not the one that was written"


def choose_checkpoint(folder: Path, *, resume: bool) -> tuple[Path | None, list[str]]:
    """What the first process finds, for all of them: the newest checkpoint that is whole, and what is wrong with those after it.

    Raises:
        ValueError: there are checkpoints, but none is whole, or the run is not to go on with one.
    """
    chosen, wrong, problem = None, list[str](), None
    if PartialState().is_main_process:
        remove_left_overs(folder)
        there = find_checkpoints(folder)
        for checkpoint in there if resume else ():
            if (found := damage(checkpoint)) is None:
                chosen = checkpoint
                break
            wrong.append(found)
        if there and not resume:
            problem = f"{folder} holds {there[0].name} of a run that was not finished; go on with resume=True, or remove it."
        elif there and chosen is None:
            problem = f"{'; '.join(wrong)}. No checkpoint in {folder} is whole: remove them and start again."
    chosen, wrong, problem = broadcast_object_list([chosen, wrong, problem])
    if problem is not None:
        raise ValueError(problem)
    return chosen, wrong


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """Settings of settings under names of their own, so that a message can name the one that changed."""
    inner = {
        f"{k}: {name}": value
        for k, v in run.items()
        if isinstance(v, dict)
        for name, value in v.items()
    }
    return {k: v for k, v in run.items() if not isinstance(v, dict)} | inner


def read_checkpoint(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    run: dict[str, Any],
) -> tuple[Progress, Tensors | None, Tensors]:
    """Put a checkpoint's tensors back and return how far it was, the best tensors, and what the method knew.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to a run with other settings, rows or base.
    """
    if (wrong := damage(checkpoint)) is not None:
        raise ValueError(f"{wrong}; output_dir must be a folder that all processes share.")
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    run, before = _flat(json.loads(json.dumps(run))), _flat(state["run"])
    if changed := [
        f"{k} was {before.get(k)!r}, is {run.get(k)!r}"
        for k in sorted(run | before)
        if run.get(k) != before.get(k)
    ]:
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(changed)}. Go on with the same settings and rows, or choose "
            "another output_dir."
        )
    try:
        progress, tensors = Progress(**state["progress"]), load_file(checkpoint / TENSORS)
    except TypeError as error:
        raise ValueError(
            f"{checkpoint} was written by another version of peftcls ({error}); go on with that one, or choose another "
            "output_dir."
        ) from None
    put_tensors(parameters, {name: tensors[f"model/{name}"] for name in parameters})
    for name, parameter in parameters.items():
        found = {
            parts[1]: value
            for key, value in tensors.items()
            if (parts := key.split("/", 2))[0] == "optimizer" and parts[2] == name
        }
        if found:  # Adam counts its steps in a tensor on the CPU, unless all of it is done on a GPU
            on_device = optimizer.defaults.get("fused")
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if v.ndim or on_device else v for k, v in found.items()
            }
    best, method = (
        {key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)}
        for kind in ("best/", "method/")
    )
    return progress, best or None, method

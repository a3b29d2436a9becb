"""Where a run stands, on disk: trained tensors, optimizer, the best so far; never a weight of the base."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX = "checkpoint-"
STATE, TENSORS = "state.json", "tensors.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class Progress:
    """What has happened so far; with the tensors, all that the rest of a run depends on."""

    step: int = 0
    best_step: int | None = None
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations_since_best: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


def copy_tensors(parameters: dict[str, torch.nn.Parameter]) -> Tensors:
    """Copies of the trained parameters on the CPU, by name."""
    return {name: p.detach().cpu().clone() for name, p in parameters.items()}


def put_tensors(parameters: dict[str, torch.nn.Parameter], tensors: Tensors) -> None:
    """Put back what `copy_tensors` gave."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def write_checkpoint(folder: Path, progress: Progress, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer,
                     best: Tensors | None, method: Tensors, run: dict[str, Any]) -> None:
    """Write `folder`/checkpoint-STEP beside and rename it when it is whole; then remove the ones before it.

    Args:
        method: what the adapter's method knows beside the parameters.
        run: what must be the same when the run is taken up again, as JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        tensors = {f"model/{name}": tensor for name, tensor in copy_tensors(parameters).items()}
        tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
        tensors |= {f"method/{name}": tensor.detach().cpu().clone() for name, tensor in method.items()}
        for name, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().clone()
        save_file(tensors, beside / TENSORS)
        with (beside / TENSORS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        state = {"progress": dataclasses.asdict(progress), "run": run, "tensors": digest}
        with (beside / STATE).open("w", encoding="utf-8") as text:
            json.dump(state, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        final = folder / f"{PREFIX}{progress.step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for older in find_checkpoints(folder)[1:]:
        shutil.rmtree(older)


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True)


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """Settings of settings under names of their own, so that a message can name the one that changed."""
    inner = {f"{k}: {name}": value for k, v in run.items() if isinstance(v, dict) for name, value in v.items()}
    return {k: v for k, v in run.items() if not isinstance(v, dict)} | inner


def read_checkpoint(checkpoint: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer,
                    run: dict[str, Any]) -> tuple[Progress, Tensors | None, Tensors]:
    """Put a checkpoint's tensors back and return how far it was, the best tensors, and what the method knew.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to a run with other settings, rows or base.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        with (checkpoint / TENSORS).open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == state["tensors"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} is not a whole checkpoint ({type(error).__name__}: {error}); remove it and start again.") from None
    if not whole:
        raise ValueError(f"{checkpoint / TENSORS} is damaged: its SHA-256 is not the one in {STATE}; remove it and start again.")
    run, before = _flat(json.loads(json.dumps(run))), _flat(state["run"])
    if changed := [f"{k} was {before.get(k)!r}, is {run.get(k)!r}" for k in sorted(run | before) if run.get(k) != before.get(k)]:
        raise ValueError(f"{checkpoint} belongs to another run: {'; '.join(changed)}. Go on with the same settings and rows, or choose "
                         "another output_dir.")
    tensors = load_file(checkpoint / TENSORS)
    put_tensors(parameters, {name: tensors[f"model/{name}"] for name in parameters})
    for name, parameter in parameters.items():
        found = {parts[1]: value for key, value in tensors.items()
                 if (parts := key.split("/", 2))[0] == "optimizer" and parts[2] == name}
        if found:  # Adam counts its steps in a tensor on the CPU
            optimizer.state[parameter] = {k: v if v.ndim == 0 else v.to(parameter.device) for k, v in found.items()}
    best, method = ({key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)}
                    for kind in ("best/", "method/"))
    return Progress(**state["progress"]), best or None, method

"""Checks before training starts: the task, the launcher, the output folder and the trackers."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import PreTrainedTokenizerBase

from peftcls.argument_checks import check_kinds
from peftcls.engine.agreement import failing_together
from peftcls.engine.launcher import launcher_asks_for_shares, refuse_kind, refuse_loss_scale
from peftcls.engine.model_state import base_facts, state_of, unwrapped
from peftcls.engine.sharding import Shares
from peftcls.errors import RunStoppedError
from peftcls.tasks.base import Task
from peftcls.training.config import TrainConfig

try:
    import fcntl
except ImportError:
    # Windows has no such locks; there the output folder is not locked.
    fcntl = None  # type: ignore[assignment]

MAX_SHOWN_CHARACTERS = 200


def task_for_model(
    model: torch.nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
) -> Task:
    """The task, with what its model's base decides; checked before rows are read.

    Raises:
        ValueError: an argument is of another kind, as in another order; the model was loaded for
            another task, or this one has not learnt from rows yet.
    """
    check_kinds(
        "Trainer",
        model=(model, torch.nn.Module, "a model from attach_lora or train_only"),
        task=(task, Task, "a task, such as Classification(...)"),
        tokenizer=(tokenizer, PreTrainedTokenizerBase, "the tokenizer from load_base"),
        config=(config, TrainConfig, "a TrainConfig"),
    )
    settings = task.model_settings()
    loaded_for = state_of(model).task_type
    if loaded_for is not None and loaded_for != task.peft_type:
        raise ValueError(
            f"the model was loaded for a task of the kind {loaded_for}, and this task is a "
            f"{type(task).__name__}, of the kind {task.peft_type}; give the same task to load_base "
            "and Trainer."
        )
    config = unwrapped(model).config
    for name in ("id2label", "num_labels", "problem_type"):
        found = getattr(config, name, None)
        if name in settings and found != settings[name]:
            raise ValueError(
                f"the model was loaded for another task: its {name} is {_shown(found)}, and that "
                f"of this {type(task).__name__} is {_shown(settings[name])}; give the same task to "
                "load_base and Trainer."
            )
    return task.on_base(base_facts(model))


def check_shares(model: torch.nn.Module) -> Shares | None:
    """The processes that hold a model's base together; None where each holds the whole.

    Raises:
        ValueError: the launcher asks for shares, and the base was loaded whole.
    """
    shares = state_of(model).shares
    processes = PartialState().num_processes
    if shares is None and processes > 1 and launcher_asks_for_shares():
        raise ValueError(
            "the launcher asks for FSDP, but the base was loaded whole, before the processes were "
            "joined or with shard=False; leave one of the two out."
        )
    return shares


def _shown(setting: Any) -> str:
    return repr(setting)[:MAX_SHOWN_CHARACTERS]


def check_launch(processes: int, kind: DistributedType, precision: str) -> None:
    """Check that the launcher asks for what the trainer supports.

    Args:
        processes: how many Accelerate sees.
        kind: how they work together.
        precision: the launcher's mixed precision.

    Raises:
        ValueError: the launcher started another number of processes than Accelerate sees, or asks
            for sharding or a loss scale.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != processes:
        raise ValueError(
            f"the launcher started {started} processes, but Accelerate sees {processes}; on a "
            "machine without a GPU start them with torchrun --nproc-per-node."
        )
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        refuse_kind(kind.value)
    refuse_loss_scale(precision)


@contextlib.contextmanager
def lock_output_dir(folder: Path, *, is_main_process: bool) -> Iterator[None]:
    """Keep other programs from training into the same folder.

    The operating system releases the lock when this program ends, however it ends.

    All processes enter it.

    Args:
        folder: created if it does not exist, and removed at the end if nothing was written to it.
        is_main_process: only the main process of a run holds the lock.

    Raises:
        RunStoppedError: another program holds the lock; in all processes.
    """
    with contextlib.ExitStack() as stack:
        with failing_together():
            if is_main_process:
                stack.enter_context(_locked(folder))
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunStoppedError(
            f"another program is training into {folder}; wait until it has ended, or choose "
            "another output_dir."
        ) from None
    except OSError:
        # This file system has no locks.
        return


def start_trackers(start: Callable[..., None], config: TrainConfig) -> None:
    """Start the trackers of a run.

    Args:
        start: `Accelerator.init_trackers`.
        config: names them, and is logged with them.

    Raises:
        ValueError: a tracker cannot be started: no account, no server, no disk space.
    """
    settings = {name: str(value) for name, value in config.to_json().items()}
    # Only the main process starts them.
    with failing_together():
        try:
            start("peftcls", config=settings)
        # Each tracking library has exceptions of its own.
        except Exception as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else "no reason given"
            raise ValueError(
                f"trackers={config.trackers!r} cannot be started ({type(error).__name__}: "
                f"{reason}); set them up, or leave them out."
            ) from error

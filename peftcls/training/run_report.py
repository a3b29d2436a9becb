"""A training run as the report shows it."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from peftcls.engine.model_state import base_facts, state_of
from peftcls.models.adapter_methods import method_settings
from peftcls.report.run import Meter, Run
from peftcls.training.config import TrainConfig
from peftcls.training.run_info import model_parts
from peftcls.training.trainer import Trainer

ALWAYS_SHOWN = ("epochs", "batch_size", "learning_rate", "seed")
LIBRARIES = ("peftcls", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn")


def describe_run(
    trainer: Trainer, meter: Meter | None = None, *, seconds: Mapping[str, float] | None = None
) -> Run:
    """Describe a training run: model, settings, history, times, memory, versions and command.

    Args:
        trainer: after `fit`.
        meter: made when the program began.
        seconds: times that were measured separately, by what they are of.
    """
    model = trainer.model
    accelerator = trainer.accelerator
    precision = str(accelerator.mixed_precision)
    all_seconds: dict[str, float] = {}
    if meter is not None:
        all_seconds["the whole run"] = meter.seconds()
    all_seconds.update(seconds or {})
    return Run(
        base=dataclasses.asdict(base_facts(model)),
        method=state_of(model).method,
        adapter={
            name: value
            for name, value in method_settings(model).items()
            if isinstance(value, str | int | float)
        },
        parts=model_parts(model),
        settings={**_settings(trainer.config), "precision": precision},
        unchanged=_unchanged(trainer.config),
        history=trainer.progress.history,
        best_step=trainer.progress.best_step,
        seconds=all_seconds,
        peak_bytes=meter.peak_bytes() if meter else {},
        joules=meter.joules() if meter else None,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        device=_device_name(accelerator.device),
        processes=accelerator.num_processes,
        command=command_line(accelerator.num_processes, precision, accelerator.device.type),
    )


def command_line(processes: int, precision: str, device: str) -> str:
    """The command that starts this program again on as many processes, in the same precision."""
    program = shlex.join(sys.argv)
    if Path(sys.argv[0]).name == "peftcls" and processes == 1 and precision == "no":
        return shlex.join(["peftcls", *sys.argv[1:]])
    if device != "cpu" and (processes > 1 or precision != "no"):
        return (
            f"accelerate launch --num_processes {processes} --mixed_precision {precision} {program}"
        )
    launcher = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    command = f"{launcher} {program}"
    if precision == "no":
        return command
    return f"ACCELERATE_MIXED_PRECISION={precision} {command}"


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run by name, without the folder; fast paths as one text."""
    settings = config.to_json()
    # Folders of this machine say nothing about the run.
    del settings["output_dir"], settings["cache_dir"]
    fast_paths: dict[str, bool] = settings["fast_paths"]
    switched_off = [name for name, is_on in fast_paths.items() if not is_on]
    settings["fast_paths"] = f"all but {', '.join(switched_off)}" if switched_off else "all"
    return settings


def _unchanged(config: TrainConfig) -> list[str]:
    """The names of the settings that have their default; what always matters is not among them."""
    default = TrainConfig(config.output_dir)
    return [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in ALWAYS_SHOWN
        and getattr(config, field.name) == getattr(default, field.name)
    ]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() + " processor"

"""A trained run described for its report."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version

import torch

from peftcls.models.adapter_methods import METHOD, method_settings
from peftcls.models.state import base_facts
from peftcls.report.run import Meter, Run
from peftcls.training.run_info import model_parts
from peftcls.training.trainer import Trainer

LIBRARIES = ("peftcls", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn")


def describe_run(
    trainer: Trainer, meter: Meter | None = None, *, seconds: Mapping[str, float] | None = None
) -> Run:
    """All that a trainer knows of its run.

    Args:
        trainer: after `fit`.
        meter: made when the program began.
        seconds: times that were taken by themselves, by what took them.
    """
    model, accelerator = trainer.model, trainer.accelerator
    device = (
        torch.cuda.get_device_name(accelerator.device)
        if accelerator.device.type == "cuda"
        else platform.machine() + " processor"
    )
    settings = {
        name: value
        for name, value in dataclasses.asdict(trainer.config).items()
        if name != "output_dir"
    }
    return Run(
        base=dataclasses.asdict(base_facts(model)),
        method=vars(model).get(METHOD),
        adapter={
            name: value
            for name, value in method_settings(model).items()
            if isinstance(value, str | int | float)
        },
        parts=model_parts(model),
        settings={**settings, "precision": str(accelerator.mixed_precision)},
        history=trainer.progress.history,
        best_step=trainer.progress.best_step,
        seconds={**({"the whole run": meter.seconds()} if meter else {}), **(seconds or {})},
        peak_bytes=meter.peak_bytes() if meter else {},
        joules=meter.joules() if meter else None,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        device=device,
        processes=accelerator.num_processes,
        command=command_line(
            accelerator.num_processes, str(accelerator.mixed_precision), accelerator.device.type
        ),
    )


def command_line(processes: int, precision: str, device: str) -> str:
    """The command that starts this program again in as many processes and the same precision."""
    program = shlex.join(sys.argv)
    if device != "cpu" and (processes > 1 or precision != "no"):
        return (
            f"accelerate launch --num_processes {processes} --mixed_precision {precision} {program}"
        )
    launcher = f"torchrun --nproc-per-node {processes}" if processes > 1 else "python"
    return f"{'' if precision == 'no' else f'ACCELERATE_MIXED_PRECISION={precision} '}{launcher} {program}"

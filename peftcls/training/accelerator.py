"""The Accelerator of a training run: its processes, precision and trackers."""

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from peftcls.training.config import TrainConfig
from peftcls.training.gradient_accumulation import PATIENT_SECONDS
from peftcls.training.preflight import check_launch


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Join the processes that the launcher started.

    Raises:
        ValueError: a tracker is not installed, or the launcher asks for what is not supported.
    """
    installed = {str(tracker) for tracker in get_available_trackers()}
    missing = sorted(set(config.trackers) - installed)
    if missing:
        raise ValueError(
            f"trackers={config.trackers!r}: {missing[0]!r} is not a tracker of Accelerate that is "
            f"installed here; expected some of {sorted(installed)}."
        )
    accelerator = Accelerator(
        # On a machine without one, Accelerate finds other processes only if it is to use the CPU.
        cpu=not torch.accelerator.is_available(),
        log_with=list(config.trackers) or None,
        project_dir=str(config.output_dir),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENT_SECONDS))],
    )
    check_launch(
        accelerator.num_processes, accelerator.distributed_type, accelerator.mixed_precision
    )
    return accelerator

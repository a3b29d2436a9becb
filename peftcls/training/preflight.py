"""What a launcher, a folder or a tracker asks for or refuses: said before anything is learnt."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate.utils import DistributedType

from peftcls.errors import RunStoppedError
from peftcls.training.config import TrainConfig

try:
    import fcntl
except ImportError:  # there is none on Windows, where nothing can be told
    fcntl = None  # type: ignore[assignment]


def check_launch(processes: int, kind: DistributedType, precision: str) -> None:
    """Raise ValueError where the launcher started other processes than Accelerate sees, or asks for sharding or a loss scale.

    Args:
        processes: as Accelerate sees them.
        kind: of their work together.
        precision: of the launcher's mixed precision.
    """
    if (started := int(os.environ.get("WORLD_SIZE", 1))) != processes:
        raise ValueError(
            f"the launcher started {started} processes, but Accelerate sees {processes}; on a machine without a GPU start "
            "them with torchrun --nproc-per-node."
        )
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"the launcher asks for {kind.value}, expected plain processes: every process holds the base. If it does not "
            "fit, load it with quantize='8bit' or '4bit'."
        )
    if precision == "fp16":
        raise ValueError(
            "mixed precision fp16 needs a loss scale, which this trainer does not keep; launch with bf16 or no."
        )


def check_output_dir(folder: Path) -> None:
    """Raise ValueError where nothing can be written to a folder that may not be there yet."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"output_dir={str(folder)!r}: {above} is not a folder that can be written to; choose another."
        )


@contextlib.contextmanager
def alone_in(folder: Path, *, first: bool) -> Iterator[None]:
    """Within it no other program trains into a folder; the system lets go of it when this one ends, however it ends.

    Args:
        folder: made if it is not there, and removed at the end where nothing was written to it.
        first: whether this is the process that holds it for all of its run.

    Raises:
        RunStoppedError: another program holds it.
    """
    if fcntl is None or not first:
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunStoppedError(
                f"another program is training into {folder}, expected one alone; wait until it has ended, or choose "
                "another output_dir."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(held)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def start_trackers(start: Callable[..., None], config: TrainConfig) -> None:
    """Start the trackers of a run. Raises ValueError where one of them does not: no account, no server, no room."""
    try:
        start(
            "peftcls",
            config={name: str(value) for name, value in dataclasses.asdict(config).items()},
        )
    except Exception as error:  # each library has errors of its own
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"trackers={config.trackers!r} cannot be started ({type(error).__name__}: {reason}); set them up, or leave them "
            "out."
        ) from error

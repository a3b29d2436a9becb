"""Where a training computes: the devices that its process may see are settled before PyTorch."""

import os
import re
import sys
from collections.abc import Callable

GPU = re.compile(r"cuda(?::(\d+))?")
APPLE_GPU = "mps"
VISIBLE = "CUDA_VISIBLE_DEVICES"
ONLY_CPU = "ACCELERATE_USE_CPU"


def see_only(name: str) -> Callable[[], None]:
    """Let this process see one device only, before PyTorch asks which there are.

    Args:
        name: cpu, cuda, or cuda:1 for a GPU by its number among those that are visible; mps for
            the GPU of an Apple computer.

    Returns:
        What makes everything visible again.

    Raises:
        ValueError: no device is called so, a launcher gave this process one, or it has used a GPU.
    """
    if "LOCAL_RANK" in os.environ:
        raise ValueError(
            f"--device {name}: the launcher has given each process a device; leave one of the two "
            "out."
        )
    loaded = sys.modules.get("torch")
    if loaded is not None and loaded.cuda.is_initialized():
        raise ValueError(
            f"--device {name}: this program has used a GPU already; start the command by itself."
        )
    match = GPU.fullmatch(name)
    if name not in ("cpu", APPLE_GPU) and match is None:
        raise ValueError(
            f"--device {name}: expected cpu, cuda, cuda:1 for the second GPU, or mps for Apple's."
        )
    former = {variable: os.environ.get(variable) for variable in (VISIBLE, ONLY_CPU)}
    if name == APPLE_GPU:
        # It is what PyTorch takes there by itself.
        _check_apple_gpu()
    elif match is None:
        os.environ |= {VISIBLE: "", ONLY_CPU: "true"}
    else:
        _see_gpu(name, match[1])
    return lambda: _restore(former)


def _see_gpu(name: str, number: str | None) -> None:
    if number is not None:
        os.environ[VISIBLE] = _visible_gpu(int(number))
    import torch

    if not torch.cuda.is_available():
        raise _no_such_gpu(name)


def _check_apple_gpu() -> None:
    import torch

    if not torch.backends.mps.is_available():
        raise _no_such_gpu(APPLE_GPU)


def _no_such_gpu(name: str) -> ValueError:
    return ValueError(
        f"--device {name}: PyTorch finds no such GPU here; leave it out, or give cpu."
    )


def _visible_gpu(number: int) -> str:
    """The name of a GPU among those that are visible; one that is not there is itself."""
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",")]
    return names[number] if number < len(names) else ""


def _restore(former: dict[str, str | None]) -> None:
    for variable, value in former.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value

"""Where a training computes: the devices that its process may see are settled before PyTorch."""

import os
import re

GPU = re.compile(r"cuda(?::(\d+))?")


def see_only(name: str) -> None:
    """Let this process see one device only, before PyTorch is imported.

    Args:
        name: cpu, cuda, or cuda:1 for a GPU by its number among those that are visible.

    Raises:
        ValueError: no device is called so, or a launcher gave this process one.
    """
    if "LOCAL_RANK" in os.environ:
        raise ValueError(
            f"--device {name}: the launcher has given each process a device; leave one of the two "
            "out."
        )
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    match = GPU.fullmatch(name)
    if match is None:
        raise ValueError(f"--device {name}: expected cpu, cuda, or cuda:1 for the second GPU.")
    if match[1] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible_gpu(int(match[1]))
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch finds no such GPU here.")


def _visible_gpu(number: int) -> str:
    """The name of a GPU among those that are visible; one that is not there is itself."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",")]
    return names[number] if number < len(names) else ""

"""How fast this machine multiplies matrices, measured in a second."""

import time

import torch

SIZES = {"cpu": 1024, "cuda": 8192}
TRIES = 5


@torch.inference_mode()
def measure_matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices, on the GPU if there is one; the best of several.

    Args:
        dtype: of the matrices.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[device]
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best_seconds = float("inf")
    # The first call builds its kernel.
    for turn in range(TRIES + 1):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            best_seconds = min(best_seconds, time.perf_counter() - started)
    return 2.0 * size**3 / best_seconds

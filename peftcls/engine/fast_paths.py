"""Which fast paths may be used: each can be switched off, by setting or by environment variable."""

import dataclasses
import os
from typing import Self

from peftcls.argument_checks import check_argument_types

VARIABLE = "PEFTCLS_FAST_PATHS"


@dataclasses.dataclass(frozen=True)
class FastPaths:
    """Ways to compute the same in less time; a model that cannot use one goes without it.

    Args:
        packing: padding-free forward pass: layers see only real tokens.
        prefix: what all rows begin with is computed once (KV cache), with its gradient.
        last_layer: the last layer is computed only at the positions that are used.
        frozen_cache: states below the lowest trained layer are computed once for all epochs.
        kernels: attention and norms in the form that this device computes fastest. Packing needs
            it, and is off without it.
        cuda_graphs: on a GPU, forward and backward of a micro-batch are replayed as one CUDA graph.
    """

    packing: bool = True
    prefix: bool = True
    last_layer: bool = True
    frozen_cache: bool = True
    kernels: bool = True
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        check_argument_types(vars(self), FastPaths)

    @classmethod
    def from_environment(cls) -> Self:
        """What the environment variable `PEFTCLS_FAST_PATHS` allows: all where it is not set.

        "0" switches all off, "1" (or nothing) leaves all on; a list such as "packing,prefix" leaves
        on what it names.

        Raises:
            ValueError: it names a fast path that does not exist.
        """
        text = os.environ.get(VARIABLE, "1").strip()
        names = [field.name for field in dataclasses.fields(cls)]
        if text in ("", "1"):
            return cls()
        parts = [part.strip() for part in text.split(",")]
        chosen = [] if text == "0" else [part for part in parts if part]
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise ValueError(
                f"{VARIABLE}={text}: there is no fast path {unknown[0]!r}; expected 0, 1, or a "
                f"list of {', '.join(names)}."
            )
        return cls(**{name: name in chosen for name in names})

    def __and__(self, other: "FastPaths") -> "FastPaths":
        """What both allow."""
        names = [field.name for field in dataclasses.fields(self)]
        return FastPaths(**{name: getattr(self, name) and getattr(other, name) for name in names})

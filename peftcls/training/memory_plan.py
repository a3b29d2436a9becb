"""A memory plan: what a training would need on each GPU, for each way to place it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pandas as pd

from peftcls.engine.model_choices import Quantize
from peftcls.training.durations import in_words

GB = 10**9
TERA = 10**12
USABLE_SHARE = 0.9
"""The share of a GPU's memory that is planned with. The rest is for CUDA itself, for gaps between
tensors, and for what the plan does not know."""
FEW_TOKENS = 4096
"""A call of a model with fewer costs a GPU as much as one with so many."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to place a training on the GPUs.

    Args:
        name: in words.
        processes: one for each GPU that is used.
        quantize: how the base is held.
        in_shares: whether each process holds a share of the base.
        micro_batch_tokens: the tokens in memory at once that this way is planned with.
        parts: the bytes that each GPU holds, by part.
        fits: whether they are in its memory.
        seconds: the least time for the tokens that were asked for; None where none were.
        command: that starts it, with FILE and DIR to fill in.
    """

    name: str
    processes: int
    quantize: Quantize | None
    in_shares: bool
    micro_batch_tokens: int
    parts: dict[str, int]
    fits: bool
    seconds: float | None
    command: str

    @property
    def total_bytes(self) -> int:
        """The bytes that each GPU holds at the peak."""
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a training would need on each GPU, for each way to place it.

    Args:
        model: its name.
        parameters: of the base with its head.
        trained_parameters: of the adapter and the head.
        dtype: of the frozen weights.
        row_tokens: the tokens of a row.
        gradient_checkpointing: whether the plan is with it.
        gpus: how many there are.
        gpu_bytes: the memory of each.
        tokens: that the time is for.
        tflops: TFLOP/s of each GPU that the time is computed with.
        rate_is_measured: whether they are those of this machine.
        ways: from the simplest on.
    """

    model: str
    parameters: int
    trained_parameters: int
    dtype: str
    row_tokens: int
    gradient_checkpointing: bool
    gpus: int
    gpu_bytes: int
    tokens: int | None
    tflops: float | None
    rate_is_measured: bool
    ways: tuple[Way, ...]

    @property
    def simplest(self) -> Way | None:
        """The simplest way that fits; None where none does."""
        return next((way for way in self.ways if way.fits), None)

    def to_json(self) -> dict[str, Any]:
        """The plan for another program."""
        simplest = self.simplest
        ways = [{**dataclasses.asdict(way), "total_bytes": way.total_bytes} for way in self.ways]
        name = simplest.name if simplest else None
        return {**dataclasses.asdict(self), "ways": ways, "simplest": name}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        checkpointing = ", with gradient checkpointing" if self.gradient_checkpointing else ""
        yield (
            f"{self.model}: {self.parameters:,} parameters in {self.dtype}, "
            f"{self.trained_parameters:,} trained; rows of {self.row_tokens} tokens{checkpointing}"
        )
        yield (
            f"GB of each GPU at the peak; it has {self.gpu_bytes / GB:.1f}, of which "
            f"{100 * USABLE_SHARE:.0f} % are planned with"
        )
        yield pd.DataFrame([_table_row(way) for way in self.ways]).to_string(index=False)
        if self.simplest is None:
            yield (
                "nothing fits; what takes less: a smaller max_length, a smaller rank, fewer "
                "layers, a smaller base, or more GPUs to share it"
            )
            return
        yield f"the simplest way that fits: {self.simplest.name}"
        yield f"  {self.simplest.command}"
        fitting = [way for way in self.ways if way.fits]
        fastest = max(fitting, key=lambda way: way.processes)
        if fastest.processes > self.simplest.processes:
            yield f"on all GPUs: {fastest.name}"
            yield f"  {fastest.command}"
        if self.simplest.micro_batch_tokens < FEW_TOKENS and not self.gradient_checkpointing:
            yield (
                f"{self.simplest.micro_batch_tokens} tokens at once keep a GPU waiting; plan again "
                "with --gradient-checkpointing, which makes room for more"
            )
        yield from self._times()

    def _times(self) -> Iterator[str]:
        if self.tokens is None or self.tflops is None:
            return
        source = ""
        if self.rate_is_measured:
            source = ", measured on this machine (tflops gives that of another)"
        yield (
            f"at least, for {self.tokens:,} tokens at {self.tflops:,.3g} TFLOP/s in each "
            f"process{source}:"
        )
        for way in self.ways:
            if way.fits and way.seconds is not None:
                yield f"  {way.name}: {in_words(way.seconds)}"


def _table_row(way: Way) -> dict[str, str]:
    """A way as a row of the table, in GB."""
    gigabytes = {part: f"{size / GB:.2f}" for part, size in way.parts.items()}
    return {
        "way": way.name,
        **gigabytes,
        "sum": f"{way.total_bytes / GB:.2f}",
        "tokens at once": str(way.micro_batch_tokens),
        "fits": "yes" if way.fits else "no",
    }

"""What limits adapters on 8, 64 and 512 GPUs: arithmetic, printed as the tables of a page.

    python benchmarks/scaling_arithmetic.py

Nothing is measured here. Every figure follows from the shapes of two bases and from the rates
below, which are assumptions. `docs/scaling.md` holds the same tables.
"""

import dataclasses
from collections.abc import Iterable, Sequence

GPUS = (8, 64, 512)
GPUS_OF_A_MACHINE = 8
FLOPS = 400e12
"""Floating-point operations a second that a GPU reaches in bfloat16."""
MICRO_BATCH_TOKENS = 32768
"""The default on a GPU."""
ROW_TOKENS = 256
BYTES_OF_BFLOAT16 = 2
BYTES_OF_FLOAT32 = 4
BYTES_OF_AN_INDEX = 8
LINKS = {"NVLink, 400 GB/s": 400e9, "400 Gb/s": 50e9, "100 Gb/s": 12.5e9, "10 Gb/s": 1.25e9}
"""Bytes a second that a process sends and receives."""
BATCH_SIZES = (16, 64, 512, 4096)
TABLE_ROWS = (10**6, 10**7, 10**8)


@dataclasses.dataclass(frozen=True)
class Base:
    """The shape of a decoder as Llama's.

    Args:
        name: of its size.
        hidden: the width of a state.
        inner: the width inside the feed-forward part.
        key_width: the width of all keys of a token.
        layers: their number.
        vocabulary: tokens that it knows.
    """

    name: str
    hidden: int
    inner: int
    key_width: int
    layers: int
    vocabulary: int

    @property
    def attention(self) -> list[tuple[int, int]]:
        """The shapes (in, out) of a layer's matrices for queries, keys, values and output."""
        key = (self.hidden, self.key_width)
        square = (self.hidden, self.hidden)
        return [square, key, key, square]

    @property
    def all_linear(self) -> list[tuple[int, int]]:
        """The shapes of all matrices of a layer."""
        up = (self.hidden, self.inner)
        return [*self.attention, up, up, (self.inner, self.hidden)]

    @property
    def layer_bytes(self) -> float:
        """The bytes of a layer in bfloat16."""
        return BYTES_OF_BFLOAT16 * sum(rows * columns for rows, columns in self.all_linear)

    @property
    def weights(self) -> float:
        """The parameters, with both embeddings and without norms."""
        embeddings = 2 * self.vocabulary * self.hidden
        return self.layers * self.layer_bytes / BYTES_OF_BFLOAT16 + embeddings

    def adapter_parameters(self, shapes: Iterable[tuple[int, int]], rank: int) -> int:
        """The parameters of LoRA on these matrices of every layer: rank x (in + out) for each."""
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in shapes)

    def step_seconds(self, tokens: float) -> float:
        """The time of both passes: 2 FLOPs a weight and token forward, 2 backward.

        A frozen weight needs no gradient of its own, so its backward pass has one product, not two.
        """
        return 4 * self.weights * tokens / FLOPS


SMALL = Base("7B", 4096, 11008, 4096, 32, 32000)
LARGE = Base("70B", 8192, 28672, 1024, 80, 128256)


def main() -> None:
    """Print all tables."""
    for title, table in tables().items():
        print(f"{title}\n\n{table}\n")


def tables() -> dict[str, str]:
    """The tables by their titles, in Markdown."""
    return {
        "Gradients of an adapter": gradients_table(),
        "A base in shares": shares_table(),
        "A base in shares, by the tokens of a micro-batch": tokens_table(),
        "Rows of a step": rows_table(),
        "Data": data_table(),
    }


def gradients_table() -> str:
    """What every step sends: the adapter's gradients in float32, once around all processes."""
    lines = []
    adapters = [
        ("7B, attention, rank 8", SMALL, SMALL.attention, 8),
        ("7B, all linear, rank 16", SMALL, SMALL.all_linear, 16),
        ("70B, all linear, rank 16", LARGE, LARGE.all_linear, 16),
    ]
    for name, base, shapes, rank in adapters:
        size = BYTES_OF_FLOAT32 * base.adapter_parameters(shapes, rank)
        compute = base.step_seconds(MICRO_BATCH_TOKENS)
        # A ring of many processes passes every number twice through each (2 (N - 1) / N).
        shares = [f"{100 * 2 * size / speed / compute:.2g} %" for speed in LINKS.values()]
        lines.append([name, f"{size / 1e6:.0f} MB", f"{compute:.1f} s", *shares])
    return markdown(["adapter", "gradients", "a micro-batch", *LINKS], lines)


def shares_table() -> str:
    """What a micro-batch gathers where a base is in shares of some processes."""
    lines = []
    for base in (SMALL, LARGE):
        for processes in GPUS:
            # Every layer is gathered in the forward pass, and again in the backward pass.
            whole = 2 * BYTES_OF_BFLOAT16 * base.weights
            gathered = whole * (processes - 1) / processes
            compute = base.step_seconds(MICRO_BATCH_TOKENS)
            times = [f"{gathered / speed:.2g} s" for speed in list(LINKS.values())[:3]]
            held = BYTES_OF_BFLOAT16 * base.weights / processes
            lines.append(
                [
                    base.name,
                    str(processes),
                    f"{held / 1e9:.1f} GB",
                    f"{gathered / 1e9:.0f} GB",
                    f"{compute:.1f} s",
                    *times,
                ]
            )
    heads = ["base", "shares", "held by each", "gathered", "computed in", *list(LINKS)[:3]]
    return markdown(heads, lines)


def tokens_table() -> str:
    """One layer of the larger base in 8 shares: gathering it beside computing it."""
    lines = []
    gathered = LARGE.layer_bytes * (GPUS_OF_A_MACHINE - 1) / GPUS_OF_A_MACHINE
    weights = LARGE.layer_bytes / BYTES_OF_BFLOAT16
    for tokens in (1024, 4096, 16384, 32768, 131072):
        compute = 2 * weights * tokens / FLOPS
        times = [gathered / speed for speed in list(LINKS.values())[:2]]
        factors = [f"{max(time, compute) / compute:.1f}" for time in times]
        lines.append([f"{tokens:,}", f"{1000 * compute:.1f} ms", *factors])
    return markdown(["tokens", "a layer computed in", *list(LINKS)[:2]], lines)


def rows_table() -> str:
    """The rows of a step on each GPU, and how much of a micro-batch their tokens fill."""
    lines = []
    for batch_size in BATCH_SIZES:
        cells = []
        for gpus in GPUS:
            rows = batch_size // gpus
            filled = min(1.0, rows * ROW_TOKENS / MICRO_BATCH_TOKENS)
            cell = f"{rows} rows ({100 * filled:.1f} %)"
            if not rows:
                cell = f"nothing on {gpus - batch_size} of them"
            cells.append(cell)
        lines.append([f"{batch_size:,}", *cells])
    return markdown(["batch_size", *[f"{gpus} GPUs" for gpus in GPUS]], lines)


def data_table() -> str:
    """What a table of rows takes: order in memory, and the least time of a pass over it."""
    lines = []
    for rows in TABLE_ROWS:
        seconds = SMALL.step_seconds(rows * ROW_TOKENS)
        hours = [f"{seconds / gpus / 3600:.2g} h" for gpus in GPUS]
        order = f"{rows * BYTES_OF_AN_INDEX / 1e9:.2g} GB"
        lines.append([f"{rows:,}", f"{rows * ROW_TOKENS:,}", order, *hours])
    return markdown(["rows", "tokens", "order", *[f"{gpus} GPUs" for gpus in GPUS]], lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [" | ".join(line) for line in [heads, *lines]]
    return "\n".join([f"| {rows[0]} |", "|---" * len(heads) + "|", *[f"| {r} |" for r in rows[1:]]])


if __name__ == "__main__":
    main()

"""The frozen-layer cache: what leaves the layers below the lowest trained one is computed once.

In later epochs, folds and sweeps the frozen layers are skipped, and the layer above them starts
from the cached states. `frozen_layers.py` fills the cache and decides whether a model can use it.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from peftcls.engine.batch import INPUTS, Batch
from peftcls.engine.packing import current_packing, replaced_forward

IN_MEMORY_BYTES = 1 << 30  # a larger cache is a memory-mapped file
Part = Literal["all", "first", "last"]
Span = tuple[int, int]  # first token and number of tokens in the store


class _ReachedError(Exception):
    """The wanted states are there; the layers above need not be computed."""


class StateStore:
    """Room for the states of so many tokens, and where those of each sequence are.

    Args:
        tokens: so many have room.
        width: of a state.
        dtype: of the states.
        folder: where a file is made if memory is not to hold them all.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, folder: Path) -> None:
        self.spans: dict[bytes, Span] = {}
        self.used_tokens = 0
        self._folder: Path | None = None
        if tokens * width * dtype.itemsize <= IN_MEMORY_BYTES:
            self.states = torch.empty(tokens, width, dtype=dtype)
        else:
            self.states = self._mapped_file(tokens, width, dtype, folder)

    def _mapped_file(
        self, tokens: int, width: int, dtype: torch.dtype, folder: Path
    ) -> torch.Tensor:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".states-", dir=folder))
        flat = torch.from_file(
            str(self._folder / "states"), shared=True, size=tokens * width, dtype=dtype
        )
        # The system removes an open file when the program ends, however it ends; Windows does not.
        if os.name != "nt":
            shutil.rmtree(self._folder)
        return flat.view(tokens, width)

    def add(self, key: bytes, states: torch.Tensor) -> None:
        """Keep the states of a sequence, of shape (tokens, width), unless they are there."""
        if key in self.spans:
            return
        end = self.used_tokens + len(states)
        self.states[self.used_tokens : end] = states.to(self.states)
        self.spans[key] = (self.used_tokens, len(states))
        self.used_tokens = end

    def take(self, spans: list[Span], width: int) -> torch.Tensor:
        """Cached sequences, padded with zeros: (sequences, tokens, width of a state).

        Packed, of shape (1, slots, width of a state), where the model computes a packed batch.

        Args:
            spans: of the sequences.
            width: tokens of the padded batch.
        """
        starts, lengths = torch.tensor(spans).unsqueeze(2).unbind(1)
        columns = torch.arange(width)
        index = (starts + columns).flatten()
        packing = current_packing()
        if packing is not None:
            packed_index = index[packing.gather_index.cpu()]
            return self.states.index_select(0, packed_index).unsqueeze(0)
        real = (columns < lengths).flatten()
        padded = self.states.new_zeros(len(index), self.states.shape[1])
        padded[real] = self.states.index_select(0, index[real])
        return padded.view(len(spans), width, -1)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class FrozenLayerCache:
    """A model's frozen layers, and the states that left them.

    Args:
        layers: the model's layers in order.
        height: how many of them, from the first on, are frozen.
        store: the states of every sequence; of one token of it where `part` is "first" or "last".
        part: the token of a sequence that is used above the frozen layers. With one token a
            sequence, the batch itself becomes one token wide.
        in_tuple: a layer returns its states in a tuple.
    """

    layers: torch.nn.ModuleList
    height: int
    store: StateStore
    part: Part
    in_tuple: bool

    def spans_of(self, batch: Batch) -> list[Span] | None:
        """Where the states of each sequence are; None where one of them is not cached."""
        spans = [self.store.spans.get(key) for key in _keys(batch)]
        known = [span for span in spans if span is not None]
        return known if len(known) == len(spans) else None

    def add(self, batch: Batch, states: torch.Tensor) -> None:
        """Cache the states of a batch's sequences, of shape (sequences, tokens, width)."""
        lengths = batch["attention_mask"].sum(1).tolist()
        for key, sequence, tokens in zip(_keys(batch), states, lengths, strict=True):
            if self.part == "all":
                self.store.add(key, sequence[:tokens])
            elif self.part == "first":
                self.store.add(key, sequence[:1])
            else:
                self.store.add(key, sequence[tokens - 1 : tokens])

    @contextlib.contextmanager
    def replaying(self, batch: Batch, spans: list[Span]) -> Iterator[Batch]:
        """Let the frozen layers return their cached states for this batch.

        Yields:
            The batch to give to the model.
        """
        short = batch if self.part == "all" else _one_token_batch(batch, self.part)
        ids = short["input_ids"]

        def states() -> torch.Tensor:
            return self.store.take(spans, ids.shape[1]).to(ids.device)

        with replaying_states(self.layers, self.height, states, self.in_tuple):
            yield short


@contextlib.contextmanager
def replaying_states(
    layers: torch.nn.ModuleList,
    height: int,
    states: Callable[[], torch.Tensor],
    in_tuple: bool,
) -> Iterator[None]:
    """Skip the first layers of a model: the last of them returns these states instead.

    Args:
        layers: of the model, in order.
        height: how many are skipped.
        states: called when the last of them is reached.
        in_tuple: a layer returns its states in a tuple.
    """

    def returned(values: torch.Tensor) -> Any:
        if in_tuple:
            return (values,)
        return values

    def skipped(values: torch.Tensor, *_: Any, **__: Any) -> Any:
        return returned(values)

    def last(*_: Any, **__: Any) -> Any:
        return returned(states())

    with contextlib.ExitStack() as stack:
        for layer in layers[: height - 1]:
            stack.enter_context(replaced_forward(layer, skipped))
        stack.enter_context(replaced_forward(layers[height - 1], last))
        yield


@torch.no_grad()
def states_after(
    layers: torch.nn.ModuleList, height: int, forward: Callable[[], Any]
) -> tuple[torch.Tensor, bool]:
    """The states that leave the frozen layers while `forward` runs; nothing above them is computed.

    Returns:
        States of shape (sequences, tokens, width), and whether the layer returned them in a tuple.
    """
    results: list[tuple[torch.Tensor, bool]] = []

    def keep(_: Any, inputs: Any, output: Any) -> None:
        in_tuple = isinstance(output, tuple)
        states = output[0] if in_tuple else output
        packing = current_packing()
        if packing is not None:
            states = packing.unpack(states)
        results.append((states, in_tuple))
        raise _ReachedError

    hook = layers[height - 1].register_forward_hook(keep)
    try:
        with contextlib.suppress(_ReachedError):
            forward()
    finally:
        hook.remove()
    return results[0]


def _keys(batch: Batch) -> list[bytes]:
    """What identifies each sequence: its real tokens, and their token types where there are any."""
    mask = batch["attention_mask"].bool().cpu().numpy()
    names = [name for name in INPUTS if name in batch and name != "attention_mask"]
    tables = [batch[name].cpu().numpy() for name in names]
    keys = []
    for number, real in enumerate(mask):
        parts = [table[number][real].tobytes() for table in tables]
        keys.append(b"".join(parts))
    return keys


def _one_token_batch(batch: Batch, part: Part) -> Batch:
    """A batch whose sequences are their first or last real token alone."""
    mask = batch["attention_mask"].long()
    order = mask if part == "first" else mask.cumsum(1) * mask
    position = order.argmax(1, keepdim=True)
    shortened = {name: batch[name].gather(1, position) for name in INPUTS if name in batch}
    return {**batch, **shortened}

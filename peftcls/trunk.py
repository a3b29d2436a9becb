"""The frozen layers below the lowest trained one, computed once: later epochs start from their states."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from peftcls.packing import PACKS
from peftcls.pooling import unwrapped

TRUNK = "frozen_trunk"
IN_MEMORY_BYTES = 1 << 30  # more is kept in a memory-mapped file
LARGEST_BYTES = 1 << 36
DISK_SHARE = 0.5
Batch = dict[str, torch.Tensor]


class _ReachedError(Exception):
    """The states that were wanted are there; the layers above need not be computed."""


class Trunk:
    """The states that leave the frozen layers, of every line of tokens that was read once.

    Args:
        layers: the model's layers in order.
        height: how many of them, from the first on, are frozen.
        tokens: room for so many tokens.
        width: of a state.
        dtype: of the states.
        folder: where a file is made if the room is too large for the memory.
    """

    def __init__(self, layers: torch.nn.ModuleList, height: int, tokens: int, width: int, dtype: torch.dtype, folder: Path) -> None:
        self.layers, self.height, self.places = layers, height, dict[bytes, tuple[int, int]]()
        self.folder, self.used, self.in_tuple = None if (small := tokens * width * dtype.itemsize <= IN_MEMORY_BYTES) else folder, 0, False
        if small:
            self.states = torch.empty(tokens, width, dtype=dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".states-", dir=folder))
            self.states = torch.from_file(str(self.folder / "states"), shared=True, size=tokens * width, dtype=dtype).view(tokens, width)

    def knows(self, batch: Batch) -> bool:
        """Whether every line of the batch has been read."""
        return all(key in self.places for key in _keys(batch))

    @torch.no_grad()
    def read(self, batch: Batch, forward: Callable[[Batch], Any]) -> None:
        """Keep the states of a batch's lines; `forward` is any use of the model on it."""
        def keep(_: Any, inputs: Any, output: Any) -> None:
            self.in_tuple = isinstance(output, tuple)
            found = output[0] if isinstance(output, tuple) else output
            for line, key in zip(found, _keys(batch), strict=True):
                if key not in self.places:
                    own = line[: (tokens := _tokens(key))]
                    self.states[self.used : self.used + tokens] = own.to(self.states)
                    self.places[key] = (self.used, tokens)
                    self.used += tokens
            raise _ReachedError

        hook = self.layers[self.height - 1].register_forward_hook(keep)
        try:
            with contextlib.suppress(_ReachedError):
                forward(batch)
        finally:
            hook.remove()

    @contextlib.contextmanager
    def standing_in(self, batch: Batch) -> Iterator[None]:
        """Within it the frozen layers hand out what they gave for this batch before."""
        ids = batch["input_ids"]
        found = torch.zeros(*ids.shape, self.states.shape[1], dtype=self.states.dtype)
        for line, key in enumerate(_keys(batch)):
            start, tokens = self.places[key]
            found[line, :tokens] = self.states[start : start + tokens]
        found = found.to(ids.device)
        frozen = list(self.layers[: self.height])
        for layer in frozen:
            last = layer is frozen[-1]
            vars(layer)["forward"] = lambda states, *_, last=last, **__: self._handed(found if last else states)
        try:
            yield
        finally:
            for layer in frozen:
                del vars(layer)["forward"]

    def _handed(self, states: torch.Tensor) -> Any:
        return (states,) if self.in_tuple else states

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self.folder is not None:
            shutil.rmtree(self.folder)


def _keys(batch: Batch) -> list[bytes]:
    """What a line holds, with the number of its tokens in front."""
    lines = []
    for place, (ids, mask) in enumerate(zip(batch["input_ids"].cpu(), batch["attention_mask"].bool().cpu(), strict=True)):
        kinds = batch["token_type_ids"][place].cpu()[mask] if "token_type_ids" in batch else ids[:0]
        lines.append(int(mask.sum()).to_bytes(4, "big") + ids[mask].numpy().tobytes() + kinds.numpy().tobytes())
    return lines


def _tokens(key: bytes) -> int:
    return int.from_bytes(key[:4], "big")


def frozen_layers(model: torch.nn.Module) -> tuple[torch.nn.ModuleList, int] | None:
    """The model's layers and how many of them stand below everything that is trained; None where there are none."""
    backbone = unwrapped(model).base_model
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, torch.nn.ModuleList)}
    if not lists or unwrapped(model).config.is_encoder_decoder:
        return None
    name, layers = max(lists.items(), key=lambda item: len(item[1]))
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    inside = [int(found[1]) for n in trained if (found := re.match(re.escape(name) + r"\.(\d+)\.", n))]
    above = [n for n in trained if not n.startswith(f"{name}.")]
    if any("mbed" in n for n in above):
        return None
    height = min(inside, default=len(layers))
    return (layers, height) if height else None


@contextlib.contextmanager
def frozen_once(model: torch.nn.Module, batches: Iterable[Batch], forward: Callable[[Batch], torch.Tensor], *, tokens: int,
                folder: Path) -> Iterator[str]:
    """Read all batches once; within it `reading` hands out what left the frozen layers.

    Args:
        model: with its adapter, or with a part of it opened.
        batches: of all lines that will be asked for.
        forward: a use of the model on a batch that gives a number to compare.
        tokens: of all lines together.
        folder: for the states, where they are too many for the memory.

    Yields:
        A sentence about what was done, or why nothing was; empty where every layer is trained.
    """
    if (found := frozen_layers(model)) is None:
        yield ""
        return
    layers, height = found
    inner = unwrapped(model)
    width = inner.config.get_text_config().hidden_size
    dtype = next(p.dtype for p in layers.parameters() if p.is_floating_point())
    size = tokens * width * dtype.itemsize
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if size > min(LARGEST_BYTES, DISK_SHARE * shutil.disk_usage(above).free):
        yield f"the states of the {height} frozen layers would take {size / 2**30:.0f} GiB, so they are computed in every epoch."
        return
    trunk = Trunk(layers, height, tokens, width, dtype, folder)
    vars(inner)[TRUNK], packs = trunk, vars(inner).get(PACKS)
    vars(inner)[PACKS] = False  # what is kept stands where the batch has it, padding and all
    remark = f"{height} of {len(layers)} layers are frozen and below all that is trained; their states, {size / 2**20:.0f} MiB, are kept."
    try:
        for number, batch in enumerate(batches):
            if number:
                trunk.read(batch, forward)
            elif not _stands_in(trunk, batch, forward):
                del vars(inner)[TRUNK]
                remark = f"{type(inner).__name__} does not go on from kept states: its {height} frozen layers are computed in every epoch."
                break
        yield remark
    finally:
        vars(inner).pop(TRUNK, None)
        vars(inner).pop(PACKS)
        if packs is not None:
            vars(inner)[PACKS] = packs
        trunk.close()


@torch.no_grad()
def _stands_in(trunk: Trunk, batch: Batch, forward: Callable[[Batch], torch.Tensor]) -> bool:
    try:
        trunk.read(batch, forward)
        plain = float(forward(batch))
        with trunk.standing_in(batch):
            short = float(forward(batch))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    near = 2e-2 if trunk.states.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return abs(plain - short) <= near * max(abs(plain), 1e-3)


@contextlib.contextmanager
def reading(model: torch.nn.Module, batch: Batch) -> Iterator[None]:
    """Use the model's kept states for this batch, if there are some of all its lines."""
    trunk = vars(unwrapped(model)).get(TRUNK)
    with trunk.standing_in(batch) if trunk is not None and trunk.knows(batch) else contextlib.nullcontext():
        yield

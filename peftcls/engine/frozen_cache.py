"""The frozen layers below the lowest trained one, computed once: all that is trained on them starts from their states."""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from peftcls.engine.batch import Batch
from peftcls.engine.head_logits import unwrapped
from peftcls.engine.packing import packing

IN_MEMORY_BYTES = 1 << 30  # more is kept in a memory-mapped file


Place = tuple[int, int]
TRUNK = "frozen_trunk"
LARGEST_BYTES = 1 << 36
DISK_SHARE = 0.5
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Forward = Callable[[torch.nn.Module, Batch], torch.Tensor]
Part = Literal["all", "first", "last"]


class _ReachedError(Exception):
    """The states that were wanted are there; the layers above need not be computed."""


class States:
    """Room for so many states, and the places of the lines that are kept.

    Args:
        tokens: so many have room.
        width: of a state.
        dtype: of the states.
        folder: where a file is made.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, folder: Path) -> None:
        self.places, self.used = dict[bytes, Place](), 0
        self.folder: Path | None = None
        if tokens * width * dtype.itemsize <= IN_MEMORY_BYTES:
            self.kept = torch.empty(tokens, width, dtype=dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".states-", dir=folder))
            self.kept = torch.from_file(
                str(self.folder / "states"), shared=True, size=tokens * width, dtype=dtype
            ).view(tokens, width)
            if (
                os.name != "nt"
            ):  # an open file goes with the program, however that ends; Windows removes none that is open
                shutil.rmtree(self.folder)

    def keep(self, key: bytes, line: torch.Tensor) -> None:
        """Keep the states of a line of tokens, of shape (tokens, width)."""
        if key not in self.places:
            self.kept[self.used : self.used + len(line)] = line.to(self.kept)
            self.places[key] = (self.used, len(line))
            self.used += len(line)

    def of(self, places: list[Place], width: int) -> torch.Tensor:
        """Kept lines, of shape (lines, width, width of a state), with zeros behind their ends; packed, where the model reads packed."""
        starts, lengths = torch.tensor(places).unsqueeze(2).unbind(1)
        across = torch.arange(width)
        index, real = (starts + across).flatten(), (across < lengths).flatten()
        if (own := packing()) is not None:
            return self.kept.index_select(0, index[own.given.cpu()]).unsqueeze(0)
        found = self.kept.new_zeros(len(index), self.kept.shape[1])
        found[real] = self.kept.index_select(0, index[real])
        return found.view(len(places), width, -1)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A model's frozen layers, and what left them before.

    Args:
        layers: the model's layers in order.
        height: how many of them, from the first on, are frozen.
        states: of every line of tokens that was read; those of one token a line where `part` is "first" or "last".
        part: the token of a line that is read above the layers. With one a line, the batch itself becomes one token wide.
        in_tuple: a layer hands out its states in a tuple.
    """

    layers: torch.nn.ModuleList
    height: int
    states: States
    part: Part
    in_tuple: bool

    def places(self, batch: Batch) -> list[Place] | None:
        """Where each line's states are; None where a line has not been read."""
        found = [self.states.places.get(key) for key in _keys(batch)]
        known = [place for place in found if place is not None]
        return known if len(known) == len(found) else None

    def keep(self, batch: Batch, states: torch.Tensor) -> None:
        """Keep the states of a batch's lines."""
        for key, line, tokens in zip(
            _keys(batch), states, batch["attention_mask"].sum(1).tolist(), strict=True
        ):
            self.states.keep(
                key,
                line[:tokens]
                if self.part == "all"
                else line[:1]
                if self.part == "first"
                else line[tokens - 1 : tokens],
            )

    @contextlib.contextmanager
    def standing_in(self, batch: Batch, places: list[Place]) -> Iterator[Batch]:
        """Within it the frozen layers hand out what they gave for this batch before. Yields the batch to give to the model."""
        short = batch if self.part == "all" else _one_token(batch, self.part)
        ids = short["input_ids"]
        with _handing_out(
            self.layers,
            self.height,
            lambda: self.states.of(places, ids.shape[1]).to(ids.device),
            self.in_tuple,
        ):
            yield short


@contextlib.contextmanager
def _handing_out(
    layers: torch.nn.ModuleList, height: int, states: Callable[[], torch.Tensor], in_tuple: bool
) -> Iterator[None]:
    """Within it the first layers compute nothing, and the last of them gives these states."""
    frozen = list(layers[:height])

    def handed(given: torch.Tensor) -> Any:
        return (given,) if in_tuple else given

    for layer in frozen:
        last = layer is frozen[-1]
        vars(layer)["forward"] = lambda given, *_, last=last, **__: handed(
            states() if last else given
        )
    try:
        yield
    finally:
        for layer in frozen:
            del vars(layer)["forward"]


@torch.no_grad()
def _leaving(
    layers: torch.nn.ModuleList, height: int, forward: Callable[[], Any]
) -> tuple[torch.Tensor, bool]:
    """The states that leave the frozen layers in a use of the model, of shape (lines, tokens, width), and whether in a tuple."""
    found: list[tuple[torch.Tensor, bool]] = []

    def keep(_: Any, inputs: Any, output: Any) -> None:
        states, own = output[0] if isinstance(output, tuple) else output, packing()
        found.append((states if own is None else own.unpack(states), isinstance(output, tuple)))
        raise _ReachedError

    hook = layers[height - 1].register_forward_hook(keep)
    try:
        with contextlib.suppress(_ReachedError):
            forward()
    finally:
        hook.remove()
    return found[0]


def _keys(batch: Batch) -> list[bytes]:
    """What each line holds: its real tokens, and their kinds where there are any."""
    mask = batch["attention_mask"].bool().cpu().numpy()
    parts = [
        batch[name].cpu().numpy() for name in INPUTS if name in batch and name != "attention_mask"
    ]
    return [
        b"".join(part[line][real].tobytes() for part in parts) for line, real in enumerate(mask)
    ]


def _one_token(batch: Batch, part: Part) -> Batch:
    """A batch whose lines are their first or last real token alone."""
    mask = batch["attention_mask"].long()
    place = (mask if part == "first" else mask.cumsum(1) * mask).argmax(1, keepdim=True)
    return {**batch, **{name: batch[name].gather(1, place) for name in INPUTS if name in batch}}


def frozen_layers(model: torch.nn.Module) -> tuple[torch.nn.ModuleList, int] | None:
    """The model's layers and how many of them stand below everything that is trained; None where there are none."""
    backbone = unwrapped(model).base_model
    lists = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    }
    if not lists or unwrapped(model).config.is_encoder_decoder:
        return None
    name, layers = max(lists.items(), key=lambda item: len(item[1]))
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    inside = [
        int(found[1]) for n in trained if (found := re.match(re.escape(name) + r"\.(\d+)\.", n))
    ]
    above = [n for n in trained if not n.startswith(f"{name}.")]
    if any("mbed" in n for n in above):
        return None
    height = min(inside, default=len(layers))
    return (layers, height) if height else None


@contextlib.contextmanager
def frozen_once(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    forward: Forward,
    *,
    tokens: int,
    lines: int,
    folder: Path,
) -> Iterator[str]:
    """Read all batches once; within it `reading` hands out what left the frozen layers, in any number of trainings.

    Where all layers are frozen and one token of a line is read above them, as by most heads, that token's state is kept alone:
    the training is then one of a head on a vector a line. Which token it is, the gradient says.

    Args:
        model: with its adapter, or with a part of it opened.
        batches: of all lines that will be asked for.
        forward: a use of a model on a batch that gives a number to compare.
        tokens: of all lines together.
        lines: how many there are.
        folder: for the states, where they are too many for the memory.

    Yields:
        A sentence about what was done, or why nothing was; empty where every layer is trained.
    """
    if (found := frozen_layers(model)) is None or (
        first := next(turns := iter(batches), None)
    ) is None:
        yield ""
        return
    layers, height = found
    inner = unwrapped(model)
    vars(inner)[TRUNK], trunk = (
        None,
        None,
    )  # nothing is kept yet, but nothing else is to be shared between lines either
    try:
        with torch.no_grad():
            forward(
                model, first
            )  # by the way the model is asked what it can leave out, while all its layers compute
        states, in_tuple = _leaving(layers, height, functools.partial(forward, model, first))
        part: Part = (
            _read_part(model, first, forward, states, in_tuple) if height == len(layers) else "all"
        )
        size = (
            (room := tokens if part == "all" else lines) * states.shape[2] * states.dtype.itemsize
        )
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if size > min(LARGEST_BYTES, DISK_SHARE * shutil.disk_usage(above).free):
            remark = f"the states of the {height} frozen layers would take {size / 2**30:.0f} GiB, so they are computed in every epoch."
        elif _stands_in(
            model,
            trunk := Trunk(
                layers, height, States(room, states.shape[2], states.dtype, folder), part, in_tuple
            ),
            first,
            forward,
            states,
        ):
            for batch in turns:
                trunk.keep(
                    batch, _leaving(layers, height, functools.partial(forward, model, batch))[0]
                )
            vars(inner)[TRUNK] = trunk
            what = (
                "their states"
                if part == "all"
                else f"the states of each line's {part} token, which alone is read above them"
            )
            remark = f"{height} of {len(layers)} layers are frozen and below all that is trained; {what}, {size / 2**20:.1f} MiB, are kept."
        else:
            remark = f"{type(inner).__name__} does not go on from kept states: its {height} frozen layers are computed in every epoch."
        if vars(inner)[TRUNK] is None:
            del vars(inner)[TRUNK]
        yield remark
    finally:
        vars(inner).pop(TRUNK, None)
        if trunk is not None:
            trunk.states.close()


@contextlib.contextmanager
def lent(
    owner: torch.nn.Module, model: torch.nn.Module, batch: Batch, forward: Forward
) -> Iterator[bool]:
    """Within it another model with the same frozen layers reads the states kept for `owner`, if it gives the same with them.

    Args:
        owner: for which `frozen_once` is open.
        model: made of the same weights, with as many frozen layers.
        batch: of lines that were read.
        forward: as for `frozen_once`.

    Yields:
        Whether it reads them.
    """
    own, inner, found = vars(unwrapped(owner)).get(TRUNK), unwrapped(model), frozen_layers(model)
    if own is None or TRUNK in vars(inner) or found is None or found[1] != own.height:
        yield TRUNK in vars(inner)
        return
    trunk, vars(inner)[TRUNK] = dataclasses.replace(own, layers=found[0]), None
    try:
        if _stands_in(model, trunk, batch, forward):
            vars(inner)[TRUNK] = trunk
        else:
            del vars(inner)[TRUNK]
        yield TRUNK in vars(inner)
    finally:
        vars(inner).pop(TRUNK, None)


def _read_part(
    model: torch.nn.Module, batch: Batch, forward: Forward, states: torch.Tensor, in_tuple: bool
) -> Part:
    """The token of every line whose state the result depends on, by its gradient; "all" where it is not the same one everywhere."""
    layers, height = frozen_layers(model) or (torch.nn.ModuleList(), 0)
    lengths = batch["attention_mask"].sum(1)

    def given() -> torch.Tensor:
        return leaf if (own := packing()) is None else own.pack(leaf)

    try:
        with torch.enable_grad(), _handing_out(layers, height, given, in_tuple):
            leaf = states.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(forward(model, batch), leaf)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return "all"
    read = gradient.abs().sum(2) != 0
    parts: list[tuple[Part, torch.Tensor]] = [
        ("first", torch.zeros_like(lengths)),
        ("last", lengths - 1),
    ]
    for part, place in parts:
        only = torch.arange(read.shape[1], device=read.device) == place.unsqueeze(1)
        if int(lengths.min()) > 1 and bool((read == only).all()):
            return part
    return "all"


@torch.no_grad()
def _stands_in(
    model: torch.nn.Module,
    trunk: Trunk,
    batch: Batch,
    forward: Forward,
    states: torch.Tensor | None = None,
) -> bool:
    try:
        if states is not None:
            trunk.keep(batch, states)
        if (places := trunk.places(batch)) is None:
            return False
        plain = float(forward(model, batch))
        with trunk.standing_in(batch, places) as short:
            kept = float(forward(model, short))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    near = 2e-2 if trunk.states.kept.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return abs(plain - kept) <= near * max(abs(plain), 1e-3)


@contextlib.contextmanager
def reading(model: torch.nn.Module, batch: Batch) -> Iterator[Batch]:
    """Use the model's kept states for this batch, if there are some of all its lines. Yields the batch to give to the model."""
    trunk: Trunk | None = vars(unwrapped(model)).get(TRUNK)
    places = None if trunk is None else trunk.places(batch)
    with (
        contextlib.nullcontext(batch)
        if trunk is None or places is None
        else trunk.standing_in(batch, places) as short
    ):
        yield short


@contextlib.contextmanager
def computing(model: torch.nn.Module) -> Iterator[None]:
    """Within it all layers of a model are computed, whatever is kept."""
    inner = unwrapped(model)
    trunk = vars(inner).pop(TRUNK, None)
    try:
        yield
    finally:
        if trunk is not None:
            vars(inner)[TRUNK] = trunk

"""Several adapters on one base: each line of a batch goes through the update and the head of its own adapter."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from peftcls.engine.packing import packing


class Update(NamedTuple):
    """One adapter's update of a linear layer: scale x up x down (Hu et al. 2021, section 4.1).

    Args:
        down: of shape (rank, inputs).
        up: of shape (outputs, rank).
        scale: what their product is multiplied by.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float


class Routes:
    """Which adapter, by its number, each line of the batch that is being read belongs to."""

    def __init__(self) -> None:
        self.one: int | None = 0
        self.owners = torch.zeros(0, dtype=torch.long)
        self.lines: dict[int, torch.Tensor] = {}
        self._kept: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextlib.contextmanager
    def only(self, adapter: int) -> Iterator[None]:
        """Within it every line belongs to one adapter, in a call of the model of any form."""
        before, self.one = self.one, adapter
        try:
            yield
        finally:
            self.one = before

    @contextlib.contextmanager
    def mixed(self, owners: torch.Tensor) -> Iterator[None]:
        """Within it the model reads lines that belong to the adapters of these numbers, of shape (lines,)."""
        before, self.one, self.owners = self.one, None, owners
        self.lines = {
            int(adapter): (owners == adapter).nonzero().squeeze(1) for adapter in owners.unique()
        }
        try:
            yield
        finally:
            self.one = before
            self._kept.clear()

    def kept(
        self, ranks: torch.Tensor, scales: torch.Tensor, layout: Any, inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which ranks of a layer's updates the batch needs, and their scale at each line or token: 0 at those of other adapters.

        Args:
            ranks: the adapter that each rank belongs to.
            scales: of each rank.
            layout: the same for layers whose ranks and scales are the same.
            inputs: of shape (lines, ...), or (1, real tokens, width) where the padding is left out.

        Raises:
            ValueError: the layer reads something else than the batch's lines.
        """
        own = packing()
        together = own is not None and inputs.shape[:2] == (1, len(own.given))
        if not together and len(inputs) != len(self.owners):
            raise ValueError(
                f"a layer reads {tuple(inputs.shape)} where the batch has {len(self.owners)} lines."
            )
        if (key := (layout, together, inputs.shape[1:-1])) not in self._kept:
            chosen = torch.isin(ranks, self.owners).nonzero().squeeze(1)
            owners = (
                self.owners[own.given // own.width] if own is not None and together else self.owners
            )
            table = (owners.unsqueeze(1) == ranks[chosen]) * scales[chosen]
            between = [1] * (inputs.ndim - 2)
            self._kept[key] = (
                chosen,
                table.view(1, *table.shape)
                if together
                else table.view(len(table), *between, table.shape[1]),
            )
        return self._kept[key]


class RoutedLinear(torch.nn.Module):
    """A frozen linear layer, computed once for all tokens, and the updates of several adapters, each on its own tokens.

    All adapters' matrices stand side by side, so that two products of matrices serve them all; between the two the
    ranks of other adapters are multiplied by zero.
    """

    def __init__(
        self, base: torch.nn.Module, routes: Routes, updates: Mapping[int, Update]
    ) -> None:
        super().__init__()
        self.base, self.routes, self.spans, end = base, routes, dict[int, slice](), 0
        for adapter, update in updates.items():
            self.spans[adapter] = slice(end, end := end + len(update.down))
        self.layout = tuple(
            (adapter, len(update.down), update.scale) for adapter, update in updates.items()
        )
        sizes = torch.tensor([len(update.down) for update in updates.values()])
        self.register_buffer(
            "down", torch.cat([update.down for update in updates.values()]), persistent=False
        )
        self.register_buffer(
            "up", torch.cat([update.up for update in updates.values()], dim=1), persistent=False
        )
        self.register_buffer(
            "ranks", torch.tensor(list(updates)).repeat_interleave(sizes), persistent=False
        )
        scales = torch.tensor([update.scale for update in updates.values()], dtype=self.down.dtype)
        self.register_buffer("scales", scales.repeat_interleave(sizes), persistent=False)

    down: torch.Tensor
    up: torch.Tensor
    ranks: torch.Tensor
    scales: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The base's own, which some models ask for its dtype."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The base's output and each token's update, in the base's dtype."""
        found, down, up = self.base(inputs), self.down, self.up
        if self.routes.one is not None:
            if (span := self.spans.get(self.routes.one)) is None:
                return found
            down, up, keep = down[span], up[:, span], self.scales[span]
        else:
            chosen, keep = self.routes.kept(self.ranks, self.scales, self.layout, inputs)
            if len(chosen) < len(down):
                down, up = down[chosen], up[:, chosen]
        return found.add_(
            F.linear(F.linear(inputs.to(down.dtype), down) * keep, up)
        )  # the sum is taken in the wider of the two


class RoutedHead(torch.nn.Module):
    """The heads of several adapters; outputs of a mixed batch are as wide as the widest, with zeros behind the others'."""

    def __init__(self, routes: Routes, heads: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.routes, self.heads = routes, torch.nn.ModuleList(heads)

    def forward(self, states: torch.Tensor, *more: Any, **settings: Any) -> torch.Tensor:
        """What each line's own head gives."""
        if self.routes.one is not None:
            return self.heads[self.routes.one](states, *more, **settings)
        if len(states) != len(self.routes.owners):
            raise ValueError(
                f"a head reads {tuple(states.shape)} where the batch has {len(self.routes.owners)} lines."
            )
        parts = {
            adapter: self.heads[adapter](states[lines], *more, **settings)
            for adapter, lines in self.routes.lines.items()
        }
        first, widest = next(iter(parts.values())), max(part.shape[-1] for part in parts.values())
        found = first.new_zeros(len(states), *first.shape[1:-1], widest)
        for adapter, lines in self.routes.lines.items():
            found[lines, ..., : parts[adapter].shape[-1]] = parts[adapter]
        return found


def put_in_place(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Let another module stand under a name in a model."""
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, module)

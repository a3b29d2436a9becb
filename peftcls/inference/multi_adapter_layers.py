"""Multi-adapter layers: each sequence of a batch uses the update and head of its own adapter."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from peftcls.engine.packing import Packing, current_packing


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
    """Says which adapter each sequence of the present batch belongs to, by the adapter's number.

    Either all sequences belong to `adapter`, or that is None and `owners` has a number for each.
    """

    def __init__(self) -> None:
        self.adapter: int | None = 0
        self.owners = torch.zeros(0, dtype=torch.long)
        self.sequences: dict[int, torch.Tensor] = {}
        self._chosen_ranks: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextlib.contextmanager
    def only(self, adapter: int) -> Iterator[None]:
        """Let every sequence belong to one adapter, in a call of the model of any form."""
        before = self.adapter
        self.adapter = adapter
        try:
            yield
        finally:
            self.adapter = before

    @contextlib.contextmanager
    def mixed(self, owners: torch.Tensor) -> Iterator[None]:
        """Let sequences belong to the adapters of these numbers, of shape (sequences,)."""
        before = self.adapter
        self.adapter = None
        self.owners = owners
        self.sequences = {
            int(adapter): (owners == adapter).nonzero().squeeze(1) for adapter in owners.unique()
        }
        try:
            yield
        finally:
            self.adapter = before
            self._chosen_ranks.clear()

    def choose_ranks(
        self, ranks: torch.Tensor, scales: torch.Tensor, layout: Any, inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the ranks of a layer's updates that a mixed batch needs, and scale them.

        Args:
            ranks: the adapter that each rank belongs to.
            scales: of each rank.
            layout: the same for layers whose ranks and scales are the same.
            inputs: of shape (sequences, ..., width), or (1, real tokens, width) in a padding-free
                forward pass.

        Returns:
            The indices of the ranks, and their scales at each sequence or token: 0 for those of
            other adapters.

        Raises:
            ValueError: the layer's inputs are not the batch's sequences.
        """
        packed = current_packing()
        if packed is not None and inputs.shape[:2] != (1, len(packed.gather_index)):
            packed = None
        if packed is None and len(inputs) != len(self.owners):
            raise ValueError(
                f"a layer reads {tuple(inputs.shape)} where the batch has "
                f"{len(self.owners)} sequences."
            )
        key = (layout, packed is None, inputs.shape[1:-1])
        if key not in self._chosen_ranks:
            chosen = torch.isin(ranks, self.owners).nonzero().squeeze(1)
            owners = self._owners_of_inputs(packed)
            table = (owners.unsqueeze(1) == ranks[chosen]) * scales[chosen]
            if packed is None:
                between = [1] * (inputs.ndim - 2)
                table = table.view(len(table), *between, table.shape[1])
            else:
                table = table.unsqueeze(0)
            self._chosen_ranks[key] = (chosen, table)
        return self._chosen_ranks[key]

    def _owners_of_inputs(self, packed: Packing | None) -> torch.Tensor:
        """The adapter of each sequence; in a padding-free forward pass, of each token."""
        if packed is None:
            return self.owners
        return self.owners[packed.gather_index // packed.width]


class RoutedLinear(torch.nn.Module):
    """A frozen linear layer, computed once for all tokens, and the updates of several adapters.

    The matrices of all adapters are concatenated, so that two matrix products serve them all.
    Between the two, the ranks of other adapters are multiplied by zero.
    """

    down: torch.Tensor
    up: torch.Tensor
    ranks: torch.Tensor
    scales: torch.Tensor

    def __init__(
        self, base: torch.nn.Module, routes: Routes, updates: Mapping[int, Update]
    ) -> None:
        super().__init__()
        self.base = base
        self.routes = routes
        self.spans: dict[int, slice] = {}
        start = 0
        for adapter, update in updates.items():
            end = start + len(update.down)
            self.spans[adapter] = slice(start, end)
            start = end
        self.layout = tuple(
            (adapter, len(update.down), update.scale) for adapter, update in updates.items()
        )
        down = torch.cat([update.down for update in updates.values()])
        up = torch.cat([update.up for update in updates.values()], dim=1)
        sizes = torch.tensor([len(update.down) for update in updates.values()])
        ranks = torch.tensor(list(updates)).repeat_interleave(sizes)
        scales = torch.tensor([update.scale for update in updates.values()], dtype=down.dtype)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("ranks", ranks, persistent=False)
        self.register_buffer("scales", scales.repeat_interleave(sizes), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight; some models look at its dtype."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Add each token's update to the base's output, which keeps its dtype."""
        output = self.base(inputs)
        adapter = self.routes.adapter
        if adapter is None:
            chosen, scales = self.routes.choose_ranks(self.ranks, self.scales, self.layout, inputs)
            down, up = self.down, self.up
            if len(chosen) < len(down):
                down = down[chosen]
                up = up[:, chosen]
        elif adapter in self.spans:
            span = self.spans[adapter]
            down = self.down[span]
            up = self.up[:, span]
            scales = self.scales[span]
        else:
            return output
        update = F.linear(F.linear(inputs.to(down.dtype), down) * scales, up)
        # The sum is taken in the wider of the two dtypes.
        return output.add_(update)


class RoutedHead(torch.nn.Module):
    """The heads of several adapters.

    Outputs of a mixed batch are as wide as the widest head's; those of the others end in zeros.
    """

    def __init__(self, routes: Routes, heads: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.routes = routes
        self.heads = torch.nn.ModuleList(heads)

    def forward(self, states: torch.Tensor, *more: Any, **settings: Any) -> torch.Tensor:
        """Compute the outputs of each sequence's own head, of shape (sequences, ..., widest)."""
        if self.routes.adapter is not None:
            return self.heads[self.routes.adapter](states, *more, **settings)
        if len(states) != len(self.routes.owners):
            raise ValueError(
                f"a head reads {tuple(states.shape)} where the batch has "
                f"{len(self.routes.owners)} sequences."
            )
        outputs = {
            adapter: self.heads[adapter](states[sequences], *more, **settings)
            for adapter, sequences in self.routes.sequences.items()
        }
        first = next(iter(outputs.values()))
        widest = max(output.shape[-1] for output in outputs.values())
        together = first.new_zeros(len(states), *first.shape[1:-1], widest)
        for adapter, output in outputs.items():
            together[self.routes.sequences[adapter], ..., : output.shape[-1]] = output
        return together


def replace_module(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Put a module in the place of another one of a model, by its name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)

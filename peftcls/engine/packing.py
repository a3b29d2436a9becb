"""Padding-free forward: layers see only real tokens, the last layer only used positions.

Only attention knows which row a token belongs to. The last layer computes keys and values for every
token, and everything else only for the tokens whose states are used.

The last layer is entered twice when it is computed for some tokens only:

    1. with all tokens, until its attention has keys, values and queries. Attention answers for the
       needed tokens and leaves the layer by `_AttendedError`.
    2. with the needed tokens. Its attention is handed the answer of the first pass, and the rest of
       the layer is computed for these tokens only.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional as F

from peftcls.engine.bin_packing import fill_bins, round_up

QUERY_STEP = 8  # the number of needed tokens of a bin is rounded up to a multiple of this
NEEDED_STEP = 16  # the number of all needed tokens is rounded up to a multiple of this


class _AttendedError(Exception):
    """Attention has answered for the needed tokens; the first pass through the layer ends here."""


@dataclasses.dataclass(frozen=True)
class BinGroup:
    """Bins of one width, which attention takes together; a bin holds the tokens of whole rows.

    Args:
        rows: the row whose token is in each slot, of shape (bins, slots of a bin); -1 where none
            is.
        position_ids: the position of that token in its row; 0 where there is none.
        query_slots: the slots of each bin that are needed after the last layer, padded to the most
            of any bin; of shape (bins, most).
        real_queries: indices into flattened `query_slots` of those that are not padding.
    """

    rows: torch.Tensor
    position_ids: torch.Tensor
    query_slots: torch.Tensor
    real_queries: torch.Tensor

    def take_queries(self, table: torch.Tensor) -> torch.Tensor:
        """The needed slots of a table of shape (bins, heads, slots, any)."""
        index = self.query_slots[:, None, :, None]
        return table.gather(2, index.expand(-1, table.shape[1], -1, table.shape[3]))


class Packing:
    """Where the real tokens of a batch are, bin by bin.

    Args:
        mask: 1 for real tokens, of shape (rows, tokens); each row begins with a real token.
        needed: True where the last layer's states are used, of the same shape; None for everywhere.
        prefix: keys and values of tokens before every row, two tensors of one row for each layer.
    """

    def __init__(
        self,
        mask: torch.Tensor,
        needed: torch.Tensor | None = None,
        prefix: Sequence[torch.Tensor] = (),
    ) -> None:
        self.rows, self.width = mask.shape
        self.prefix = prefix
        self.groups: list[BinGroup] = []
        self.masks: dict[tuple[int, int, torch.dtype], tuple[Any, torch.Tensor | None]] = {}
        self.holds_needed = False
        """Whether the states between layers are those of the needed tokens only."""
        self._subset_pass = False
        self._attention_output: list[torch.Tensor] = []
        self._place_tokens(mask, mask.bool() if needed is None else needed & mask.bool())

    def _place_tokens(self, mask: torch.Tensor, needed: torch.Tensor) -> None:
        """Make the bins, and the indices that carry tokens between them and the padded batch."""
        padding = self.rows * self.width  # the index behind the last token stands for "no token"
        scatter_index: list[torch.Tensor] = []
        needed_slots: list[torch.Tensor] = []
        first_slot = 0
        for row_table, position_table in fill_bins(mask.sum(1).tolist()):
            rows = torch.from_numpy(row_table).to(mask.device)
            positions = torch.from_numpy(position_table).to(mask.device)
            index = torch.where(rows < 0, padding, rows * self.width + positions)
            scatter_index.append(index.flatten())

            wanted = needed[rows, positions] & (rows >= 0)
            counts = wanted.sum(1)
            most = min(rows.shape[1], round_up(int(counts.max()), QUERY_STEP))
            query_slots = wanted.long().argsort(dim=1, descending=True, stable=True)[:, :most]
            is_real = torch.arange(most, device=mask.device) < counts.unsqueeze(1)
            real_queries = is_real.flatten().nonzero().squeeze(1)
            self.groups.append(BinGroup(rows, positions, query_slots, real_queries))

            bin_numbers = torch.arange(len(rows), device=mask.device).unsqueeze(1)
            starts = bin_numbers * rows.shape[1] + first_slot
            needed_slots.append((starts + query_slots).flatten()[real_queries])
            first_slot += rows.numel()
        self.scatter_index = torch.cat(scatter_index)
        self.needed_slots = torch.cat(needed_slots)
        self.needed_scatter_index = self.scatter_index[self.needed_slots]
        missing = -len(self.needed_slots) % NEEDED_STEP
        if missing:
            self.needed_slots = F.pad(self.needed_slots, (0, missing))
            self.needed_scatter_index = F.pad(
                self.needed_scatter_index, (0, missing), value=padding
            )

    @property
    def held_scatter_index(self) -> torch.Tensor:
        """The index, in the flattened padded batch, of each token whose state is held now."""
        if self.holds_needed:
            return self.needed_scatter_index
        return self.scatter_index

    @property
    def gather_index(self) -> torch.Tensor:
        """The same, with 0 for a slot that holds no token."""
        index = self.held_scatter_index
        return index.where(index < self.rows * self.width, 0)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """From (rows, tokens, width) to (1, slots, width); a single row stands for all."""
        every = states.expand(self.rows, -1, -1).reshape(self.rows * self.width, -1)
        return every.index_select(0, self.gather_index).unsqueeze(0)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Back to (rows, tokens, width), with zeros where no state is held."""
        # Empty slots all go to one row behind the last token, which is dropped.
        room = states.new_zeros(self.rows * self.width + 1, states.shape[2])
        padded = room.index_copy(0, self.held_scatter_index, states[0])
        return padded[:-1].view(self.rows, self.width, -1)

    def attend(
        self,
        attend_rows: Callable[..., tuple[torch.Tensor, Any]],
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention within each row, over packed heads of shape (1, heads, slots, width).

        Args:
            attend_rows: computes attention for padded rows.
            module: the layer's attention; it knows the layer's number, which a prefix needs.
            query: packed.
            key: packed.
            value: packed.
            mask: what each token sees, of shape (rows, 1, tokens, tokens of prefix and row); None
                where all tokens see all.
            more: for `attend_rows`.
        """
        if self._attention_output:
            return self._attention_output.pop(), None
        if mask is None and getattr(module, "is_causal", True):
            raise ValueError("packed tokens of a causal model need a mask.")
        binned = zip(
            self.groups,
            self._in_bins(query),
            self._in_bins(key),
            self._in_bins(value),
            strict=True,
        )
        outputs = []
        for number, (group, queries, keys, values) in enumerate(binned):
            if self._subset_pass and not len(group.real_queries):
                continue
            group_mask = self._mask_of(mask, number, query.dtype)
            if self._subset_pass:
                queries = group.take_queries(queries)
                if group_mask is not None:
                    group_mask = group.take_queries(group_mask)
            keys = self._behind_prefix(module, 0, keys)
            values = self._behind_prefix(module, 1, values)
            settings = {**more, "is_causal": False}
            output, _ = attend_rows(module, queries, keys, values, group_mask, **settings)
            output = output.flatten(0, 1)
            if self._subset_pass:
                output = output.index_select(0, group.real_queries)
            outputs.append(output)
        packed_output = torch.cat(outputs)
        if not self._subset_pass:
            return packed_output.unsqueeze(0), None
        missing = len(self.needed_slots) - len(packed_output)
        self._attention_output.append(F.pad(packed_output, (0, 0, 0, 0, 0, missing)).unsqueeze(0))
        raise _AttendedError

    def _in_bins(self, heads: torch.Tensor) -> list[torch.Tensor]:
        """From (1, heads, slots, width), for each group (bins, heads, slots of a bin, width)."""
        flat = heads.squeeze(0)
        slots = [group.rows.numel() for group in self.groups]
        parts = flat.split(slots, dim=1) if len(slots) > 1 else [flat]
        return [
            part.unflatten(1, tuple(group.rows.shape)).transpose(0, 1)
            for part, group in zip(parts, self.groups, strict=True)
        ]

    def _behind_prefix(self, module: Any, which: int, own: torch.Tensor) -> torch.Tensor:
        """Keys (0) or values (1) with those of the prefix before them."""
        if not self.prefix:
            return own
        before = self.prefix[2 * module.layer_idx + which]
        return torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)

    def _mask_of(
        self, mask: torch.Tensor | None, number: int, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """What each slot of a group's bins sees; None where all see all.

        Of its own row a slot sees what the model's mask says, of other rows nothing.
        """
        # Layers of one kind are given the same mask. It is kept, so that no other gets its id.
        key = (id(mask), number, dtype)
        if key not in self.masks:
            group_mask = self._make_mask(self.groups[number], mask, dtype)
            self.masks[key] = mask, group_mask if group_mask.any() else None
        return self.masks[key][1]

    def _make_mask(
        self, group: BinGroup, mask: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        prefix_tokens = 0 if mask is None else mask.shape[3] - mask.shape[2]
        same_row = group.rows.unsqueeze(2) == group.rows.unsqueeze(1)
        same_row = F.pad(same_row, (prefix_tokens, 0), value=True).unsqueeze(1)
        visible = torch.zeros(1, 1, 1, 1, dtype=dtype, device=same_row.device)
        if mask is not None:
            columns = F.pad(group.position_ids + prefix_tokens, (prefix_tokens, 0))
            columns[:, :prefix_tokens] = torch.arange(prefix_tokens, device=columns.device)
            # An empty slot sees what the first token of row 0 sees: at least itself.
            visible = mask[group.rows.clamp(min=0), :, group.position_ids].transpose(1, 2)
            visible = visible.gather(3, columns[:, None, None].expand(*visible.shape[:3], -1))
        return torch.where(same_row, visible, torch.finfo(visible.dtype).min)

    def last_layer_subset(self, whole_layer: Callable[..., Any]) -> Callable[..., Any]:
        """The last layer computed for the needed tokens only, in the two passes named above."""

        def layer(states: torch.Tensor, *inputs: Any, **more: Any) -> Any:
            self._subset_pass = True
            try:
                # A layer whose attention is its own, not ours, ends here.
                return whole_layer(states, *inputs, **more)
            except _AttendedError:
                self.holds_needed = True
            finally:
                self._subset_pass = False
            rotary = more.get("position_embeddings")
            if isinstance(rotary, tuple):
                needed = tuple(part[:, self.needed_slots] for part in rotary)
                more = {**more, "position_embeddings": needed}
            if "past_key_values" in more:
                more = {**more, "past_key_values": None}  # the first pass has stored them
            return whole_layer(states[:, self.needed_slots], *inputs, **more)

        return layer


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


def current_packing() -> Packing | None:
    """How the batch that this thread computes is packed; None where it is not."""
    return _current.get()


@contextlib.contextmanager
def run_packed(
    layers: torch.nn.ModuleList, packing: Packing, *, subset: bool = False
) -> Iterator[None]:
    """Let a model's layers see only real tokens while the context is open.

    The layers get hooks for that time, so no other thread may use the model meanwhile: hold
    `state_of(model).turns.lock`.

    Args:
        layers: of the model, in order.
        packing: of the batch that it will compute.
        subset: compute the last layer only for the tokens that `packing` calls needed.
    """
    packed_rotary: dict[int, tuple[torch.Tensor, ...]] = {}

    def enter(layer: torch.nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if not inputs:
            more = dict(more)
            inputs = (more.pop("hidden_states"),)
        if layer is layers[0]:
            inputs = (packing.pack(inputs[0]), *inputs[1:])
        rotary = more.get("position_embeddings")
        if isinstance(rotary, tuple):
            if id(rotary) not in packed_rotary:
                packed_rotary[id(rotary)] = tuple(packing.pack(part) for part in rotary)
            more = {**more, "position_embeddings": packed_rotary[id(rotary)]}
        return inputs, more

    def leave(_: torch.nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (packing.unpack(output[0]), *output[1:])
        return packing.unpack(output)

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leave))
    token = _current.set(packing)
    try:
        with contextlib.ExitStack() as stack:
            if subset:
                last = layers[-1]
                stack.enter_context(replaced_forward(last, packing.last_layer_subset(last.forward)))
            yield
    finally:
        _current.reset(token)
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward method while the context is open; contexts may be nested."""
    attributes = vars(module)
    before = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before

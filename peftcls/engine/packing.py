"""Work that is not needed left out of a model's layers: real tokens alone go through them, and the last one answers where it is read.

Attention alone sees rows. Of the last layer, keys and values are computed for every token, all else for those whose states are read.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from peftcls.engine.bin_packing import fill_bins, rounded

PACKS, NARROWS, LAYERS, CHECKPOINTING = "packs", "narrows", "layers_in_order", "can_checkpoint"
LEAST_TOKENS = 16  # of padding that are worth the packing
ASKED_STEP, READ_STEP = (
    8,
    16,
)  # what the number of tokens that are read is rounded up to: in a bin, and in all
PROBE = (7, 4, 2)


@dataclasses.dataclass(frozen=True)
class Group:
    """Bins of one width, which attention takes together: the tokens of a whole row, or of several, stand in each.

    Args:
        rows: the row whose token stands in each slot, of shape (bins, slots of a bin); -1 where none does.
        spots: the place of that token in its row; 0 where there is none.
        asked: the slots of each bin that are read of the last layer, padded; of shape (bins, most of any bin).
        asked_real: the places of `asked`, flat, that are not padding.
    """

    rows: torch.Tensor
    spots: torch.Tensor
    asked: torch.Tensor
    asked_real: torch.Tensor

    def asked_of(self, table: torch.Tensor) -> torch.Tensor:
        """What a table of shape (bins, heads, slots, any) holds of the slots that are read."""
        return table.gather(
            2, self.asked[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3])
        )


class _AttendedError(Exception):
    """Attention has answered for the tokens that are read; the rest of the layer need not be computed for the others."""


class Packing:
    """Where the real tokens of a batch stand, group by group.

    Args:
        mask: 1 for real tokens, of shape (rows, tokens), every row from its first token on.
        reads: True where the last layer's states will be read, of the same shape; everywhere unless given.
        opening: keys and values of what stands before every row, two tensors of one row for each layer.
    """

    def __init__(
        self,
        mask: torch.Tensor,
        reads: torch.Tensor | None = None,
        opening: Sequence[torch.Tensor] = (),
    ) -> None:
        self.opening, self.narrow, self.answer, self.is_short = (
            opening,
            False,
            list[torch.Tensor](),
            False,
        )
        self.rows, self.width = mask.shape
        self.groups: list[Group] = []
        self.masks: dict[
            tuple[int, int, torch.dtype], tuple[torch.Tensor | None, torch.Tensor | None]
        ] = {}
        reads, first, homes, read = (
            mask.bool() if reads is None else reads & mask.bool(),
            0,
            list[torch.Tensor](),
            list[torch.Tensor](),
        )
        for rows, spots in fill_bins(mask.sum(1).tolist()):
            table, places = (torch.from_numpy(found).to(mask.device) for found in (rows, spots))
            homes += [
                torch.where(
                    table < 0, self.rows * self.width, table * self.width + places
                ).flatten()
            ]
            wanted = reads[table, places] & (table >= 0)
            counts = wanted.sum(1)
            most = min(table.shape[1], rounded(int(counts.max()), ASKED_STEP))
            asked = wanted.long().argsort(dim=1, descending=True, stable=True)[:, :most]
            real = (
                (torch.arange(most, device=mask.device) < counts.unsqueeze(1))
                .flatten()
                .nonzero()
                .squeeze(1)
            )
            starts = (
                torch.arange(len(table), device=mask.device).unsqueeze(1) * table.shape[1] + first
            )
            self.groups.append(Group(table, places, asked, real))
            read += [(starts + asked).flatten()[real]]
            first += table.numel()
        self.homes, self.read = torch.cat(homes), torch.cat(read)
        self.read_homes = self.homes[self.read]
        if more := -len(self.read) % READ_STEP:
            self.read = torch.nn.functional.pad(self.read, (0, more))
            self.read_homes = torch.nn.functional.pad(
                self.read_homes, (0, more), value=self.rows * self.width
            )

    @property
    def given(self) -> torch.Tensor:
        """The places, in the padded batch, of the tokens that a layer is given now; 0 for a slot that holds none."""
        homes = self.read_homes if self.is_short else self.homes
        return homes.where(homes < self.rows * self.width, 0)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """From (rows, tokens, width) to (1, slots, width); one row stands for all where they are alike."""
        every = states.expand(self.rows, -1, -1).reshape(self.rows * self.width, -1)
        return every.index_select(0, self.given).unsqueeze(0)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Back to (rows, tokens, width), with zeros for padding, and for all that is not read if the last layer was short."""
        homes = self.read_homes if self.is_short else self.homes
        padded = states.new_zeros(self.rows * self.width + 1, states.shape[2]).index_copy(
            0, homes, states[0]
        )  # empty slots go to the end
        return padded[:-1].view(self.rows, self.width, -1)

    def attend(
        self,
        rows: Callable[..., tuple[torch.Tensor, Any]],
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention within each row, over packed heads of shape (1, heads, slots, width).

        Args:
            rows: computes it for padded rows.
            module: the layer's attention, which knows the layer's number where an opening stands before the rows.
            mask: what each token sees, of shape (rows, 1, tokens, tokens of the opening and of the row); None where all see all.
            more: for `rows`.
        """
        if self.answer:
            return self.answer.pop(), None
        if mask is None and getattr(module, "is_causal", True):
            raise ValueError("packed tokens of a causal model need a mask.")
        parts, groups = (
            [],
            enumerate(
                zip(
                    self.groups,
                    *(self._in_bins(heads) for heads in (query, key, value)),
                    strict=True,
                )
            ),
        )
        for number, (group, queries, keys, values) in groups:
            if self.narrow and not len(group.asked_real):
                continue
            seen = self._mask_of(mask, number, query.dtype)
            if self.narrow:
                queries, seen = (
                    group.asked_of(queries),
                    None if seen is None else group.asked_of(seen),
                )
            keys, values = (
                self._behind_opening(module, which, own) for which, own in enumerate((keys, values))
            )
            found, _ = rows(module, queries, keys, values, seen, **{**more, "is_causal": False})
            parts.append(
                found.flatten(0, 1).index_select(0, group.asked_real)
                if self.narrow
                else found.flatten(0, 1)
            )
        found = torch.cat(parts)
        if self.narrow:
            found = torch.nn.functional.pad(
                found, (0, 0, 0, 0, 0, len(self.read) - len(found))
            ).unsqueeze(0)
            self.answer.append(found)
            raise _AttendedError
        return found.unsqueeze(0), None

    def _in_bins(self, heads: torch.Tensor) -> list[torch.Tensor]:
        """From (1, heads, slots, width) for each group (bins, heads, slots of a bin, width)."""
        slots = [group.rows.numel() for group in self.groups]
        parts = heads.squeeze(0).split(slots, dim=1) if len(slots) > 1 else [heads.squeeze(0)]
        return [
            part.unflatten(1, tuple(group.rows.shape)).transpose(0, 1)
            for part, group in zip(parts, self.groups, strict=True)
        ]

    def _behind_opening(self, module: Any, which: int, own: torch.Tensor) -> torch.Tensor:
        if not self.opening:
            return own
        return torch.cat(
            [self.opening[2 * module.layer_idx + which].expand(len(own), -1, -1, -1), own], dim=2
        )

    def _mask_of(
        self, mask: torch.Tensor | None, number: int, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """What each slot of a group's bins sees: of its own row what the model's mask says, of others nothing; None where all see all."""
        key = (
            id(mask),
            number,
            dtype,
        )  # layers of one kind are given the same mask, which is kept, or another might have its number
        if key not in self.masks:
            group, spots = self.groups[number], self.groups[number].spots
            before = 0 if mask is None else mask.shape[3] - mask.shape[2]
            same = torch.nn.functional.pad(
                group.rows.unsqueeze(2) == group.rows.unsqueeze(1), (before, 0), value=True
            ).unsqueeze(1)
            own = torch.zeros(1, 1, 1, 1, dtype=dtype, device=same.device)
            if mask is not None:
                seen = torch.nn.functional.pad(spots + before, (before, 0))
                seen[:, :before] = torch.arange(before, device=seen.device)
                own = mask[group.rows.clamp(min=0), :, spots].transpose(
                    1, 2
                )  # of an empty slot: what a first token sees, itself
                own = own.gather(3, seen[:, None, None].expand(*own.shape[:3], -1))
            own = torch.where(same, own, torch.finfo(own.dtype).min)
            self.masks[key] = mask, own if own.any() else None
        return self.masks[key][1]

    def shortened(self, whole: Callable[..., Any]) -> Callable[..., Any]:
        """A layer that answers for the tokens that are read alone.

        It is begun with all tokens, whose keys and values attention needs, and left when attention has answered; then it is
        gone through with the tokens that are read, which attention hands that answer.
        """

        def layer(states: torch.Tensor, *inputs: Any, **more: Any) -> Any:
            self.narrow = True
            try:
                return whole(states, *inputs, **more)  # of a model whose attention is its own
            except _AttendedError:
                self.is_short = True
            finally:
                self.narrow = False
            if isinstance(rotary := more.get("position_embeddings"), tuple):
                more = {**more, "position_embeddings": tuple(part[:, self.read] for part in rotary)}
            more |= {
                name: None for name in ("past_key_values",) if name in more
            }  # which have been kept already
            return whole(states[:, self.read], *inputs, **more)

        return layer


_now: list[Packing] = []  # of the batch that a model is reading


def packing() -> Packing | None:
    """How the batch that is being read is packed; None where it is not."""
    return _now[-1] if _now else None


@contextlib.contextmanager
def packed(
    inner: Any,
    mask: torch.Tensor,
    *,
    reads: torch.Tensor | None = None,
    opening: Sequence[torch.Tensor] = (),
    asked: bool = False,
) -> Iterator[None]:
    """Within it a model's layers are given real tokens alone, if it can do with them and there is something to leave out.

    Args:
        inner: a transformers model.
        mask: 1 for real tokens, of shape (rows, tokens).
        reads: True where the states of the last layer will be read, of the same shape; the others are then zeros.
        opening: keys and values that stand before every row, in a model that has been asked whether it can pack.
        asked: do so without asking whether the model can.
    """
    if not asked:
        able = can_pack(inner) and bool(
            mask[:, 0].all()
        )  # the mask last: on a GPU, to look at it is to wait for it
        reads = reads if able and reads is not None and can_narrow(inner) else None
        if not able or (
            reads is None and not opening and mask.numel() - int(mask.sum()) < LEAST_TOKENS
        ):
            yield
            return
    own, layers, cosines = (
        Packing(mask, reads, opening),
        layers_of(inner.base_model),
        dict[int, Any](),
    )

    def enter(
        layer: torch.nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]
    ) -> tuple[Any, Any]:
        if not inputs:
            inputs, more = (
                (more["hidden_states"],),
                {k: v for k, v in more.items() if k != "hidden_states"},
            )
        if layer is layers[0]:
            inputs = (own.pack(inputs[0]), *inputs[1:])
        if isinstance(rotary := more.get("position_embeddings"), tuple):
            if id(rotary) not in cosines:
                cosines[id(rotary)] = tuple(own.pack(part) for part in rotary)
            more = {**more, "position_embeddings": cosines[id(rotary)]}
        return inputs, more

    def leave(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return (
            (own.unpack(output[0]), *output[1:])
            if isinstance(output, tuple)
            else own.unpack(output)
        )

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leave))
    before = vars(layers[-1]).get("forward")
    if reads is not None:
        vars(layers[-1])["forward"] = own.shortened(layers[-1].forward)
    _now.append(own)
    try:
        yield
    finally:
        _now.pop()
        for hook in hooks:
            hook.remove()
        vars(layers[-1]).pop("forward", None)
        if before is not None:
            vars(layers[-1])["forward"] = before


def layers_of(backbone: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of a backbone in order: its longest list of modules; empty where it has none."""
    if LAYERS not in vars(backbone):  # going through all modules takes as long as a small layer
        lists = (module for module in backbone.modules() if isinstance(module, torch.nn.ModuleList))
        vars(backbone)[LAYERS] = max(lists, key=len, default=torch.nn.ModuleList())
    return vars(backbone)[LAYERS]


def checkpoints(inner: torch.nn.Module) -> bool:
    """Whether any of a model's layers is computed again on the way back."""
    if CHECKPOINTING not in vars(inner):
        vars(inner)[CHECKPOINTING] = [
            module for module in inner.modules() if hasattr(module, "gradient_checkpointing")
        ]
    return any(module.gradient_checkpointing for module in vars(inner)[CHECKPOINTING])


def can_pack(inner: Any) -> bool:
    """Whether a model gives the same states without padding: asked once, of the model itself."""
    if checkpoints(inner):  # it computes again outside of all this
        return False
    if PACKS not in vars(inner):
        vars(inner)[PACKS] = (
            bool(layers_of(inner.base_model))
            and not inner.config.is_encoder_decoder
            and _packs_alike(inner)
        )
    return bool(vars(inner)[PACKS])


def can_narrow(inner: Any) -> bool:
    """Whether the last layer gives the same states for some tokens when it answers for them alone: asked once, of the model itself."""
    if not can_pack(inner):
        return False
    if NARROWS not in vars(inner):
        vars(inner)[NARROWS] = _packs_alike(inner, reads=True)
    return bool(vars(inner)[NARROWS])


@contextlib.contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Within it a model has no dropout, so that two readings can be compared."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _packs_alike(inner: Any, *, reads: bool = False) -> bool:
    backbone = inner.base_model
    parameter = next(p for p in inner.parameters() if p.is_floating_point())
    ids = torch.arange(11, 11 + PROBE[0] * len(PROBE), device=parameter.device).view(len(PROBE), -1)
    ids = ids.remainder(inner.config.get_text_config().vocab_size)
    mask = (
        torch.arange(PROBE[0], device=ids.device)
        < torch.tensor(PROBE, device=ids.device).unsqueeze(1)
    ).long()
    marks = mask.bool() & (ids % 3 > 0) if reads else mask.bool()
    used: list[Packing] = []
    try:
        with at_rest(inner):
            plain = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            with packed(inner, mask, reads=marks if reads else None, asked=True):
                short = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
                used = [own for own in _now if own.masks and own.is_short == reads]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    near = 0.1 if parameter.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool(used) and float((plain - short)[marks].abs().max()) <= near * float(
        plain.abs().max()
    )

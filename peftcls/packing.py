"""Work that is not needed left out of a model's layers: real tokens alone go through them, and the last one answers where it is read.

Attention alone sees rows. Of the last layer, keys and values are computed for every token, all else for those whose states are read.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from peftcls import plan

PACKS, NARROWS = "packs", "narrows"
LEAST_TOKENS = 16  # of padding that are worth the packing
GROUP_TOKENS = 48  # what another group of rows costs in attention, as a number of tokens
PROBE = (7, 4, 2)


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows of similar length, which attention takes together.

    Args:
        rows: their numbers.
        width: tokens of the longest.
        first: the place of their first token among all real tokens.
        last: the place behind their last.
        spread: for each place of the padded group, row by row, its token's place in the group; any, where there is none.
        real: the places of the padded group that hold a token.
        asked: the places in each row that are read of the last layer, padded; of shape (rows, most of any row).
        asked_spread: where those tokens stand in the group.
        asked_real: the places of `asked`, flat, that are not padding.
    """

    rows: torch.Tensor
    width: int
    first: int
    last: int
    spread: torch.Tensor
    real: torch.Tensor
    asked: torch.Tensor
    asked_spread: torch.Tensor
    asked_real: torch.Tensor


class _AttendedError(Exception):
    """Attention has answered for the tokens that are read; the rest of the layer need not be computed for the others."""


class Packing:
    """Where the real tokens of a batch stand, group by group.

    Args:
        mask: 1 for real tokens, of shape (rows, tokens), every row from its first token on.
        reads: True where the last layer's states will be read, of the same shape; everywhere unless given.
        opening: keys and values of what stands before every row, two tensors of one row for each layer.
    """

    def __init__(self, mask: torch.Tensor, reads: torch.Tensor | None = None, opening: Sequence[torch.Tensor] = ()) -> None:
        self.opening, self.narrow, self.answer, self.is_short = opening, False, list[torch.Tensor](), False
        reads = mask.bool() if reads is None else reads & mask.bool()
        self.rows, self.width = mask.shape
        self.lengths = mask.sum(1)
        lengths = self.lengths.tolist()
        self.groups: list[Group] = []
        self.masks: dict[tuple[int, int, bool], torch.Tensor] = {}
        start, places, read = 0, list[torch.Tensor](), list[torch.Tensor]()
        for members in plan.micro_batches(range(self.rows), lengths, call_tokens=GROUP_TOKENS):
            width, tokens = lengths[members[0]], sum(lengths[i] for i in members)
            inside = torch.arange(width, device=mask.device) < self.lengths[members].unsqueeze(1)
            spread = (inside.flatten().cumsum(0) - 1).clamp(min=0)
            counts = reads[members].sum(1)
            asked = reads[members].long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
            firsts = self.lengths[members].cumsum(0) - self.lengths[members]
            asked_spread = (firsts.unsqueeze(1) + asked).flatten().clamp(max=tokens - 1)
            real = torch.arange(asked.shape[1], device=mask.device) < counts.unsqueeze(1)
            self.groups.append(Group(torch.tensor(members, device=mask.device), width, start, start + tokens, spread,
                                     inside.flatten().nonzero().squeeze(1), asked, asked_spread, real.flatten().nonzero().squeeze(1)))
            places += [torch.arange(lengths[i], device=mask.device) + i * self.width for i in members]
            read += [start + asked_spread[self.groups[-1].asked_real]]
            start += tokens
        self.places, self.read = torch.cat(places), torch.cat(read)

    @property
    def given(self) -> torch.Tensor:
        """The places, in the padded batch, of the tokens that a layer is given now."""
        return self.places[self.read] if self.is_short else self.places

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """From (rows, tokens, width) to (1, real tokens, width); one row stands for all where they are alike."""
        if states.shape[0] == 1:
            states = states.expand(self.rows, -1, -1)
        return states.reshape(self.rows * self.width, -1).index_select(0, self.places).unsqueeze(0)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Back to (rows, tokens, width), with zeros for padding, and for all that is not read if the last layer was short."""
        padded = states.new_zeros(self.rows * self.width, states.shape[2]).index_copy(0, self.given, states[0])
        return padded.view(self.rows, self.width, -1)

    def attend(self, rows: Callable[..., tuple[torch.Tensor, Any]], module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
               value: torch.Tensor, mask: torch.Tensor | None, **more: Any) -> tuple[torch.Tensor, None]:
        """Attention within each row, over packed heads of shape (1, heads, real tokens, width).

        Args:
            rows: computes it for padded rows.
            module: the layer's attention, which knows the layer's number where an opening stands before the rows.
            mask: what each token sees, of shape (rows, 1, tokens, tokens of the opening and of the row); None where all see all.
            more: for `rows`.
        """
        if self.answer:
            return self.answer.pop(), None
        if mask is None and (getattr(module, "is_causal", True) or len(self.places) < self.rows * self.width):
            raise ValueError("packed tokens need a mask that tells their rows apart.")
        parts = []
        for number, group in enumerate(self.groups):
            if self.narrow and not len(group.asked_real):
                continue
            keys, values = (self._behind_opening(module, which, _spread(heads, group, group.spread))
                            for which, heads in enumerate((key, value)))
            queries = _spread(query, group, group.asked_spread if self.narrow else group.spread)
            found, _ = rows(module, queries, keys, values, self._mask_of(mask, number), **more)
            kept = group.asked_real if self.narrow else group.real
            parts.append(found.reshape(-1, *found.shape[2:]).index_select(0, kept))
        found = torch.cat(parts).unsqueeze(0)
        if self.narrow:
            self.answer.append(found)
            raise _AttendedError
        return found, None

    def _behind_opening(self, module: Any, which: int, own: torch.Tensor) -> torch.Tensor:
        if not self.opening:
            return own
        return torch.cat([self.opening[2 * module.layer_idx + which].expand(len(own), -1, -1, -1), own], dim=2)

    def _mask_of(self, mask: torch.Tensor | None, number: int) -> torch.Tensor | None:
        """A group's part of an attention mask."""
        if mask is None:
            return None
        key = (id(mask), number, self.narrow)  # layers of one kind are given the same mask
        if key not in self.masks:
            group, before = self.groups[number], mask.shape[3] - mask.shape[2]
            own = mask.index_select(0, group.rows)[..., : before + group.width]
            asked = group.asked[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[3])
            self.masks[key] = own.gather(2, asked) if self.narrow else own[:, :, : group.width]
        return self.masks[key]

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
            more |= {name: None for name in ("past_key_values",) if name in more}  # which have been kept already
            return whole(states[:, self.read], *inputs, **more)

        return layer


def _spread(heads: torch.Tensor, group: Group, places: torch.Tensor) -> torch.Tensor:
    """A group's part of (1, heads, real tokens, width), padded: (rows, heads, places a row, width)."""
    own = heads[0, :, group.first : group.last].index_select(1, places)
    return own.view(heads.shape[1], len(group.rows), len(places) // len(group.rows), heads.shape[3]).transpose(0, 1)


_now: list[Packing] = []  # of the batch that a model is reading


def packing() -> Packing | None:
    """How the batch that is being read is packed; None where it is not."""
    return _now[-1] if _now else None


@contextlib.contextmanager
def packed(inner: Any, mask: torch.Tensor, *, reads: torch.Tensor | None = None, opening: Sequence[torch.Tensor] = (),
           asked: bool = False) -> Iterator[None]:
    """Within it a model's layers are given real tokens alone, if it can do with them and there is something to leave out.

    Args:
        inner: a transformers model.
        mask: 1 for real tokens, of shape (rows, tokens).
        reads: True where the states of the last layer will be read, of the same shape; the others are then zeros.
        opening: keys and values that stand before every row, in a model that has been asked whether it can pack.
        asked: do so without asking whether the model can.
    """
    padding = mask.numel() - int(mask.sum())
    if not asked:
        able = bool(mask[:, 0].all()) and can_pack(inner)
        reads = reads if able and reads is not None and can_narrow(inner) else None
        if not able or (padding < LEAST_TOKENS and reads is None and not opening):
            yield
            return
    own, layers, cosines = Packing(mask, reads, opening), layers_of(inner.base_model), dict[int, Any]()

    def enter(layer: torch.nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]) -> tuple[Any, Any]:
        if not inputs:
            inputs, more = (more["hidden_states"],), {k: v for k, v in more.items() if k != "hidden_states"}
        if layer is layers[0]:
            inputs = (own.pack(inputs[0]), *inputs[1:])
        if isinstance(rotary := more.get("position_embeddings"), tuple):
            if id(rotary) not in cosines:
                cosines[id(rotary)] = tuple(own.pack(part) for part in rotary)
            more = {**more, "position_embeddings": cosines[id(rotary)]}
        return inputs, more

    def leave(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return (own.unpack(output[0]), *output[1:]) if isinstance(output, tuple) else own.unpack(output)

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
    return max((m for m in backbone.modules() if isinstance(m, torch.nn.ModuleList)), key=len, default=torch.nn.ModuleList())


def can_pack(inner: Any) -> bool:
    """Whether a model gives the same states without padding: asked once, of the model itself."""
    if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):  # it computes again outside of all this
        return False
    if PACKS not in vars(inner):
        vars(inner)[PACKS] = bool(layers_of(inner.base_model)) and not inner.config.is_encoder_decoder and _packs_alike(inner)
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
    mask = (torch.arange(PROBE[0], device=ids.device) < torch.tensor(PROBE, device=ids.device).unsqueeze(1)).long()
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
    return bool(used) and float((plain - short)[marks].abs().max()) <= near * float(plain.abs().max())

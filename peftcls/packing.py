"""Padding left out of a model's layers: real tokens alone go through them, and only attention sees rows."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from peftcls import plan

PACKS = "packs"
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
    """

    rows: torch.Tensor
    width: int
    first: int
    last: int
    spread: torch.Tensor
    real: torch.Tensor


class Packing:
    """Where the real tokens of a batch stand, group by group.

    Args:
        mask: 1 for real tokens, of shape (rows, tokens), every row from its first token on.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.rows, self.width = mask.shape
        self.lengths = mask.sum(1)
        lengths = self.lengths.tolist()
        self.groups: list[Group] = []
        self.masks: dict[tuple[int, int], torch.Tensor] = {}
        start, places = 0, []
        for members in plan.micro_batches(range(self.rows), lengths, call_tokens=GROUP_TOKENS):
            width, tokens = lengths[members[0]], sum(lengths[i] for i in members)
            inside = torch.arange(width, device=mask.device) < self.lengths[members].unsqueeze(1)
            spread = (inside.flatten().cumsum(0) - 1).clamp(min=0)
            self.groups.append(Group(torch.tensor(members, device=mask.device), width, start, start + tokens, spread,
                                     inside.flatten().nonzero().squeeze(1)))
            places += [torch.arange(lengths[i], device=mask.device) + i * self.width for i in members]
            start += tokens
        self.places = torch.cat(places)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """From (rows, tokens, width) to (1, real tokens, width); one row stands for all where they are alike."""
        if states.shape[0] == 1:
            states = states.expand(self.rows, -1, -1)
        return states.reshape(self.rows * self.width, -1).index_select(0, self.places).unsqueeze(0)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Back to (rows, tokens, width), with zeros for padding."""
        padded = states.new_zeros(self.rows * self.width, states.shape[2]).index_copy(0, self.places, states[0])
        return padded.view(self.rows, self.width, -1)

    def spread(self, heads: torch.Tensor, group: Group) -> torch.Tensor:
        """A group's part of (1, heads, real tokens, width), padded: (rows, heads, tokens, width)."""
        own = heads[0, :, group.first : group.last].index_select(1, group.spread)
        return own.view(heads.shape[1], len(group.rows), group.width, -1).transpose(0, 1)

    def mask_of(self, mask: torch.Tensor, number: int) -> torch.Tensor:
        """A group's part of an attention mask of shape (rows, 1, tokens, tokens)."""
        key = (id(mask), number)  # layers of one kind are given the same mask
        if key not in self.masks:
            group = self.groups[number]
            self.masks[key] = mask.index_select(0, group.rows)[:, :, : group.width, : group.width]
        return self.masks[key]


_now: list[Packing] = []  # of the batch that a model is reading


def packing() -> Packing | None:
    """How the batch that is being read is packed; None where it is not."""
    return _now[-1] if _now else None


@contextlib.contextmanager
def packed(inner: Any, mask: torch.Tensor, *, asked: bool = False) -> Iterator[None]:
    """Within it a model's layers are given real tokens alone, if it can do with them and there is padding to leave out.

    Args:
        inner: a transformers model.
        mask: 1 for real tokens, of shape (rows, tokens).
        asked: leave out any padding, without asking whether the model can do without.
    """
    padding = mask.numel() - int(mask.sum())
    if not asked and (padding < LEAST_TOKENS or not bool(mask[:, 0].all()) or not can_pack(inner)):
        yield
        return
    own, layers, cosines = Packing(mask), layers_of(inner.base_model), dict[int, Any]()

    def enter(layer: torch.nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]) -> tuple[Any, Any]:
        if layer is layers[0]:
            if inputs:
                inputs = (own.pack(inputs[0]), *inputs[1:])
            else:
                more = {**more, "hidden_states": own.pack(more["hidden_states"])}
        if isinstance(rotary := more.get("position_embeddings"), tuple):
            if id(rotary) not in cosines:
                cosines[id(rotary)] = tuple(own.pack(part) for part in rotary)
            more = {**more, "position_embeddings": cosines[id(rotary)]}
        return inputs, more

    def leave(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return (own.unpack(output[0]), *output[1:]) if isinstance(output, tuple) else own.unpack(output)

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leave))
    _now.append(own)
    try:
        yield
    finally:
        _now.pop()
        for hook in hooks:
            hook.remove()


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


@torch.no_grad()
def _packs_alike(inner: Any) -> bool:
    backbone, training = inner.base_model, [module for module in inner.modules() if module.training]
    parameter = next(p for p in inner.parameters() if p.is_floating_point())
    ids = torch.arange(11, 11 + PROBE[0] * len(PROBE), device=parameter.device).view(len(PROBE), -1)
    ids = ids.remainder(inner.config.get_text_config().vocab_size)
    mask = (torch.arange(PROBE[0], device=ids.device) < torch.tensor(PROBE, device=ids.device).unsqueeze(1)).long()
    inner.eval()  # dropout would make a difference of its own
    used: list[Packing] = []
    try:
        plain = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        with packed(inner, mask, asked=True):
            short = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            used = [own for own in _now if own.masks]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    finally:
        for module in training:
            module.training = True
    near = 0.1 if parameter.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool(used) and float((plain - short)[mask.bool()].abs().max()) <= near * float(plain.abs().max())

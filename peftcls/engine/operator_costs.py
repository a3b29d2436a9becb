"""Counts bytes and FLOPs of operators; on torch's meta device, that is without memory and time."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperatorCosts(TorchDispatchMode):
    """Counts what operators make and multiply while the context is open.

    A storage counts from the operator that returns it until nothing refers to it, as with an
    allocator. Views share one. What exists before, such as weights, is not counted.

    `FlopCounterMode` of torch gives the same FLOPs, but keeps tensors longer than the computation
    does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0.0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        existing = {id(storage) for storage in _storages((*args, *kwargs.values()))}
        output = operator(*args, **kwargs)
        for storage in _storages(output):
            if id(storage) not in existing and id(storage) not in self._sizes:
                self._add(storage)
        count_flops = flop_registry.get(operator._overloadpacket)
        if count_flops is not None:
            self.flops += count_flops(*args, **kwargs, out_val=output)
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        self._sizes[key] = storage.nbytes()
        self.live_bytes += self._sizes[key]
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of the tensors in arguments or results, also of those in lists."""
    if isinstance(values, torch.Tensor):
        yield values.untyped_storage()
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _storages(value)

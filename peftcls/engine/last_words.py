"""Why a process of a distributed run ended, left where the other processes can read it."""

import contextlib
import itertools
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

# The store may have been in the process that has ended.
PATIENCE = timedelta(seconds=5)
_NUMBERS = itertools.count()


class LastWords:
    """The sentence of the first process to end, of those that made this object together.

    torchrun keeps the store in a process of its own. Where another launcher keeps it in the first
    process of the run, that one's words are lost with it.
    """

    def __init__(self) -> None:
        # All processes have as many runs, one after another; an earlier one's words are not read.
        self._key = f"peftcls/last_words/{next(_NUMBERS)}"

    def leave(self, error: BaseException) -> None:
        """Leave the sentence of an error that ends this process."""
        if not dist.is_initialized():
            return
        with contextlib.suppress(RuntimeError, dist.DistStoreError):
            _get_default_store().set(self._key, str(error) or type(error).__name__)

    def read(self) -> str | None:
        """What a process has left; None where none could."""
        if not dist.is_initialized():
            return None
        with contextlib.suppress(RuntimeError, dist.DistStoreError):
            store = _get_default_store()
            store.set_timeout(PATIENCE)
            if store.check([self._key]):
                return bytes(store.get(self._key)).decode(errors="replace")
        return None

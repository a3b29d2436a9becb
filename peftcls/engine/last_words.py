"""Why a process of a distributed run ended, left where the other processes can read it."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from peftcls.engine.lost_processes import is_lost_process
from peftcls.errors import RunStoppedError

_NUMBERS = itertools.count()


@contextlib.contextmanager
def saying_why_others_end(place: Callable[[], str], advice: str) -> Iterator[None]:
    """Say so where the body fails because another process has ended, and why that one did.

    All processes enter it equally often. torchrun keeps what they say in a process of its own;
    where another launcher keeps it in the first process of the run, that one's words are lost with
    it.

    Args:
        place: how far this process has come, for the message: "after step 4".
        advice: what to do where it is not known why the other one ended.

    Raises:
        RunStoppedError: another process has ended, or does not answer.
    """
    key = f"peftcls/last_words/{next(_NUMBERS)}"
    try:
        yield
    except Exception as error:
        if not dist.is_initialized():
            raise
        if not is_lost_process(error):
            _leave(key, str(error) or type(error).__name__)
            raise
        why = _read(key)
        if why is not None:
            raise RunStoppedError(f"another process has ended, {place()}: {why}") from error
        raise RunStoppedError(
            f"another process has ended or does not answer, {place()} ({error}). {advice}"
        ) from error


def _leave(key: str, sentence: str) -> None:
    """Leave a sentence under a key, unless another process was first."""
    with contextlib.suppress(RuntimeError, dist.DistStoreError):
        _get_default_store().compare_set(key, "", sentence)


def _read(key: str) -> str | None:
    """The sentence under a key; None where there is none, or no store any more."""
    with contextlib.suppress(RuntimeError, dist.DistStoreError):
        store = _get_default_store()
        if store.check([key]):
            return bytes(store.get(key)).decode(errors="replace")
    return None

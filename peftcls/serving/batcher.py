"""Dynamic batching: a worker thread joins the requests that wait into one forward pass.

There is no artificial wait. While the model computes one batch, the next requests gather; so the
batches grow with the load, and a request that comes alone is answered at once. A timed wait would
make every lone request slower, and under load it would gain nothing: the model is busy all the time
anyway.
"""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from peftcls.engine.batching import MicroBatch, micro_batches
from peftcls.tasks.base import Answer, Feature

logger = logging.getLogger("peftcls")

Answers = list[Answer]
AnswerTogether = Callable[[Sequence[str], Sequence[Feature]], Answers]


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A request, or a part of one, whose rows are tokenized.

    Args:
        adapter: the name of the adapter that answers it.
        features: its rows, one or more.
        future: receives the answers, or the error.
    """

    adapter: str
    features: Sequence[Feature]
    future: "Future[Answers]"

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(feature["input_ids"]) for feature in self.features)


class Batcher:
    """Answers requests with one model, in their order, as many together as fit.

    The thread starts with the first request, and again after `close`.
    """

    def __init__(
        self,
        answer_together: AnswerTogether,
        *,
        batch_rows: int,
        batch_tokens: int,
        count_batch: Callable[[int], None],
    ) -> None:
        """Start nothing yet.

        Args:
            answer_together: answers rows, each with the adapter of its name.
            batch_rows: at most this many rows are answered together; one request may have more.
            batch_tokens: as `batch_rows`; more would not make a row cheaper, and its request wait.
            count_batch: called with the number of rows of each batch.
        """
        self._answer_together = answer_together
        self._batch_rows = batch_rows
        self._batch_tokens = batch_tokens
        self._count_batch = count_batch
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._computing_requests = 0

    def submit(self, adapter: str, features: Sequence[Feature]) -> "Future[Answers]":
        """Queue a request of one row or more; a future that is cancelled leaves the queue."""
        future: Future[Answers] = Future()
        with self._changed:
            self._waiting.append(Waiting(adapter, features, future))
            if self._thread is None:
                self._is_closing = False
                self._thread = threading.Thread(target=self._run, name="peftcls", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def parts(self, features: Sequence[Feature]) -> list[MicroBatch]:
        """Cut the rows of a long request into parts that fit into a batch, as lists of indices.

        Submitted one after another, they let other requests in between, and the rest is not
        computed when the client leaves.
        """
        lengths = [len(feature["input_ids"]) for feature in features]
        if len(features) <= self._batch_rows and sum(lengths) <= self._batch_tokens:
            return [list(range(len(features)))]
        return micro_batches(
            range(len(features)), lengths, rows=self._batch_rows, tokens=self._batch_tokens
        )

    def waiting_requests(self) -> int:
        """How many requests are in the queue; those that are being computed are not."""
        return len(self._waiting)

    def computing_requests(self) -> int:
        """How many requests are in the batch that is being computed."""
        return self._computing_requests

    def close(self, timeout_seconds: float) -> None:
        """Answer what waits, and end the thread; it is left alone when it takes longer."""
        with self._changed:
            thread = self._thread
            self._is_closing = True
            self._changed.notify()
        if thread is not None:
            thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                return
            self._answer(batch)
            self._computing_requests = 0

    def _next_batch(self) -> list[Waiting]:
        """Wait for requests and take those that fit, the oldest first; none at the end."""
        batch: list[Waiting] = []
        rows = 0
        tokens = 0
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    self._thread = None
                    return []
                while self._waiting:
                    request = self._waiting[0]
                    if batch and not self._fits(rows, tokens, request):
                        break
                    self._waiting.popleft()
                    # False where the client no longer waits.
                    if request.future.set_running_or_notify_cancel():
                        batch.append(request)
                        rows += len(request.features)
                        tokens += request.tokens
            self._computing_requests = len(batch)
        return batch

    def _fits(self, rows: int, tokens: int, request: Waiting) -> bool:
        """Whether a request fits beside the rows that are in a batch."""
        return (
            rows + len(request.features) <= self._batch_rows
            and tokens + request.tokens <= self._batch_tokens
        )

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Answer requests together; where that fails, one by one, so that only the bad ones do."""
        names: list[str] = []
        features: list[Feature] = []
        for request in batch:
            names += [request.adapter] * len(request.features)
            features += request.features
        try:
            answers = self._answer_together(names, features)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            logger.warning("a batch failed, its requests are answered one by one: %r", error)
            for request in batch:
                self._answer([request])
            return
        self._count_batch(len(features))
        start = 0
        for request in batch:
            end = start + len(request.features)
            request.future.set_result(answers[start:end])
            start = end

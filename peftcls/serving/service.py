"""A service without HTTP: it admits requests, tokenizes them, and has them answered in batches."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from peftcls.engine.kernels import batch_tokens
from peftcls.serving.adapters import Group, Served
from peftcls.serving.batcher import Batcher
from peftcls.serving.limits import Limits, RefusedError
from peftcls.serving.measures import Measures
from peftcls.serving.request_body import TOO_LARGE, Body
from peftcls.tasks.base import Answer, Feature

UNAVAILABLE = 503
RETRY_SECONDS = 1


class Service:
    """Answers the requests of all clients; one batcher for each base.

    Rows are tokenized by a thread of their own while the models compute: a tokenizer takes one call
    at a time anyway.
    """

    def __init__(self, groups: Sequence[Group], limits: Limits) -> None:
        self.limits = limits
        self.adapters: dict[str, Served] = {}
        self.measures = Measures(self.waiting_requests, self.computing_requests)
        self._batchers: dict[str, Batcher] = {}
        for group in groups:
            batcher = self._batcher_of(group)
            self.adapters |= group.adapters
            self._batchers |= dict.fromkeys(group.adapters, batcher)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="peftcls-tokenizing")
        self._lock = threading.Lock()
        self._open_requests = 0
        self.is_ready = True

    def _batcher_of(self, group: Group) -> Batcher:
        def answer_together(names: Sequence[str], features: Sequence[Feature]) -> list[Answer]:
            return group.answer(names, features, self.limits.batch_size)

        return Batcher(
            answer_together,
            batch_rows=self.limits.batch_size,
            batch_tokens=batch_tokens(group.device),
            count_batch=self.measures.count_batch,
        )

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place for a request, from before its body is read until it is answered.

        Raises:
            RefusedError: all places are taken, or the service is ending.
        """
        with self._lock:
            if not self.is_ready:
                raise RefusedError(UNAVAILABLE, "the service is ending.", RETRY_SECONDS)
            if self._open_requests >= self.limits.max_open_requests:
                raise RefusedError(
                    UNAVAILABLE,
                    f"the queue is full with {self._open_requests} requests; try again later.",
                    RETRY_SECONDS,
                )
            self._open_requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._open_requests -= 1

    async def answer(self, name: str, body: Body) -> tuple[list[Answer], int]:
        """Answer the rows of a request, in their order, and count those that were shortened.

        Raises:
            RowError: the task cannot read a row.
            RefusedError: a row has too many tokens.
        """
        served = self.adapters[name]
        rows = body.rows_for(served.task)
        if not rows:
            return [], 0

        def tokenize() -> list[Feature]:
            return served.tokenize(rows, source=body.source)

        loop = asyncio.get_running_loop()
        features = await loop.run_in_executor(self._tokenizing, tokenize)
        self._check_tokens(features)
        answers = await self._answer_in_parts(name, features)
        shortened_rows = sum(feature["shortened"] for feature in features)
        self.measures.count_rows(name, len(answers), shortened_rows)
        return answers, shortened_rows

    def _check_tokens(self, features: Sequence[Feature]) -> None:
        """Refuse a row that would hold up all others; only one that is read in windows can."""
        for number, feature in enumerate(features, 1):
            tokens = len(feature["input_ids"])
            if tokens > self.limits.max_row_tokens:
                raise RefusedError(
                    TOO_LARGE,
                    f"row {number} has {tokens} tokens in all its windows, expected at most "
                    f"{self.limits.max_row_tokens}; send its text in pieces.",
                )

    async def _answer_in_parts(self, name: str, features: Sequence[Feature]) -> list[Answer]:
        batcher = self._batchers[name]
        answers: dict[int, Answer] = {}
        for part in batcher.parts(features):
            chosen = [features[i] for i in part]
            found = await asyncio.wrap_future(batcher.submit(name, chosen))
            answers.update(zip(part, found, strict=True))
        return [answers[i] for i in range(len(features))]

    def open_requests(self) -> int:
        """How many requests are being read, wait or are being answered."""
        return self._open_requests

    def waiting_requests(self) -> int:
        """How many requests are in the queues of the models."""
        return sum(batcher.waiting_requests() for batcher in set(self._batchers.values()))

    def computing_requests(self) -> int:
        """How many requests the models are computing."""
        return sum(batcher.computing_requests() for batcher in set(self._batchers.values()))

    def open(self) -> None:
        """Take requests, also after `close`."""
        self.is_ready = True

    def close(self) -> None:
        """Refuse new requests, and wait until those in the queues are answered."""
        self.is_ready = False
        for batcher in set(self._batchers.values()):
            batcher.close(self.limits.timeout_seconds)

"""What a service counts and times, in the text form of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a short text on a GPU to a long table on a CPU.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# The adapter of requests that were refused before they named one that exists.
UNKNOWN = ""


class Measures:
    """Counters of one service; a process may have several services."""

    def __init__(
        self, waiting_requests: Callable[[], float], computing_requests: Callable[[], float]
    ) -> None:
        """Start at zero.

        Args:
            waiting_requests: how many are in the queues now.
            computing_requests: how many the models are computing now.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "peftcls_requests",
            "Requests to answer rows, by adapter and HTTP status.",
            ["adapter", "status"],
            registry=self._registry,
        )
        self._errors = Counter(
            "peftcls_errors",
            "Requests that were refused or failed, by HTTP status.",
            ["status"],
            registry=self._registry,
        )
        self._rows = Counter(
            "peftcls_rows", "Answered rows, by adapter.", ["adapter"], registry=self._registry
        )
        self._shortened_rows = Counter(
            "peftcls_shortened_rows",
            "Answered rows that had more tokens than are read, by adapter.",
            ["adapter"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "peftcls_request_seconds",
            "Time from a request's headers to its answers.",
            registry=self._registry,
            buckets=SECONDS,
        )
        self._batch_rows = Histogram(
            "peftcls_batch_rows",
            "Rows that were answered together.",
            registry=self._registry,
            buckets=ROWS,
        )
        waiting = Gauge(
            "peftcls_waiting_requests",
            "Requests in the queue; those that are being computed are not.",
            registry=self._registry,
        )
        waiting.set_function(waiting_requests)
        computing = Gauge(
            "peftcls_computing_requests",
            "Requests in the batches that are being computed.",
            registry=self._registry,
        )
        computing.set_function(computing_requests)

    def count_request(self, adapter: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(adapter, str(status)).inc()
        self._seconds.observe(seconds)
        if status >= 400:
            self._errors.labels(str(status)).inc()

    def count_rows(self, adapter: str, rows: int, shortened_rows: int) -> None:
        """Count answered rows."""
        self._rows.labels(adapter).inc(rows)
        self._shortened_rows.labels(adapter).inc(shortened_rows)

    def count_batch(self, rows: int) -> None:
        """Count rows that were answered together."""
        self._batch_rows.observe(rows)

    def text(self) -> bytes:
        """Everything in the text form of Prometheus."""
        return generate_latest(self._registry)

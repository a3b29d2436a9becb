"""`peftcls serve` that is killed again and again while clients ask.

    python benchmarks/serve_kills.py --kills 12

Two tiny adapters on the base of the package, one with a label for each text and one with several,
answer requests of one to eight texts. The server is ended by SIGKILL and by SIGTERM in turn, and
started again on the same port. Each server is a process of its own that runs the command; it is
forked from one that has imported the package already, so that it starts sooner. Meanwhile clients
go on asking. What counts:

- every complete answer is compared with the predictor's; none may differ;
- half of an answer must be seen as one: it must never read as a whole answer;
- requests that the server had accepted before a SIGTERM are all answered.

A request counts as accepted if the server has answered another one that came after it on a
connection of its own, since it takes connections in their order. The exit code is 1 if anything of
this does not hold. Results go to the file that `--out` names, and to the screen.
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import transformers
from real_data import versions

import peftcls
from peftcls import cli
from peftcls.demo import sample
from peftcls.models.adapter_folder import save_adapter
from peftcls.serving.server import open_socket
from peftcls.tasks.answers import Answer

TASKS = {
    "one": peftcls.Classification(labels=("a", "b", "c"), max_length=64),
    "several": peftcls.Classification(labels=("x", "y", "z"), multi_label=True, max_length=64),
}
TEXTS = 40
MOST_TEXTS = 8
ACCEPTED_REQUESTS = 4
ACCEPTED_TEXTS = 16
"""Of each request that is in work when a signal comes, so that it is in work for some time."""
TOLERANCE = 1e-4
TIMEOUT_SECONDS = 60.0
WAIT_SECONDS = 0.05
# What a server imports when it starts.
PRELOADED = ["peftcls.cli.serving", "peftcls.serving.app", "peftcls.serving.server", "peft"]
# What a connection without any answer raises; half of an answer raises IncompleteRead.
NO_ANSWER = (ConnectionError, http.client.RemoteDisconnected, http.client.BadStatusLine)
FAILURES = ("wrong", "half taken for whole", "other status", "accepted and lost", "exit code")
Expected = dict[tuple[str, str], Answer]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request: the adapter and the texts; as rows or as bare texts."""

    adapter: str
    texts: tuple[str, ...]
    as_rows: bool

    @property
    def body(self) -> str:
        """The request as JSON."""
        items: list[Any] = list(self.texts)
        if self.as_rows:
            items = [{"text": text} for text in self.texts]
        return json.dumps({"rows" if self.as_rows else "texts": items, "adapter": self.adapter})


class Counts:
    """Counts what became of requests, from any thread."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, outcome: str) -> None:
        """Count one."""
        with self._lock:
            self._counts[outcome] += 1

    def __getitem__(self, outcome: str) -> int:
        with self._lock:
            return self._counts[outcome]

    def sorted(self) -> dict[str, int]:
        """All counts by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))


def write_folders(folder: Path) -> list[Path]:
    """Write the two adapter folders; their weights are far from the base, as after training."""
    folders = []
    for seed, (name, task) in enumerate(TASKS.items()):
        model, tokenizer = peftcls.load_base("demo", task, dtype=torch.float32)
        model = peftcls.attach_lora(model, task, rank=4)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        save_adapter(folder / name, model, task, tokenizer)
        folders.append(folder / name)
    return folders


def answers_of_predictors(folders: Sequence[Path], texts: Sequence[str]) -> Expected:
    """The answer of each adapter's predictor to each text."""
    expected = {}
    for folder in folders:
        answers = peftcls.load_predictor(folder).predict(list(texts))
        for text, answer in zip(texts, answers, strict=True):
            expected[folder.name, text] = answer
    return expected


def outcome_of(response: http.client.HTTPResponse, asked: Asked, expected: Expected) -> str:
    """What a complete response is worth."""
    content = response.read()  # raises IncompleteRead where its end is missing
    try:
        fields = json.loads(content)
    except ValueError:
        return "half taken for whole"
    if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return "refused"
    if response.status != http.HTTPStatus.OK:
        return "other status"
    if len(fields["answers"]) != len(asked.texts):
        return "half taken for whole"
    is_right = fields["adapter"] == asked.adapter and all(
        _is_same(found, expected[asked.adapter, text])
        for found, text in zip(fields["answers"], asked.texts, strict=True)
    )
    return "right" if is_right else "wrong"


def _is_same(found: dict[str, Any], right: Answer) -> bool:
    """Whether the fields of a response are those of an answer, up to rounding."""
    labels = None if right.labels is None else list(right.labels)
    probabilities = right.probabilities or {}
    return (
        found.get("label") == right.label
        and found.get("labels") == labels
        and found["probabilities"].keys() == probabilities.keys()
        and all(
            abs(found["probabilities"][name] - value) <= TOLERANCE
            for name, value in probabilities.items()
        )
    )


def begin(port: int, asked: Asked) -> http.client.HTTPConnection:
    """Send a request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    connection.request("POST", "/predict", asked.body, {"Content-Type": "application/json"})
    return connection


def finish(connection: http.client.HTTPConnection, asked: Asked, expected: Expected) -> str:
    """What became of a request that was sent."""
    try:
        return outcome_of(connection.getresponse(), asked, expected)
    except http.client.IncompleteRead:
        return "cut off"
    except NO_ANSWER:
        return "no answer"
    finally:
        connection.close()


class Client(threading.Thread):
    """Asks one request after the other until it is stopped, whether the server is there or not."""

    def __init__(
        self, port: int, texts: Sequence[str], expected: Expected, counts: Counts, seed: int
    ) -> None:
        super().__init__()
        self.port = port
        self.texts = texts
        self.expected = expected
        self.counts = counts
        self.draw = random.Random(seed)
        self.stopped = threading.Event()

    def run(self) -> None:
        """Ask and count."""
        while not self.stopped.is_set():
            count = self.draw.randint(1, MOST_TEXTS)
            asked = Asked(
                self.draw.choice(list(TASKS)),
                tuple(self.draw.choices(self.texts, k=count)),
                self.draw.random() < 0.5,
            )
            try:
                outcome = finish(begin(self.port, asked), asked, self.expected)
            except NO_ANSWER:
                outcome = "no server"
                time.sleep(WAIT_SECONDS)
            self.counts.add(outcome)


def serve(folders: Sequence[Path], port: int) -> None:
    """Run the command in this process, and end as it does."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = cli.main(["serve", *map(str, folders), "--port", str(port)])
    sys.exit(code)


def start(context: ForkServerContext, folders: Sequence[Path], port: int) -> ForkServerProcess:
    """Start a server, and wait until it takes connections."""
    process = context.Process(target=serve, args=(list(folders), port))
    process.start()
    while not is_healthy(port):
        if not process.is_alive():
            raise RuntimeError(f"the server did not start: exit code {process.exitcode}")
        time.sleep(WAIT_SECONDS)
    return process


def is_healthy(port: int) -> bool:
    """Whether a server answers on the port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except NO_ANSWER:
        return False
    finally:
        connection.close()


def begin_accepted(
    port: int, texts: Sequence[str], seed: int
) -> list[tuple[http.client.HTTPConnection, Asked]]:
    """Send requests that the server is sure to have accepted when this returns."""
    draw = random.Random(seed)
    sent = []
    for number in range(ACCEPTED_REQUESTS):
        name = list(TASKS)[number % len(TASKS)]
        asked = Asked(name, tuple(draw.choices(texts, k=ACCEPTED_TEXTS)), number % 2 == 0)
        sent.append((begin(port, asked), asked))
    if not is_healthy(port):
        raise RuntimeError("the server takes connections and gives no answer")
    return sent


def kill(
    process: ForkServerProcess,
    number: signal.Signals,
    port: int,
    texts: Sequence[str],
    expected: Expected,
    counts: Counts,
) -> None:
    """End the server while requests are in work, and count what became of them."""
    assert process.pid is not None
    accepted = begin_accepted(port, texts, seed=process.pid)
    os.kill(process.pid, number)
    for connection, asked in accepted:
        outcome = finish(connection, asked, expected)
        counts.add(f"accepted before {number.name}: {outcome}")
        if outcome in FAILURES:
            counts.add(outcome)
        elif number == signal.SIGTERM and outcome != "right":
            counts.add("accepted and lost")
    process.join(TIMEOUT_SECONDS)
    expected_code = -number if number == signal.SIGKILL else 128 + number
    if process.exitcode != expected_code:
        counts.add("exit code")


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Kill and start the server as often as asked for. Returns the counts and times."""
    texts = [row["text"] for row in peftcls.read_rows(sample("messages_train.csv"))][:TEXTS]
    with open_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    counts = Counts()
    seconds = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = write_folders(Path(temporary))
        expected = answers_of_predictors(folders, texts)
        process = start(context, folders, port)
        clients = [Client(port, texts, expected, counts, seed) for seed in range(options.clients)]
        started = time.perf_counter()
        try:
            for client in clients:
                client.start()
            for turn in range(options.kills):
                _wait_for_answers(counts, counts["right"] + options.answers)
                number = (signal.SIGKILL, signal.SIGTERM)[turn % 2]
                kill(process, number, port, texts, expected, counts)
                ended = time.perf_counter()
                process = start(context, folders, port)
                seconds.append(time.perf_counter() - ended)
            _wait_for_answers(counts, counts["right"] + options.answers)
        finally:
            for client in clients:
                client.stopped.set()
            for client in clients:
                client.join()
            process.kill()
            process.join()
    return {
        "kills": options.kills,
        "clients": options.clients,
        "requests": counts.sorted(),
        "failures": sum(counts[name] for name in FAILURES),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_to_start_again": round(statistics.median(seconds), 1),
        **versions("torch", "transformers", "fastapi", "uvicorn"),
    }


def _wait_for_answers(counts: Counts, wanted: int) -> None:
    """Wait until clients have so many right answers."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while counts["right"] < wanted:
        if time.monotonic() > end:
            raise RuntimeError(f"no answers for {TIMEOUT_SECONDS:.0f} s: {counts.sorted()}")
        time.sleep(WAIT_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--answers", type=int, default=10, help="right ones between two kills")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    transformers.logging.set_verbosity_error()
    found = main(options)
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if found["failures"] else 0)

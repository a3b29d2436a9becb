"""Load on `peftcls serve`: clients that ask at the same time, with dynamic batching and without.

    python benchmarks/serve_load.py

Three adapters with 2, 5 and 20 labels on MiniLM-L6 (those of many_adapters.py) answer single texts.
Each client has one connection and asks again as soon as it has its answer. All ways get the same
requests, over HTTP, from a server in a process of its own:

- the service, which joins the requests that wait;
- the same service with batches of one row;
- an application as one would write it: a `def` endpoint of FastAPI that calls the predictor.

Every label is compared with that of the predictor. Rates and times are those of all rounds
together; ratios are of one round to the same round of the service. The processor seconds of the
server depend less than the times on what else the machine does. Results go to the file that
`--out` names, and to the screen.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from fastapi import FastAPI
from many_adapters import SIZES, write_folders
from pydantic import BaseModel
from real_data import spread, versions

import peftcls
from peftcls.demo import sample
from peftcls.serving import Limits, make_app
from peftcls.serving.server import open_socket, run_server

SEED = 0
SERVICE = "service"
TIMEOUT_SECONDS = 120.0
# The first requests build kernels and ask the model what it can do.
WARM_REQUESTS = 30
Requests = list[tuple[str, str]]


class Asked(BaseModel):
    """The body of a request to the application of one's own."""

    texts: list[str]
    adapter: str


def service(folders: list[Path]) -> FastAPI:
    """Requests that wait are answered together."""
    return make_app(folders, limits=Limits(timeout_seconds=TIMEOUT_SECONDS))


def service_without_batches(folders: list[Path]) -> FastAPI:
    """The same service, one row at a time."""
    return make_app(folders, limits=Limits(timeout_seconds=TIMEOUT_SECONDS, batch_size=1))


def own_endpoint(folders: list[Path]) -> FastAPI:
    """FastAPI's thread pool calls the predictor once for each request."""
    predictor = peftcls.load_predictor(folders)
    app = FastAPI()

    @app.post("/predict")
    def predict(asked: Asked) -> dict[str, object]:
        answers = predictor.predict(asked.texts, asked.adapter)
        fields = [
            {"label": answer.label, "probabilities": answer.probabilities} for answer in answers
        ]
        return {"adapter": asked.adapter, "answers": fields}

    return app


WAYS: dict[str, Callable[[list[Path]], FastAPI]] = {
    SERVICE: service,
    "service, one row at a time": service_without_batches,
    "predict in an endpoint": own_endpoint,
}


def serve(way: str, folder: Path) -> None:
    """Serve one way on a free port, and print the port."""
    with open_socket("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        run_server(
            WAYS[way]([folder / name for name in SIZES]),
            opened,
            timeout_seconds=TIMEOUT_SECONDS,
            on_start=lambda: print(port, flush=True),
        )


def requests(count: int) -> Requests:
    """Texts of the sample messages, each with the adapter that is to answer it."""
    drawn = random.Random(SEED)
    texts = [row["text"] for row in peftcls.read_rows(sample("messages_train.csv"))]
    return [(drawn.choice(texts), drawn.choice(list(SIZES))) for _ in range(count)]


def right_labels(folder: Path, asked: Requests) -> list[str | None]:
    """The labels that the predictor gives."""
    predictor = peftcls.load_predictor([folder / name for name in SIZES])
    texts, names = zip(*asked, strict=True)
    return [answer.label for answer in predictor.predict(list(texts), list(names))]


def ask_all(port: int, asked: Requests, clients: int) -> tuple[float, list[float], list[str]]:
    """Send all requests, each client its share.

    Returns:
        The seconds of all together, those of each request, and the labels.
    """
    seconds = [0.0] * len(asked)
    labels = [""] * len(asked)

    def ask(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        for number in range(first, len(asked), clients):
            text, name = asked[number]
            body = json.dumps({"texts": [text], "adapter": name})
            started = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            content = json.loads(connection.getresponse().read())
            seconds[number] = time.perf_counter() - started
            labels[number] = content["answers"][0]["label"]
        connection.close()

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, seconds, labels


def start(way: str, folder: Path, threads: int) -> tuple[subprocess.Popen[str], int]:
    """Start the server of a way; the process and its port."""
    command = [sys.executable, __file__, "--serve", way, "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """The processor time that a process has had, in all its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    servers: dict[str, tuple[subprocess.Popen[str], int]],
    asked: Requests,
    right: list[str | None],
    clients: int,
    rounds: int,
) -> dict[str, object]:
    """Ask all ways in turn, with some clients at the same time."""
    totals: dict[str, list[float]] = {way: [] for way in servers}
    each: dict[str, list[float]] = {way: [] for way in servers}
    computed = dict.fromkeys(servers, 0.0)
    wrong = dict.fromkeys(servers, 0)
    for turn in range(rounds):
        for way in random.Random(turn).sample(list(servers), len(servers)):
            process, port = servers[way]
            before = processor_seconds(process)
            total, seconds, labels = ask_all(port, asked, clients)
            computed[way] += processor_seconds(process) - before
            totals[way].append(total)
            each[way] += seconds
            wrong[way] += sum(a != b for a, b in zip(labels, right, strict=True))
    found: dict[str, object] = {}
    for way in servers:
        ratios = [a / b for a, b in zip(totals[way], totals[SERVICE], strict=True)]
        percentiles = statistics.quantiles(each[way], n=20)
        found[way] = {
            "requests_a_second": round(rounds * len(asked) / sum(totals[way]), 1),
            "p50_ms": round(1000 * percentiles[9], 1),
            "p95_ms": round(1000 * percentiles[18], 1),
            "processor_ms_a_request": round(1000 * computed[way] / len(each[way]), 1),
            "seconds_in_units_of_the_service": spread(ratios),
            "wrong_labels": wrong[way],
        }
        print(clients, "clients,", way, found[way], flush=True)
    return found


def main(options: argparse.Namespace) -> None:
    """Measure every number of clients, and write the results."""
    asked = requests(options.requests)
    servers: dict[str, tuple[subprocess.Popen[str], int]] = {}
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folders(folder)
        right = right_labels(folder, asked)
        try:
            for way in WAYS:
                servers[way] = start(way, folder, options.threads)
                ask_all(servers[way][1], asked[:WARM_REQUESTS], 4)
            for clients in options.clients:
                measured = measure(servers, asked, right, clients, options.rounds)
                found[f"{clients} clients"] = measured
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait()
    if options.out:
        machine = {
            "threads": options.threads,
            "requests": options.requests,
            "rounds": options.rounds,
            **versions("torch", "transformers", "fastapi", "uvicorn"),
        }
        options.out.write_text(json.dumps({"clients": found, **machine}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=sorted(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.serve:
        serve(options.serve, options.folder)
    else:
        main(options)

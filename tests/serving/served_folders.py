"""Folders that the tests of serving answer with, and requests to them."""

import contextlib
import threading
import time

import uvicorn
from saved_adapters import TEXTS, saved

from peftcls import Classification, Decisions, Regression
from peftcls.serving.server import open_socket, url_of

LABELS = ("no", "yes", "<b>maybe</b>")
TASKS = {
    "spam": Classification(labels=LABELS, max_length=64),
    "pairs": Classification(labels=("same", "other"), text=("a", "b"), max_length=64),
    "topics": Classification(
        labels=("x", "y", "z"),
        multi_label=True,
        max_length=64,
        decisions=Decisions(thresholds={"x": 0.3}),
    ),
    "number": Regression(mean=3.0, deviation=2.0, max_length=64),
    "unsure": Classification(labels=LABELS, max_length=64, decisions=Decisions(abstain_below=0.99)),
}
PAIRS = [[text, TEXTS[0]] for text in TEXTS]
WAIT_SECONDS = 60


def save_all(base, folder, names=tuple(TASKS)):
    return [saved(base, folder / name, TASKS[name], seed=seed) for seed, name in enumerate(names)]


def texts_for(name):
    return PAIRS if name == "pairs" else TEXTS


def expected_fields(answer):
    """The fields of an answer that a client gets, for tasks with probabilities or a number."""
    fields = {"probabilities": answer.probabilities, "value": answer.value}
    fields = {name: value for name, value in fields.items() if value is not None}
    if answer.labels is not None:
        return {**fields, "labels": list(answer.labels)}
    return fields if "value" in fields else {**fields, "label": answer.label}


def wait_until(condition):
    """Wait for what another thread does."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def running(app):
    """Serve an application on a port of its own, in a thread; gives its address."""
    with open_socket("127.0.0.1", 0) as opened:
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        address = url_of(opened)
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield address
        finally:
            server.should_exit = True
            thread.join(WAIT_SECONDS)
    assert not thread.is_alive()

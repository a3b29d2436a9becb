"""`peftcls serve` as a process: it starts, answers under load, and ends without a half answer."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import httpx2
import pytest
from saved_adapters import TEXTS
from served_folders import expected_fields, running, save_all, texts_for, wait_until

from peftcls import cli, load_predictor
from peftcls.serving import Limits, make_app

ROOT = Path(__file__).parents[2]
NAMES = ("spam", "topics", "number")
CLIENTS = 8
CONCURRENT_REQUESTS = 1000
# No answer at all is a clean refusal; `IncompleteRead`, which is half of one, is not among these.
REFUSALS = (ConnectionError, http.client.RemoteDisconnected)


@pytest.fixture(scope="module")
def folders(bert, tmp_path_factory):
    return save_all(bert, tmp_path_factory.mktemp("folders"), NAMES)


@pytest.fixture(scope="module")
def expected(folders):
    """The fields of the right answers, by adapter and text."""
    found = {}
    for folder in folders:
        texts = texts_for(folder.name)
        for text, answer in zip(texts, load_predictor(folder).predict(texts), strict=True):
            found[folder.name, text] = expected_fields(answer)
    return found


@contextlib.contextmanager
def process(*arguments):
    """Start the command; gives the process and its address."""
    started = subprocess.Popen(
        [sys.executable, "-m", "peftcls", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        line = started.stdout.readline()
        found = re.search(r"at (http://\S+);", line)
        assert found, line + started.stderr.read()
        yield started, found[1], line
    finally:
        started.kill()
        started.communicate()


def ask(connection, name, texts):
    """The status and the fields of an answer; a part of an answer raises IncompleteRead."""
    body = json.dumps({"texts": texts, "adapter": name})
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def check(fields, right):
    assert fields.keys() == right.keys()
    for field, value in right.items():
        close = isinstance(value, float | dict)
        assert fields[field] == (pytest.approx(value, abs=1e-5) if close else value)


def ask_until_refused(address, expected, number, outcomes):
    """Ask on one connection until the server refuses; every answer must be whole and right."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        for turn in range(100_000):
            name = NAMES[(number + turn) % len(NAMES)]
            text = TEXTS[(number * 3 + turn) % len(TEXTS)]
            status, content = ask(connection, name, [text])
            if status == 503:
                outcomes.append("refused")
                return
            assert status == 200, content
            check(content["answers"][0], expected[name, text])
            outcomes.append("right")
    except REFUSALS:
        outcomes.append("refused")
    except BaseException as error:
        outcomes.append(error)
    finally:
        connection.close()


@pytest.mark.slow
def test_a_sigterm_under_load_leaves_no_half_answer(folders, expected):
    outcomes = []
    with process(*folders) as (server, address, line):
        assert line.startswith("'spam', 'topics', 'number' at http://127.0.0.1:")
        clients = [
            threading.Thread(target=ask_until_refused, args=(address, expected, number, outcomes))
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        wait_until(lambda: len(outcomes) > 200 or not all(map(threading.Thread.is_alive, clients)))
        server.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(60)
        _, err = server.communicate(timeout=60)
    assert server.returncode == 143, err
    assert err == ""
    assert outcomes.count("refused") == CLIENTS
    assert set(outcomes) == {"right", "refused"}


@pytest.mark.slow
def test_the_end_waits_for_a_request_that_is_in_work(folders, expected):
    texts = TEXTS * 32
    with process(folders[0]) as (server, address, _):
        host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        body = json.dumps({"texts": texts})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        # The server accepts connections in their order, so it has the request before this one.
        with urllib.request.urlopen(f"{address}/health") as response:
            assert response.status == 200
        server.send_signal(signal.SIGINT)
        response = connection.getresponse()
        answers = json.loads(response.read())["answers"]
        connection.close()
        _, err = server.communicate(timeout=60)
    assert server.returncode == 130
    assert err.strip() == "interrupted"
    for text, fields in zip(texts, answers, strict=True):
        check(fields, expected["spam", text])


@pytest.mark.slow
def test_a_thousand_concurrent_requests_of_three_adapters_are_all_answered_right(folders, expected):
    async def ask_one(client, number):
        name = NAMES[number % len(NAMES)]
        texts = [TEXTS[(number + place) % len(TEXTS)] for place in range(1 + number % 3)]
        response = await client.post("/predict", json={"texts": texts, "adapter": name})
        assert response.status_code == 200, response.text
        content = response.json()
        assert content["adapter"] == name
        for text, fields in zip(texts, content["answers"], strict=True):
            check(fields, expected[name, text])

    async def ask_all(address):
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            await asyncio.gather(*(ask_one(client, n) for n in range(CONCURRENT_REQUESTS)))

    limits = Limits(max_open_requests=CONCURRENT_REQUESTS, timeout_seconds=120)
    app = make_app(folders, limits=limits)
    with running(app) as address:
        asyncio.run(ask_all(address))
    counted = app.state.service.measures.text().decode()
    batches = float(re.search(r"peftcls_batch_rows_count (\S+)", counted)[1])
    assert batches < CONCURRENT_REQUESTS / 4


def begin_request(address, *, body_bytes=100):
    """A connection on which only a part of a request's body has arrived."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = "POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    connection.sendall(f'{head}Content-Length: {body_bytes}\r\n\r\n{{"texts'.encode())
    return connection


def test_a_body_that_never_ends_is_cut_off(folders):
    app = make_app(folders[0], limits=Limits(timeout_seconds=0.2))
    with running(app) as address, begin_request(address) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 504
        sentence = "not answered within 0.2 seconds; send fewer rows."
        assert json.loads(response.read()) == {"error": sentence}


def test_a_body_that_is_announced_as_too_large_is_not_waited_for(folders):
    with (
        running(make_app(folders[0])) as address,
        begin_request(address, body_bytes=10**9) as connection,
    ):
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 413


def test_a_client_that_leaves_takes_no_place_and_is_no_error(folders, caplog):
    app = make_app(folders[0], limits=Limits(max_open_requests=1))
    with running(app) as address:
        begin_request(address).close()
        begin_request(address).close()
        wait_until(lambda: app.state.service.open_requests() == 0)
        response = httpx2.post(f"{address}/predict", json={"texts": TEXTS[:1]}, timeout=60)
        assert response.status_code == 200
    assert not caplog.records


def test_what_is_no_http_is_refused(folders):
    with running(make_app(folders[0])) as address:
        host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"\x16\x03\x01 no http\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        assert httpx2.get(f"{address}/health").status_code == 200


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_a_port_that_is_taken_is_one_sentence(folders, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, printed = run(capsys, "serve", folders[0], "--port", port)
    assert code == 1
    assert printed.err == (
        f"cannot serve at --host 127.0.0.1, --port {port}: Address already in use; choose another "
        "port, or a host of this machine.\n"
    )


def test_a_folder_that_is_none_is_one_sentence(tmp_path, capsys):
    code, printed = run(capsys, "serve", tmp_path / "nowhere", "--port", 0)
    assert code == 1
    assert "nowhere" in printed.err
    assert printed.out == ""


def test_without_its_packages_the_command_says_what_to_install(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("peftcls.serving")]:
        monkeypatch.delitem(sys.modules, name)
    code, printed = run(capsys, "serve", folders[0])
    assert code == 1
    assert printed.err == (
        "a service needs the package fastapi. Install it: pip install 'peftcls[serve]'\n"
    )


def test_a_service_for_strangers_is_pointed_out(capsys):
    from peftcls.cli.serving import _warn_of_strangers

    _warn_of_strangers("127.0.0.1")
    _warn_of_strangers("::1")
    assert capsys.readouterr().err == ""
    _warn_of_strangers("0.0.0.0")
    assert "the service has no password" in capsys.readouterr().err

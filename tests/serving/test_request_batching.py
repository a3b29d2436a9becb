"""Dynamic batching: requests that wait share a forward pass, and a bad one fails alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from saved_adapters import TEXTS, saved
from served_folders import save_all, wait_until

from peftcls import Classification, load_predictor
from peftcls.engine.model_state import state_of
from peftcls.serving import Limits, make_app
from peftcls.serving.batcher import Batcher

CLIENTS = 12


class Recorder:
    """Stands for a model: answers a feature with its name, and remembers the batches."""

    def __init__(self):
        self.batches = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def answer(self, names, features):
        self.may_answer.wait(60)
        self.batches.append([feature["row"] for feature in features])
        if any(feature["row"] == "bad" for feature in features):
            raise RuntimeError("the bad row")
        return [(name, feature["row"]) for name, feature in zip(names, features, strict=True)]


def features(*rows, tokens=2):
    return [{"input_ids": [0] * tokens, "row": row} for row in rows]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher(recorder):
    batcher = Batcher(recorder.answer, batch_rows=4, batch_tokens=10, count_batch=lambda rows: None)
    yield batcher
    recorder.may_answer.set()
    batcher.close(60)


def hold_with_a_first_request(batcher, recorder):
    """Let the thread be busy with one request, so that the next ones gather."""
    recorder.may_answer.clear()
    first = batcher.submit("a", features("first"))
    wait_until(first.running)
    return first


def test_waiting_requests_are_joined_in_their_order_within_rows_and_tokens(batcher, recorder):
    hold_with_a_first_request(batcher, recorder)
    asked = [
        features("1", "2"),
        features("3", "4"),
        features("5"),
        features("6", tokens=9),
        features("7"),
        features("8", tokens=99),
        features(*"9abcde"),
    ]
    futures = [batcher.submit("ab"[n % 2], rows) for n, rows in enumerate(asked)]
    assert batcher.waiting_requests() == len(asked)
    recorder.may_answer.set()
    for number, (rows, future) in enumerate(zip(asked, futures, strict=True)):
        expected = [("ab"[number % 2], row["row"]) for row in rows]
        assert future.result(60) == expected
    assert recorder.batches == [
        ["first"],
        ["1", "2", "3", "4"],
        ["5"],
        ["6"],
        ["7"],
        ["8"],
        [*"9abcde"],
    ]


def test_a_bad_request_fails_alone(batcher, recorder):
    hold_with_a_first_request(batcher, recorder)
    futures = [batcher.submit("a", features(row)) for row in ("1", "bad", "2")]
    recorder.may_answer.set()
    assert futures[0].result(60) == [("a", "1")]
    assert futures[2].result(60) == [("a", "2")]
    with pytest.raises(RuntimeError, match="the bad row"):
        futures[1].result(60)
    assert batcher.submit("a", features("3")).result(60) == [("a", "3")]


def test_a_request_whose_client_left_is_not_computed(batcher, recorder):
    hold_with_a_first_request(batcher, recorder)
    left = batcher.submit("a", features("left"))
    last = batcher.submit("a", features("last"))
    assert left.cancel()
    recorder.may_answer.set()
    last.result(60)
    assert recorder.batches == [["first"], ["last"]]


def test_the_end_answers_what_waits_and_a_later_request_starts_again(batcher, recorder):
    hold_with_a_first_request(batcher, recorder)
    waiting = [batcher.submit("a", features(str(number))) for number in range(20)]
    recorder.may_answer.set()
    batcher.close(60)
    assert all(future.done() for future in waiting)
    assert batcher.submit("a", features("later")).result(60) == [("a", "later")]


def test_many_threads_each_get_their_own_answers(batcher):
    def ask(number):
        rows = [f"{number} {row}" for row in range(1 + number % 3)]
        return batcher.submit(str(number), features(*rows)).result(60) == [
            (str(number), row) for row in rows
        ]

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(400)))


@pytest.fixture(scope="module")
def folders(bert, tmp_path_factory):
    return save_all(bert, tmp_path_factory.mktemp("folders"), ("spam", "topics", "number"))


@pytest.fixture
def predictor(folders):
    predictor = load_predictor(folders)
    predictor.predict_all(TEXTS[:1])  # the first call asks the model what it can do
    return predictor


def count_passes(predictor):
    """A list that grows with each forward pass of a model."""
    calls = []
    predictor.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    return calls


def holding(predictor):
    """The lock of a model: while a test holds it, nothing is computed."""
    return state_of(predictor.model).turns.lock


def ask_together(client, asked, lock):
    """Send requests from a thread each, and let the model begin when all have arrived."""
    service = client.app.state.service
    with ThreadPoolExecutor(len(asked)) as threads:
        with lock:
            futures = [threads.submit(client.post, "/predict", json=asked[0])]
            wait_until(lambda: service.computing_requests() == 1)
            futures += [threads.submit(client.post, "/predict", json=body) for body in asked[1:]]
            wait_until(lambda: service.waiting_requests() == len(asked) - 1)
        return [future.result() for future in futures]


def test_concurrent_requests_of_several_adapters_share_forward_passes(predictor):
    names = predictor.names
    asked = [
        {"texts": [TEXTS[n % len(TEXTS)]], "adapter": names[n % len(names)]} for n in range(CLIENTS)
    ]
    calls = count_passes(predictor)
    with TestClient(make_app(predictor)) as client:
        one_by_one = [client.post("/predict", json=body).json() for body in asked]
        assert len(calls) >= CLIENTS
        calls.clear()
        together = [response.json() for response in ask_together(client, asked, holding(predictor))]
        # One for the request that came first, and the others together: in one pass or a few, by
        # their lengths.
        assert len(calls) <= 4
    for found, alone, body in zip(together, one_by_one, asked, strict=True):
        assert found["adapter"] == alone["adapter"] == body["adapter"]
        (found_fields,), (fields,) = found["answers"], alone["answers"]
        assert found_fields.get("label") == fields.get("label")
        assert found_fields.get("labels") == fields.get("labels")
        assert found_fields.get("value") == pytest.approx(fields.get("value"), abs=1e-5)


def test_a_bad_request_among_others_is_refused_and_the_others_are_answered(bert, tmp_path):
    # Only the tokenizer notices that such a pair has no room.
    task = Classification(labels=("a", "b"), text=("a", "b"), max_length=24, long_text="windows")
    folder = saved(bert, tmp_path / "spam", task)
    long_text = "the patient recovered after the bank raised rates " * 8
    pairs = [[TEXTS[0], "yes"], [long_text, long_text], ["no", TEXTS[1]], [" ", "x"]]
    app = make_app([folder])
    expected = load_predictor(folder).predict([pairs[0], pairs[2]])
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:
        ask = [threads.submit(client.post, "/predict", json={"texts": [pair]}) for pair in pairs]
        responses = [future.result() for future in ask]
    assert [response.status_code for response in responses] == [200, 422, 200, 422]
    assert responses[1].json()["error"].startswith("row 1 of texts has two long texts: beside the")
    assert responses[3].json()["error"].startswith("row 1 of texts has no text in column 'a'")
    for response, answer in zip(responses[::2], expected, strict=True):
        found = response.json()["answers"][0]
        assert found["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)


def test_a_long_request_is_answered_in_parts_and_lets_others_in_between(predictor):
    passes = []
    app = make_app(predictor, limits=Limits(batch_size=2))
    texts = ["no", "yes", "no yes no", "yes", "the drug", "a new drug"]
    long_request = {"texts": texts, "adapter": "spam"}
    short_request = {"texts": ["the bank raised rates and rates"], "adapter": "spam"}
    expected = predictor.predict(texts, "spam")
    with TestClient(app) as client, ThreadPoolExecutor(2) as threads:
        service = app.state.service
        layer = predictor.model.get_input_embeddings()
        layer.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].numel()))
        with holding(predictor):
            held = threads.submit(client.post, "/predict", json=long_request)
            wait_until(lambda: service.computing_requests() == 1)
            between = threads.submit(client.post, "/predict", json=short_request)
            wait_until(lambda: service.waiting_requests() == 1)
        found = held.result().json()["answers"]
        assert between.result().status_code == 200
    for fields, answer in zip(found, expected, strict=True):
        assert fields["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
    counted = service.measures.text().decode()
    assert "peftcls_batch_rows_count 4.0" in counted
    assert passes.index(max(passes)) < len(passes) - 1


def test_a_row_with_too_many_tokens_is_refused(bert, tmp_path):
    task = Classification(labels=("a", "b"), max_length=24, long_text="windows")
    folder = saved(bert, tmp_path / "spam", task)
    app = make_app(folder, limits=Limits(max_row_tokens=100))
    with TestClient(app) as client:
        response = client.post("/predict", json={"texts": ["no", "no " * 200]})
        assert response.status_code == 413
        assert response.json()["error"].startswith("row 2 has 2")
        assert response.json()["error"].endswith(
            " tokens in all its windows, expected at most 100; send its text in pieces."
        )


def test_a_full_queue_refuses_and_says_when_to_try_again(predictor):
    app = make_app(predictor, limits=Limits(max_open_requests=3))
    with TestClient(app) as client:
        body = {"texts": TEXTS[:1]}
        service = app.state.service
        with ThreadPoolExecutor(3) as threads:
            with holding(predictor):
                held = [threads.submit(client.post, "/predict", json=body) for _ in range(3)]
                wait_until(lambda: service.open_requests() == 3)
                refused = client.post("/predict", json=body)
                assert client.get("/health").status_code == 200
            assert [future.result().status_code for future in held] == [200] * 3
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"] == "the queue is full with 3 requests; try again later."
        assert client.post("/predict", json=body).status_code == 200


def test_a_request_that_takes_too_long_gets_a_sentence_and_leaves_the_queue(predictor):
    calls = count_passes(predictor)
    app = make_app(predictor, limits=Limits(timeout_seconds=0.2))
    with TestClient(app) as client:
        body = {"texts": TEXTS[:1]}
        with ThreadPoolExecutor(3) as threads, holding(predictor):
            late = [threads.submit(client.post, "/predict", json=body) for _ in range(3)]
            for future in late:
                assert future.result().status_code == 504
                assert future.result().json()["error"] == (
                    "not answered within 0.2 seconds; send fewer rows."
                )
        wait_until(lambda: app.state.service.waiting_requests() == 0)
        assert app.state.service.open_requests() == 0
        assert len(calls) <= 1


def test_a_service_that_ends_refuses_and_is_not_ready(predictor):
    app = make_app(predictor)
    with TestClient(app) as client:
        app.state.service.close()
        response = client.post("/predict", json={"texts": TEXTS[:1]})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json() == {"error": "the service is ending."}
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "ending"})
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "ready"}
        assert client.post("/predict", json={"texts": TEXTS[:1]}).status_code == 200


def test_an_error_of_the_model_is_logged_and_not_sent(predictor, caplog):
    def fail(*_):
        raise RuntimeError("secret detail at /home/somebody")

    with TestClient(make_app(predictor)) as client:
        predictor.model.get_input_embeddings().register_forward_pre_hook(fail)
        response = client.post("/predict", json={"texts": TEXTS[:1]})
    assert response.status_code == 500
    assert response.json() == {"error": "the service failed to answer; its log says why."}
    assert "secret detail" in caplog.text

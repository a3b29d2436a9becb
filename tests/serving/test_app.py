"""The web application: whole right answers, and one sentence for everything that is refused."""

import json
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saved_adapters import TEXTS, saved
from served_folders import LABELS, TASKS, expected_fields, save_all, texts_for

from peftcls import ExtractiveQA, Instruction, load_predictor
from peftcls.serving import Limits, make_app

LIMITS = Limits(max_body_bytes=20_000, max_rows=16, max_open_requests=8, timeout_seconds=30)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folders(bert, tmp_path_factory):
    return save_all(bert, tmp_path_factory.mktemp("private_place"))


@pytest.fixture(scope="module")
def client(folders):
    with TestClient(make_app(folders, limits=LIMITS)) as client:
        yield client


def approximately(fields):
    numbers = {
        name: pytest.approx(value, abs=1e-5)
        for name, value in fields.items()
        if isinstance(value, float | dict)
    }
    return {**fields, **numbers}


def post(client, content):
    """Send a body that may be no JSON."""
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    return client.post("/predict", content=content, headers=JSON)


@pytest.mark.parametrize("name", TASKS)
def test_the_answers_are_those_of_the_predictor(name, client, folders):
    folder = next(folder for folder in folders if folder.name == name)
    texts = texts_for(name)
    response = post(client, {"texts": texts, "adapter": name})
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json()["adapter"] == name
    expected = load_predictor(folder).predict(texts)
    assert len({str(answer) for answer in expected}) > 1
    for found, answer in zip(response.json()["answers"], expected, strict=True):
        assert found == approximately(expected_fields(answer))
    columns = TASKS[name].columns(with_target=False)
    parts = [[text] if isinstance(text, str) else text for text in texts]
    rows = [dict(zip(columns, part, strict=True), id=7) for part in parts]
    assert post(client, {"rows": rows, "adapter": name}).json() == response.json()


def test_an_abstention_has_no_label(client):
    answers = post(client, {"texts": TEXTS, "adapter": "unsure"}).json()["answers"]
    assert any(answer["label"] is None for answer in answers)
    assert all(set(answer["probabilities"]) == set(LABELS) for answer in answers)


def test_the_first_adapter_answers_where_none_is_named(client):
    assert post(client, {"texts": TEXTS[:1]}).json()["adapter"] == "spam"
    assert client.get("/adapters").json()["default"] == "spam"


def test_no_rows_have_no_answers(client):
    expected = {"adapter": "spam", "answers": [], "shortened_rows": 0}
    assert post(client, {"texts": []}).json() == expected


def test_rows_that_were_shortened_are_counted(client):
    long = "a word " * 200
    found = post(client, {"texts": ["a", long, long]}).json()
    assert (found["shortened_rows"], len(found["answers"])) == (2, 3)
    assert post(client, {"texts": ["a"]}).json()["shortened_rows"] == 0


def test_questions_and_instructions_are_answered_on_bases_of_their_own(bert, llama, tmp_path):
    instruction = Instruction(
        template="Say: {input}\nAnswer: ", labels=("yes", "no"), max_length=96, max_new_tokens=6
    )
    folders = [
        saved(bert, tmp_path / "qa", ExtractiveQA(max_length=48, stride=16)),
        saved(bert, tmp_path / "spam", TASKS["spam"]),
        saved(bert, tmp_path / "dora", TASKS["spam"], method="dora"),
        saved(bert, tmp_path / "part", TASKS["spam"], part="last_block"),
        saved(bert, tmp_path / "number", TASKS["number"]),
        saved(llama, tmp_path / "say", instruction),
    ]
    question = {"question": "who recovered?", "context": TEXTS[0]}
    with TestClient(make_app(folders)) as client:
        batchers = client.app.state.service._batchers
        assert batchers["spam"] is batchers["number"]
        assert len(set(batchers.values())) == 5
        answer = post(client, {"rows": [question], "adapter": "qa"}).json()["answers"][0]
        expected = load_predictor(folders[0]).predict([question])[0]
        assert TEXTS[0][answer["start"] : answer["end"]] == answer["text"] == expected.text
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
        answers = post(client, {"texts": TEXTS, "adapter": "say"}).json()["answers"]
        expected = load_predictor(folders[-1]).predict(TEXTS)
        for found, right in zip(answers, expected, strict=True):
            assert found == approximately(expected_fields(right))
        for folder in folders[1:4]:
            answers = post(client, {"texts": TEXTS, "adapter": folder.name}).json()["answers"]
            expected = load_predictor(folder).predict(TEXTS)
            for found, right in zip(answers, expected, strict=True):
                assert found == approximately(expected_fields(right))


def test_predictors_can_be_given_instead_of_folders(folders):
    expected = load_predictor(folders[0]).predict(TEXTS[:1])[0].label
    for adapters in ({"mine": load_predictor(folders[0])}, load_predictor([folders[0]])):
        with TestClient(make_app(adapters)) as client:
            assert post(client, {"texts": TEXTS[:1]}).json()["answers"][0]["label"] == expected


def test_the_application_can_be_mounted_in_another_one(folders):
    outer = FastAPI()
    outer.mount("/peft", make_app(folders[0]))
    with TestClient(outer) as client:
        response = client.post("/peft/predict", json={"texts": TEXTS})
        assert len(response.json()["answers"]) == len(TEXTS)
        assert "Try texts" in client.get("/peft").text


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", "the body is not JSON: Expecting value in line 1, column 1; expected an object such"),
        ('{"texts": ["a"]', "the body is not JSON: Expecting ',' delimiter"),
        (b'{"texts": ["\xff"]}', "the body is not UTF-8: byte 13 fits no character."),
        ("[" * 15_000, "the body has lists or objects too deep inside one another; expected an"),
        ('{"texts": ["a"], "texts": ["b"]}', "an object has the key 'texts' twice; give it once."),
        ("[]", "the body is a list, expected an object such as"),
        ("null", "the body is null, expected an object such as"),
        ("{}", "the body has neither 'texts' nor 'rows', expected an object such as"),
        ({"texts": ["a"], "rows": []}, "the body has both 'texts' and 'rows', expected an object"),
        ({"text": ["a"]}, "the body has the key 'text', expected 'texts' or 'rows', and perhaps"),
        ({"texts": "a"}, "'texts' is a text, expected a list."),
        ({"texts": ["a"], "adapter": 3}, "'adapter' is a number, expected the name of an adapter."),
        (
            {"texts": ["a"], "adapter": "spma"},
            "there is no adapter 'spma', expected one of ['spam', 'pairs', 'topics', 'number', "
            "'unsure']; did you mean 'spam'?",
        ),
        ({"texts": ["a", 3]}, "text 2 is or has a number, expected a text or a pair of texts."),
        ({"texts": [["a", "b"]]}, "text 1 of 1 is "),
        ({"texts": ["a"], "adapter": "pairs"}, "text 1 of 1 is 'a', expected a pair of texts."),
        ({"texts": ["a", " "]}, "row 2 of texts has no text in column 'text'; fill it in or leave"),
        ('{"texts": ["\\ud800"]}', "text 1 has half of a surrogate pair, which is not a character"),
        ({"rows": ["a"]}, "row 1 is a text, expected an object with its columns."),
        ({"rows": [{"txt": "a"}]}, "row 1 of rows has no column 'text'; it has ['txt']. Classific"),
        ({"rows": [{"text": 3}]}, "row 1 of rows has no text in column 'text'"),
        ({"rows": [{"text": None}]}, "row 1 of rows has no text in column 'text'"),
        (
            {"rows": [{"text": "a", "more": [[1]]}]},
            "row 1 has a list inside column 'more', expected a text, a number, or a list of them.",
        ),
        ('{"rows": [{"text": "a", "n": NaN}]}', "the body has NaN, which is not JSON; expected fi"),
        ('{"rows": [{"text": "a", "n": -Infinity}]}', "the body has -Infinity, which is not JSON"),
        ('{"rows": [{"text": "a", "n": 1e999}]}', "the body has the number 1e999, expected finite"),
        (
            '{"rows": [{"text": "a", "n": %s}]}' % ("9" * 5000),
            "the body has a number with thousands of digits.",
        ),
        ('{"rows": [{"\\udfff": "a"}]}', "row 1, in the name of a column, has half of a surrogate"),
    ],
)
def test_a_wrong_body_is_one_sentence(body, sentence, client):
    response = post(client, body)
    assert response.status_code == 422
    assert set(response.json()) == {"error"}
    assert response.json()["error"].startswith(sentence)
    assert "Traceback" not in response.text
    assert "private_place" not in response.text


def test_a_request_that_is_too_large_is_refused(client):
    response = post(client, {"texts": ["a"] * 17})
    assert response.status_code == 413
    assert response.json()["error"] == (
        "the request has 17 texts, expected at most 16; send several requests."
    )
    sentence = "the body is larger than 20000 bytes; send several requests."
    response = post(client, {"texts": ["a" * 20_000]})
    assert (response.status_code, response.json()["error"]) == (413, sentence)
    parts = (b" " * 1000 for _ in range(1000))
    response = client.post("/predict", content=parts, headers=JSON)  # without its length
    assert (response.status_code, response.json()["error"]) == (413, sentence)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Content-Type": "text/plain"}, "expected the header 'Content-Type: application/json', "),
        ({}, "expected the header 'Content-Type: application/json', found none."),
        ({**JSON, "Content-Encoding": "gzip"}, "the body is encoded as 'gzip'; send it uncompre"),
    ],
)
def test_only_plain_json_is_read(headers, sentence, client):
    response = client.post("/predict", content=b'{"texts": ["a"]}', headers=headers)
    assert response.status_code == 415
    assert response.json()["error"].startswith(sentence)


def test_a_wrong_path_or_method_is_refused_in_the_same_form(client):
    assert client.get("/nowhere").json() == {"error": "Not Found."}
    response = client.get("/predict")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.json() == {"error": "Method Not Allowed."}


def test_a_long_sentence_is_cut(client):
    response = post(client, {"rows": [{"x" * 10_000: "a"}]})
    assert response.status_code == 422
    assert len(response.json()["error"]) < 600


def test_nothing_that_a_client_sees_names_a_path(client, folders):
    for path in ("/adapters", "/health", "/metrics", "/openapi.json", "/"):
        response = client.get(path)
        assert response.status_code == 200
        assert "private_place" not in response.text
        assert str(folders[0].parent) not in response.text


def test_the_list_of_adapters_says_what_each_needs(client):
    described = {adapter["name"]: adapter for adapter in client.get("/adapters").json()["adapters"]}
    assert list(described) == list(TASKS)
    assert described["pairs"] == {
        "name": "pairs",
        "task": "Classification",
        "answer": "label",
        "columns": ["a", "b"],
        "labels": ["same", "other"],
    }


def test_the_metrics_count_requests_rows_errors_and_seconds(folders):
    def value(name):
        line = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(line[1])

    with TestClient(make_app(folders[:2])) as client:
        post(client, {"texts": ["a", "b " * 100]})
        post(client, {"texts": ["a"], "adapter": "pairs"})
        post(client, "{")
        assert value('peftcls_requests_total{adapter="spam",status="200"}') == 1
        assert value('peftcls_requests_total{adapter="pairs",status="422"}') == 1
        assert value('peftcls_requests_total{adapter="",status="422"}') == 1
        assert value('peftcls_errors_total{status="422"}') == 2
        assert value('peftcls_rows_total{adapter="spam"}') == 2
        assert value('peftcls_shortened_rows_total{adapter="spam"}') == 1
        assert value("peftcls_request_seconds_count") == 3
        assert value("peftcls_batch_rows_sum") == 2
        assert value("peftcls_waiting_requests") == 0
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0")


@pytest.mark.parametrize(
    ("adapters", "sentence"),
    [
        ([], "there is no adapter to serve, expected at least one."),
        ({}, "there is no adapter to serve, expected at least one."),
        (3, r"adapters=3: expected folders, predictors by name such as \{'spam': predictor\}"),
        ({"a": 3}, "adapters has 'a': int, expected names with a Predictor each, from load_pred"),
        ("nowhere", "nowhere"),
    ],
)
def test_adapters_that_cannot_be_served_are_one_sentence(adapters, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_app(adapters)


def test_two_folders_of_one_name_are_refused(bert, tmp_path):
    folders = [saved(bert, tmp_path / place / "spam", TASKS["spam"]) for place in ("a", "b")]
    with pytest.raises(ValueError, match="have the same name, and an adapter is known by the name"):
        make_app(folders)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_rows": 0}, r"^max_rows=0: expected a number above 0\.$"),
        ({"timeout_seconds": float("inf")}, r"^timeout_seconds=inf: expected a number above 0"),
        ({"timeout_seconds": float("nan")}, r"^timeout_seconds=nan: expected a number above 0"),
        ({"max_body_bytes": 1.5}, r"^max_body_bytes=1.5: expected a whole number\.$"),
    ],
)
def test_a_limit_that_makes_no_sense_is_one_sentence(limits, sentence):
    with pytest.raises(ValueError, match=sentence):
        Limits(**limits)

"""The page to try texts: one file that loads nothing, runs only its own script, and escapes all."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import needs_browser, shown_page
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from saved_adapters import TEXTS
from served_folders import running, save_all

from peftcls import load_predictor
from peftcls.serving import Limits, make_app
from peftcls.serving.page import PAGE

FAKE_BROWSER = Path(__file__).parent / "fake_browser.js"
NODE = shutil.which("node")
POLICY = "Content-Security-Policy"
# Types a text into the page, presses its button, and puts what is shown into the title.
DRIVER = """<!DOCTYPE html><title>waiting</title><iframe src="/"></iframe><script>
const wait = (find) => new Promise((done) => {
  const look = () => find() ? done(find()) : setTimeout(look, 20);
  look();
});
onload = async () => {
  const page = document.querySelector("iframe").contentDocument;
  const field = await wait(() => page.querySelector("textarea"));
  field.value = TEXT;
  page.querySelector("button").click();
  const answer = await wait(() => page.querySelector(".answer"));
  const cells = [...page.querySelectorAll("td:last-child")].map((cell) => cell.textContent);
  document.title = [answer.textContent, ...cells].join("|");
};
</script>"""
# Ways to make markup out of a text, or to run a text.
UNSAFE = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval", "Function(", "on=")


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.inside = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in self.inside:
            self.inside[self._open].append(data)


@pytest.fixture(scope="module")
def page():
    return Parsed(PAGE)


@pytest.fixture(scope="module")
def folders(bert, tmp_path_factory):
    return save_all(bert, tmp_path_factory.mktemp("folders"), ("spam", "pairs", "topics", "number"))


def test_the_page_loads_nothing_and_has_no_inline_handlers(page):
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("src", "style", "action", "formaction")
            assert name != "href" or value == "data:,"
    assert not re.search(r"https?:|url\(|@import", PAGE)


def test_the_policy_allows_only_the_script_and_style_of_the_page(page, folders):
    with TestClient(make_app(folders)) as client:
        headers = client.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        (source,) = page.inside[tag]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["content-type"] == "text/html; charset=utf-8"


def test_no_text_of_an_answer_becomes_markup(page):
    (script,) = page.inside["script"]
    for way in UNSAFE:
        assert way not in script
    assert "textContent" in script


def test_every_field_has_a_label(page):
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert labelled <= ids
    assert ("html", {"lang": "en"}) in page.tags


def tried(app, adapter, texts, page, tmp_path, **environment):
    """What the page's script shows of an answer to these texts."""
    file = tmp_path / "page.js"
    file.write_text(page.inside["script"][0], encoding="utf-8")
    with running(app) as address:
        ended = subprocess.run(
            [NODE, FAKE_BROWSER, file, address, adapter, *texts],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **environment},
        )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.skipif(NODE is None, reason="needs Node.js")
def test_the_page_of_one_adapter_has_no_choice_and_says_what_was_cut(page, folders, tmp_path):
    app = make_app(folders[:1], limits=Limits(max_body_bytes=5000))
    found = tried(app, "spam", ["a word " * 200], page, tmp_path)
    assert found["isHidden"]
    cut = ["p", "The text is longer than this adapter reads: its end was cut off."]
    assert cut in found["shown"]
    assert cut not in tried(app, "spam", TEXTS[:1], page, tmp_path)["shown"]
    too_long = tried(app, "spam", ["a word " * 2000], page, tmp_path)["shown"]
    assert too_long[1:] == [["p", "The text is too long for this service. Try a shorter one."]]


@pytest.mark.skipif(NODE is None, reason="needs Node.js")
def test_an_answer_to_an_earlier_text_is_not_shown(page, folders, tmp_path):
    found = tried(make_app(folders[:1]), "spam", TEXTS[:1], page, tmp_path, CHANGE_EARLY="1")
    assert found["shown"] == [["output", ""]]


@pytest.mark.skipif(NODE is None, reason="needs Node.js")
@pytest.mark.parametrize(
    ("adapter", "texts", "expected"),
    [
        ("spam", [TEXTS[0]], "<b>maybe</b>"),
        ("pairs", [TEXTS[0], TEXTS[1]], None),
        ("topics", [TEXTS[0]], None),
        ("number", [TEXTS[0]], None),
        ("spam", [" "], "Fill in the field text."),
    ],
)
def test_the_script_asks_and_shows_the_answer(adapter, texts, expected, page, folders, tmp_path):
    by_name = {folder.name: folder for folder in folders}
    found = tried(make_app(folders), adapter, texts, page, tmp_path)
    assert found["options"] == list(by_name)
    assert not found["isHidden"]
    assert found["columns"] == len(texts)
    assert found["left"] == 0  # when the text was changed afterwards
    tag, shown = found["shown"][1]
    assert tag == "p"
    if not texts[0].strip():
        assert shown.startswith(expected)
        return
    (answer,) = load_predictor(by_name[adapter]).predict([texts if len(texts) == 2 else texts[0]])
    if answer.value is not None:
        assert float(shown) == pytest.approx(answer.value, abs=1e-5)
        return
    assert shown == ("; ".join(answer.labels) if answer.labels else answer.label)
    assert expected in (None, shown)
    cells = [text for tag, text in found["shown"] if tag == "td" and text]
    assert set(cells[::2]) == set(answer.probabilities)
    assert [float(cell) for cell in cells[1::2]] == sorted(
        (pytest.approx(value, abs=6e-4) for value in answer.probabilities.values()),
        key=lambda value: -value.expected,
    )


@pytest.mark.slow
@needs_browser
def test_the_page_answers_in_a_browser_that_keeps_to_its_policy(folders, tmp_path):
    app = make_app(folders[:1])

    @app.middleware("http")
    async def let_the_driver_frame_it(request, call_next):
        response = await call_next(request)
        if POLICY in response.headers:
            policy = response.headers[POLICY]
            response.headers[POLICY] = policy.replace("ancestors 'none'", "ancestors 'self'")
        return response

    @app.get("/driver")
    def driver():
        return HTMLResponse(DRIVER.replace("TEXT", json.dumps(TEXTS[0])))

    with running(app) as address:
        ended = shown_page(f"{address}/driver", tmp_path / "profile", "--virtual-time-budget=60000")
    shown = html.unescape(re.search(r"<title>(.*?)</title>", ended.stdout)[1]).split("|")
    (answer,) = load_predictor(folders[0]).predict([TEXTS[0]])
    assert shown[0] == answer.label
    assert sorted(map(float, shown[1:])) == pytest.approx(
        sorted(answer.probabilities.values()), abs=6e-4
    )

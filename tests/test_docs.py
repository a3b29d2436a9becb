"""The documentation: it builds without a warning, asks the network for nothing, and what it shows is run."""

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from snippets import README, ROOT, blocks, commands, run_command, run_python, write_all
from test_layers import FLOORS

import peftcls
from peftcls import cli, recipe
from peftcls.cli import commands as command_group
from peftcls.report import wording

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
START = DOCS / "index.md"
PEFT_ASKS = "ignore:.*is_gradient_checkpointing:FutureWarning"  # by the old name
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LOADED_BY = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "use": "href",
    "image": "href",
}


class Built(HTMLParser):
    """What a browser fetches for a page without being asked to, the anchors in it, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found["id"]} if found.get("id") else set()
        if tag == "link" and found.get("rel") not in ("prev", "next", "canonical"):
            self.fetched.append(found["href"])
        elif tag in LOADED_BY and found.get(LOADED_BY[tag]):
            self.fetched.append(found[LOADED_BY[tag]])

    def handle_data(self, text):
        self.words.append(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "WARNING" not in ended.stderr
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the start page has been followed, so that the others find the adapters that it made."""
    path = tmp_path_factory.mktemp("docs")
    write_all(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(recipe, "RESAMPLES", 20)  # intervals are tested elsewhere
        codes = [run_command(line) for line in commands(START) if " try " not in line]
        names = run_python(START)
        yield path, codes, names


def test_the_start_page_leads_from_a_table_to_answers(folder):
    path, codes, names = folder
    assert codes == [0, 0, 0, 0]
    rows = peftcls.read_rows(path / "answers.csv")
    assert rows.column_names[-2:] == ["label", "probability"]
    assert len(rows) == 4
    assert names["answer"].label in names["predictor"].label_names


@pytest.mark.filterwarnings(PEFT_ASKS)
@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p != START and (blocks(p, "python") or blocks(p, "sh"))],
    ids=lambda page: page.relative_to(DOCS).with_suffix("").as_posix(),
)
def test_what_a_page_shows_is_run(page, folder, capsys):
    tested = set(commands(README))
    shown = [
        part
        for kind, part in re.findall(
            r"^```(sh|python)\n(.*?)^```",
            page.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
    ]
    kinds = re.findall(r"^```(sh|python)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    names: dict = {"__name__": "pasted"}
    for kind, block in zip(kinds, shown, strict=True):
        if kind == "python":
            exec(compile(block, page.name, "exec"), names)
            continue
        for line in block.splitlines():
            if line not in tested:
                assert run_command(line) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for text, comment in re.findall(
        r"^ +print\((error)\)  # (row .*)$", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert comment in said, text


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_the_three_ways_of_loading_give_the_same_answer(folder):
    if not (folder[0] / "runs" / "merged").is_dir():
        run_command("peftcls merge runs/python runs/merged")
    names = run_python(DOCS / "loading.md")
    text = "You have won a prize! Call now."
    own = names["predictor"].predict([text])[0]
    assert names["predictor"].label_names[int(names["logits"].argmax())] == own.label
    merged = names["classify"](text)[0]
    assert merged["label"] == own.label
    assert merged["score"] == pytest.approx(
        own.probabilities[own.label], abs=0.02
    )  # the base may have been read in bfloat16


def test_a_page_in_the_navigation_is_a_file_and_every_file_is_there(site):
    built = {
        path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")
    } - {"404.md"}
    assert built == {page.relative_to(DOCS).as_posix() for page in PAGES}
    navigation = re.findall(
        r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(navigation) == sorted(built)


def test_the_site_asks_the_network_for_nothing(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        found = Built(page.read_text(encoding="utf-8")).fetched
        assert any(address.endswith(".css") for address in found), page
        for address in found:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
            if page.name != "404.html" and not address.startswith("data:"):
                assert (page.parent / address.partition("?")[0].partition("#")[0]).is_file(), (
                    f"{page.name} lacks {address}"
                )
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", text), sheet
    assert not list(site.rglob("hooks.*"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_search_works_from_the_disk_without_an_error(site, tmp_path):
    alone = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    ended = subprocess.run(
        [
            CHROMIUM,
            *alone,
            "--virtual-time-budget=30000",
            "--enable-logging=stderr",
            "--dump-dom",
            f"{(site / 'index.html').as_uri()}?q=calibrate",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert re.search(r"\b[1-9]\d* matching documents", ended.stdout)
    assert "CONSOLE" not in ended.stderr


def test_every_public_name_is_in_the_reference(site):
    found = Built((site / "reference.html").read_text(encoding="utf-8"))
    assert {f"peftcls.{name}" for name in peftcls.api.__all__} <= found.anchors
    assert "Source code" not in " ".join(found.words)
    asked = re.findall(
        r"^::: (peftcls[\w.]*)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(asked) == len(set(asked))
    for name in asked:
        module, _, last = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[last]), last)


def test_every_command_and_option_is_on_the_page_of_commands(site):
    text = " ".join(Built((site / "commands.html").read_text(encoding="utf-8")).words)
    for name, command in command_group.commands.items():
        assert f"peftcls {name}" in text
        for option in (
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("--")
        ):
            assert option in text


def test_scores_codes_and_findings_that_are_explained_exist():
    def first_column(page: str, head: str) -> list[str]:
        table = re.search(
            rf"^\| {head}.*\n\|[-|]+\n((?:\|.*\n)+)",
            (DOCS / page).read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        return [line.split("|")[1].strip() for line in table[1].splitlines()]

    scores = {
        name for cell in first_column("report.md", "score") for name in re.findall(r"`(\w+)`", cell)
    }
    assert scores <= set(wording.SCORES)
    assert [int(code) for code in first_column("failures.md", "code")] == [
        0,
        cli.WRONG,
        cli.USAGE,
        cli.INTERRUPTED,
        143,
    ]
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "peftcls" / "doctor").glob("*.py")
    )
    for name in re.findall(r"`([\w-]+)`", " ".join(first_column("data.md", "finding"))):
        assert f'"{name}"' in source


def test_messages_that_are_explained_are_those_of_the_code():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "peftcls").rglob("*.py"))
    source = " ".join(re.sub(r'"\s+f?"', "", text).split())  # sentences are cut where a line ends
    told = re.findall(
        r'^\*\*"(.*?)"\.\*\*', (DOCS / "failures.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(told) >= 3
    for sentence in told:
        assert sentence in source


def test_the_picture_of_the_floors_is_true():
    drawn = re.findall(
        r">([a-z_]+(?:, [a-z_]+)+)</text>",
        (DOCS / "assets" / "floors.svg").read_text(encoding="utf-8"),
    )
    assert len(drawn) == 5
    for number, names in enumerate(reversed(drawn)):
        assert set(names.split(", ")) <= FLOORS[number]


def test_a_snippet_is_never_only_text():
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= {"sh", "python", "text"}, page
        for block in blocks(page, "python"):
            assert ast.parse(block).body, page

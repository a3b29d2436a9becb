"""The documentation builds without a warning, needs no network, and its snippets run."""

import ast
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from browser import needs_browser, shown_page
from snippets import (
    DOCS,
    PAGES,
    README,
    ROOT,
    blocks,
    commands,
    recipe_commands,
    run_command,
    run_python,
    write_all,
)
from task_checks import check_task
from test_layers import LAYERS

import peftcls
from peftcls import Answer, cli, recipe
from peftcls.cli import commands as command_group
from peftcls.report import wording

START = DOCS / "index.md"
PEFT_ASKS = "ignore:.*is_gradient_checkpointing:FutureWarning"  # PEFT uses the old name
MAX_COLUMNS = 100
BANNED = (
    "as it comes",
    "as they come",
    "that there is not",
    "gone on with",
    "goes on with",
    "put into tokens",
    "rows into tokens",
    "the way back",
    "there and back",
    "learnt on from",
    "is told",
    "learn on",
    "learning on",
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
    """A built page: what a browser fetches for it by itself, its anchors, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if values.get("id"):
            self.anchors.add(values["id"])
        if tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            self.fetched.append(values["href"])
        elif tag in LOADED_BY and values.get(LOADED_BY[tag]):
            self.fetched.append(values[LOADED_BY[tag]])

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
    """A folder with the adapters of the start page, which the other pages use."""
    path = tmp_path_factory.mktemp("docs")
    write_all(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(recipe, "RESAMPLES", 20)  # intervals are tested elsewhere
        codes = [run_command(line) for line in commands(START) if " try " not in line]
        names = run_python(START)
        yield path, codes, names


@pytest.mark.slow
def test_the_start_page_leads_from_a_table_to_answers(folder):
    path, codes, names = folder
    assert codes == [0, 0, 0, 0, 0]
    rows = peftcls.read_rows(path / "answers.csv")
    assert rows.column_names[-2:] == ["label", "probability"]
    assert len(rows) == 4
    assert names["answer"].label in names["predictor"].label_names


def snippets(page) -> list[tuple[str, str]]:
    """The shell and Python blocks of a page, in their order, each with its language."""
    fenced = r"^```(sh|python)\n(.*?)^```"
    return re.findall(fenced, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_commands(block: str, capsys) -> None:
    """Run the `peftcls` commands of a block; tests/test_readme.py runs the others."""
    elsewhere = {*commands(README), *recipe_commands()}
    for line in block.splitlines():
        if line not in elsewhere:
            assert run_command(line) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings(PEFT_ASKS)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page != START and snippets(page)],
    ids=lambda page: page.relative_to(DOCS).with_suffix("").as_posix(),
)
def test_what_a_page_shows_is_run(page, folder, capsys):
    names: dict = {"__name__": "pasted"}
    for language, block in snippets(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
        else:
            run_commands(block, capsys)
    printed = capsys.readouterr().out
    messages = re.findall(r"^ +# (row .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert page.stem != "failures" or len(messages) == 2
    for message in messages:
        assert message in printed
    assert not (folder[0] / "runs" / "bad").exists()


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_the_three_ways_of_loading_give_the_same_answer(folder):
    if not (folder[0] / "runs" / "merged").is_dir():
        run_command("peftcls merge runs/python runs/merged")
    names = run_python(DOCS / "loading.md")
    text = "You have won a prize! Call now."
    answer = names["predictor"].predict([text])[0]
    assert names["predictor"].label_names[int(names["logits"].argmax())] == answer.label
    merged = names["classify"](text)[0]
    assert merged["label"] == answer.label
    probability = answer.probabilities[answer.label]
    assert merged["score"] == pytest.approx(probability, abs=0.02)  # the base may be in bfloat16


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
        fetched = Built(page.read_text(encoding="utf-8")).fetched
        assert any(address.endswith(".css") for address in fetched), page
        for address in fetched:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
            if page.name == "404.html" or address.startswith("data:"):
                continue
            file = page.parent / address.partition("?")[0].partition("#")[0]
            assert file.is_file(), f"{page.name} lacks {address}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", text), sheet
    assert not list(site.rglob("hooks.*"))


@needs_browser
def test_the_search_works_from_the_disk_without_an_error(site, tmp_path):
    ended = shown_page(
        f"{(site / 'index.html').as_uri()}?q=calibrate",
        tmp_path / "profile",
        "--virtual-time-budget=30000",
        "--enable-logging=stderr",
    )
    assert re.search(r"\b[1-9]\d* matching documents", ended.stdout)
    assert "CONSOLE" not in ended.stderr


def test_every_public_name_is_in_the_reference(site):
    page = Built((site / "reference.html").read_text(encoding="utf-8"))
    assert {f"peftcls.{name}" for name in peftcls.api.__all__} <= page.anchors
    assert "Source code" not in " ".join(page.words)
    listed = re.findall(
        r"^::: (peftcls[\w.]*)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(listed) == len(set(listed))
    for name in listed:
        module, _, last = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[last]), last)


def test_every_command_and_option_is_on_the_page_of_commands(site):
    text = " ".join(Built((site / "commands.html").read_text(encoding="utf-8")).words)
    for name, command in command_group.commands.items():
        assert f"peftcls {name}" in text
        options = [option for parameter in command.params for option in parameter.opts]
        for option in options:
            assert not option.startswith("--") or option in text


def first_column(page: str, head: str) -> list[str]:
    """The first cells of the rows of a page's tables that have this first heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    tables = re.findall(rf"^\| {head}.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [line.split("|")[1].strip() for table in tables for line in table.splitlines()]


def test_scores_that_are_explained_exist():
    scores = re.findall(r"`(\w+)`", " ".join(first_column("report.md", "score")))
    assert len(scores) >= 10
    assert set(scores) <= set(wording.SCORES)


def test_exit_codes_that_are_explained_are_those_of_the_command():
    codes = [int(code) for code in first_column("failures.md", "code")]
    assert codes == [0, cli.FAILED, cli.USAGE, cli.INTERRUPTED, 143]


def test_findings_that_are_explained_exist_and_the_others_are_not_forgotten():
    files = (ROOT / "peftcls" / "quality").glob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    findings = re.findall(r"`([\w-]+)`", " ".join(first_column("data.md", "finding")))
    assert len(findings) >= 10
    for name in findings:
        assert f'"{name}"' in source
    assert {*re.findall(r'"([a-z]+(?:-[a-z]+)+)"', source)} <= {*findings}


def test_messages_that_are_explained_are_those_of_the_code():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "peftcls").rglob("*.py"))
    joined = re.sub(r'"\s+f?"', "", text)  # a sentence in the code may be cut where a line ends
    source = " ".join(joined.split())
    failures = (DOCS / "failures.md").read_text(encoding="utf-8")
    explained = re.findall(r'^\*\*"(.*?)"\.\*\*', failures, re.MULTILINE)
    assert len(explained) >= 3
    for sentence in explained:
        assert sentence in source


def test_the_picture_of_the_layers_shows_those_that_are_tested():
    picture = (DOCS / "assets" / "layers.svg").read_text(encoding="utf-8")
    boxes = re.findall(r'y="(\d+)" text-anchor="middle">(\w+)</text>', picture)
    heights = sorted({int(height) for height, _ in boxes}, reverse=True)  # the lowest layer first
    assert len(heights) == len(LAYERS)
    for height, layer in zip(heights, LAYERS, strict=True):
        drawn = {name for at, name in boxes if int(at) == height}
        assert drawn == {name for name in layer if name and not name.startswith("_")}


def test_the_picture_of_the_layers_is_the_one_that_its_script_draws():
    spec = importlib.util.spec_from_file_location("draw_layers", DOCS / "draw_layers.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PICTURE.read_text(encoding="utf-8") == script.draw(LAYERS)


def test_every_package_and_file_that_how_it_works_names_exists():
    text = (DOCS / "how_it_works.md").read_text(encoding="utf-8")
    files = re.findall(r"`([\w/]+\.py)`", text)
    assert len(files) >= 20
    for file in files:
        assert (ROOT / "peftcls" / file).is_file(), file
    table = text.partition("| package |")[2].partition("\n\n")[0]
    packages = {name for layer in LAYERS for name in layer if (ROOT / "peftcls" / name).is_dir()}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == packages - {"demo", ""}


def test_every_fast_path_is_on_its_page():
    text = (DOCS / "fast_paths.md").read_text(encoding="utf-8")
    switches = re.findall(r"^\| `(\w+)` \|", text.partition("| switch |")[2], re.MULTILINE)
    assert switches[:6] == [field.name for field in dataclasses.fields(peftcls.FastPaths)]


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_the_task_of_the_page_passes_the_checks_of_every_task(bert):
    names: dict = {"__name__": "pasted"}
    exec(compile(blocks(DOCS / "custom_task.md", "python")[0], "custom_task.md", "exec"), names)
    texts = ["a new drug", "stock prices fell", "the patient recovered and recovered", "yes no"]
    rows = [{"text": text, "stars": number} for number, text in enumerate(texts, 1)]
    check_task(names["Stars"](), bert, rows, right=lambda row: Answer(value=float(row["stars"])))


def measured_ratios() -> list[list[float]]:
    """The ratios of benchmarks/results/speed.md: median, smallest, largest."""
    text = (ROOT / "benchmarks" / "results" / "speed.md").read_text(encoding="utf-8")
    ratios = re.findall(r"(\d+\.\d\d) \((\d+\.\d\d) to (\d+\.\d\d)\)", text)
    return [[float(number) for number in ratio] for ratio in ratios]


@pytest.mark.parametrize(
    "heading", ["Training on two CPU cores", "Answering on two CPU cores", "Training on one H100"]
)
def test_the_ratios_on_the_page_of_speed_are_those_that_were_measured(heading):
    text = (DOCS / "speed.md").read_text(encoding="utf-8")
    table = text.partition(f"## {heading}\n")[2].partition("| work |")[2].partition("\n\n")[0]
    shown = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", table)
    assert len(shown) >= 3
    for ratio in shown:
        rounding = 0.055 if "." in ratio[0] else 0.505
        expected = pytest.approx([float(number) for number in ratio], abs=rounding)
        assert any(measured == expected for measured in measured_ratios()), ratio


@pytest.mark.parametrize(
    "page", [README, *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_a_page_is_in_plain_words_and_short_lines(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for phrase in BANNED:
        assert not re.search(rf"\b{phrase}\b", " ".join(prose.split()), re.IGNORECASE), phrase
    for line in prose.splitlines():
        assert line.startswith("|") or len(line) <= MAX_COLUMNS, line


def test_a_snippet_is_never_only_text():
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= {"sh", "python", "text"}, page
        for block in blocks(page, "python"):
            assert ast.parse(block).body, page

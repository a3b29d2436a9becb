"""The README is short and true: its Python prints what it shows, and its commands run."""

import configparser
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import (
    CHINESE,
    CONTRIBUTING,
    DOCS,
    README,
    ROOT,
    blocks,
    commands,
    recipe_commands,
    run_peftcls,
    run_python,
    run_recipe,
    write_papers,
)

BIN = Path(sys.executable).parent
FOLLOW_UPS = ("evaluate", "predict", "show")
MAX_LINES = 150
MAX_WORDS = 1200
MAX_COLUMNS = 100
RUN_TO_RUN = 0.2  # other processors round otherwise, and so train other weights


def needs_the_one_before(command: str) -> bool:
    """Whether a command uses what the command before it trained."""
    program, *arguments = shlex.split(command)
    return "--ask" in arguments or (program == "peftcls" and arguments[0] in FOLLOW_UPS)


def command_groups() -> list[list[str]]:
    """The commands of the README and the recipes of all pages, grouped by what they need."""
    groups: list[list[str]] = []
    for command in [*commands(README), *recipe_commands()]:
        if command.startswith(("make ", "pip ")):
            continue
        if needs_the_one_before(command):
            groups[-1].append(command)
        else:
            groups.append([command])
    return groups


def run(command: str) -> subprocess.CompletedProcess:
    """Run a command, with one epoch where it trains.

    What a launcher starts, and the first `peftcls` command of a page, has processes of its own;
    the others run in this one. tests/test_recipes.py starts a recipe as a program.
    """
    program, *arguments = shlex.split(command)
    if program == "peftcls" and arguments[0] in FOLLOW_UPS:
        return run_peftcls(*arguments)
    if program == "python":
        recipe, *options = arguments
        return run_recipe(ROOT / recipe, *options, "--epochs", "1")
    if program == "peftcls":
        started = [sys.executable, "-m", "peftcls", *arguments]
        if arguments[0] == "train":
            started += ["--epochs", "1"]
    else:
        started = [str(BIN / program)]
        for argument in arguments:
            started.append(str(ROOT / argument) if argument.startswith("recipes/") else argument)
        started += ["--epochs", "1"]
    return subprocess.run(started, capture_output=True, text=True, timeout=900, check=False)


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """The words of a text, and apart from them its numbers with a decimal point."""
    number = r"\d+\.\d+"
    return re.sub(number, "", text).split(), [float(found) for found in re.findall(number, text)]


def heading_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_papers(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_python_blocks_print_what_the_readme_shows(folder, capsys, caplog):
    caplog.set_level(logging.WARNING, logger="peftcls")  # as in a script that shows no messages
    run_python(README)
    words, numbers = words_and_numbers(capsys.readouterr().out)
    shown_words, shown_numbers = words_and_numbers("".join(blocks(README, "text")))
    assert words == shown_words
    assert numbers == pytest.approx(shown_numbers, abs=RUN_TO_RUN)
    assert (folder / "runs" / "papers" / "peftcls.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("commands", command_groups(), ids=lambda commands: commands[0])
def test_a_command_runs(commands, folder):
    for command in commands:
        ended = run(command)
        assert ended.returncode == 0, ended.stderr[-3000:]


def test_the_makefile_has_the_commands_that_the_pages_name():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [line.split()[1] for line in commands(README) if line.startswith("make ")]
    assert named == ["demo", "test"]
    also_named = re.findall(r"`make ([\w-]+)`", CONTRIBUTING.read_text(encoding="utf-8"))
    assert {"test", "test-fast", "lint", "docs"} <= set(also_named)
    assert {*named, *also_named} <= set(targets)


def test_the_readme_is_one_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.split()) <= MAX_WORDS
    assert max(len(line) for line in text.splitlines()) <= MAX_COLUMNS


def test_the_versions_in_the_readme_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = re.findall(
        r"^([\w.-]+)>=([\d.]+)$", setup["options"]["install_requires"], re.MULTILINE
    )
    versions = {**dict(required), "Python": setup["options"]["python_requires"].strip(">=")}
    shown = re.findall(r"^\| (\w+) \| ([\d.]+) or newer \|$", README.read_text(), re.MULTILINE)
    assert {name for name, _ in shown} == {"Python", "torch", "transformers", "peft"}
    for name, version in shown:
        assert versions[name] == version


def test_the_headline_numbers_are_on_the_pages_of_measurements():
    text = README.read_text(encoding="utf-8")
    section = re.search(r"^## Three numbers\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    numbers = re.findall(r"\d+\.\d+", section[1])
    assert len(numbers) >= 6
    pages = [DOCS / "speed.md", DOCS / "evidence.md"]
    measured = "".join(page.read_text(encoding="utf-8") for page in pages)
    for number in numbers:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", measured), number


def test_the_chinese_start_page_shows_the_same_commands_and_the_same_code():
    assert set(commands(CHINESE)) == set(commands(README))
    assert blocks(CHINESE, "python") == blocks(README, "python")
    assert blocks(CHINESE, "text") == blocks(README, "text")
    english = README.read_text(encoding="utf-8")
    chinese = CHINESE.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", chinese, flags=re.MULTILINE | re.DOTALL)
    scores = re.findall(r"\d+\.\d", prose)
    assert {"98.0", "94.2", "90.0"} <= set(scores)
    assert all(score in english for score in scores)


@pytest.mark.parametrize("page", [README, CHINESE, CONTRIBUTING], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        assert not anchor or anchor in heading_anchors(ROOT / path), target


def test_the_two_start_pages_name_each_other():
    for page, other in ((README, CHINESE), (CHINESE, README)):
        assert f"]({other.name})" in page.read_text(encoding="utf-8")

"""The README's snippets do what they say: the Python blocks run in order, the commands run on small files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import CHINESE, README, ROOT, blocks, commands, run_python, write_papers

BIN = Path(sys.executable).parent


def runs() -> list[list[str]]:
    """The commands, and together with those before it a command that asks what they trained."""
    found: list[list[str]] = []
    for command in (c for c in commands(README) if not c.startswith("make ")):
        if " --ask " in command or (
            command.startswith("peftcls ")
            and not command.startswith(("peftcls check ", "peftcls train "))
        ):
            found[-1].append(command)
        else:
            found.append([command])
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_papers(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_in_order(folder, capsys):
    run_python(README)
    printed = capsys.readouterr().out
    assert (
        "row 1 of train_rows has no column 'output'; it has ['instruction', 'input']. Instruction needs ["
        in printed
    )
    assert "f1_macro" in printed
    assert not (folder / "runs" / "bad").exists()


@pytest.mark.parametrize("commands", runs(), ids=lambda commands: commands[0])
def test_a_command_runs(commands, folder):
    for command in commands:
        program, *arguments = shlex.split(command)
        arguments = [str(ROOT / a) if a.startswith("recipes/") else a for a in arguments]
        line = {"python": [sys.executable], "peftcls": [sys.executable, "-m", "peftcls"]}.get(
            program, [str(BIN / program)]
        )
        short = ["--epochs", "1"] if program != "peftcls" or arguments[0] == "train" else []
        ended = subprocess.run(
            [*line, *arguments, *short], capture_output=True, text=True, timeout=900, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]


def test_the_makefile_has_the_commands_that_the_readme_names():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [line.split()[1] for line in commands(README) if line.startswith("make ")]
    assert named == ["demo", "test"]
    assert {*named, "docs"} <= set(targets)


def test_the_chinese_start_page_shows_the_same_commands_and_the_same_code():
    assert set(commands(CHINESE)) <= set(commands(README))
    assert {"make demo", "make test"} <= set(commands(CHINESE))
    own = blocks(CHINESE, "python")
    assert len(own) >= 2
    assert set(own) <= set(blocks(README, "python"))
    scores = re.findall(
        r"\d+\.\d",
        re.sub(
            r"^```.*?^```", "", CHINESE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        ),
    )
    assert {"91.7", "90.0"} <= set(scores)
    assert all(score in README.read_text(encoding="utf-8") for score in scores)


def test_the_two_start_pages_name_each_other_and_files_that_exist():
    for page, other in ((README, CHINESE), (CHINESE, README)):
        text = page.read_text(encoding="utf-8")
        linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
        assert other.name in linked
        assert all((ROOT / target).exists() for target in linked)

"""The README's snippets do what they say: the Python blocks run in order, the commands run on small files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_recipes import some_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def runs() -> list[list[str]]:
    """The commands, and together with those before it a command that asks what they trained."""
    found: list[list[str]] = []
    for command in (c for c in commands() if not c.startswith("make ")):
        if " --ask " in command or (command.startswith("peftcls ") and not command.startswith(("peftcls check ", "peftcls train "))):
            found[-1].append(command)
        else:
            found.append([command])
    return found


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    some_rows("papers_train.csv", tmp_path / "papers.csv", 16)
    some_rows("papers_validation.csv", tmp_path / "held_out.csv", 8)
    some_rows("papers_test.csv", tmp_path / "unlabelled.csv", 4, drop="label")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_in_order(folder, capsys):
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "row 1 of train_rows has no column 'output'; it has ['instruction', 'input']. Instruction needs [" in printed
    assert "f1_macro" in printed
    assert not (folder / "runs" / "bad").exists()


@pytest.mark.parametrize("commands", runs(), ids=lambda commands: commands[0])
def test_a_command_runs(commands, folder):
    for command in commands:
        program, *arguments = shlex.split(command)
        arguments = [str(ROOT / a) if a.startswith("recipes/") else a for a in arguments]
        line = {"python": [sys.executable], "peftcls": [sys.executable, "-m", "peftcls"]}.get(program, [str(BIN / program)])
        short = ["--epochs", "1"] if program != "peftcls" or arguments[0] == "train" else []
        ended = subprocess.run([*line, *arguments, *short], capture_output=True, text=True, timeout=900, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]


def test_the_makefile_has_the_commands_that_the_readme_names():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)

"""A command starts without the libraries that it does not need, which take seconds to import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import peftcls.report.figures
from peftcls import Classification, cli, load_base, train_only
from peftcls.models.adapter_folder import save_adapter

HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "sklearn")
PROGRAM = """
import json, sys
from peftcls.cli import main

for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    imported = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(f"code {code} of {arguments[0]}, with {imported}", flush=True)
"""


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    task = Classification(labels=("no", "yes"), max_length=16)
    model, tokenizer = load_base(bert, task)
    path = tmp_path_factory.mktemp("start") / "run"
    save_adapter(path, train_only(model, task, "head"), task, tokenizer)
    return path


@pytest.fixture
def rows(write):
    return write("rows.csv", "text,label\nhello there,yes\ngood morning,no\n")


def test_what_needs_no_model_imports_no_model_library(folder, rows, tmp_path):
    commands = {
        ("--help",): (0, "Usage: peftcls"),
        ("train", "--help"): (0, "Usage: peftcls train"),
        ("show", str(folder)): (0, "labels     'no', 'yes'"),
        ("check", str(rows)): (0, "2 rows of train"),
        ("train", "no_rows.csv", "--out", "run"): (1, "there is no file no_rows.csv"),
        ("train", str(rows), "--test", "no_test.csv", "--out", "run"): (1, "no file no_test.csv"),
        ("predict", str(folder), "no.csv", "--out", "a.csv"): (1, "there is no file no.csv"),
        ("evaluate", "no_run", str(rows)): (1, "there is no folder no_run"),
        ("compare", str(folder), "no_other", str(rows)): (1, "there is no folder no_other"),
        ("merge", "no_adapter", "out"): (1, "there is no folder no_adapter"),
        ("try", "no_try"): (1, "there is no folder no_try"),
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(commands)), json.dumps(HEAVY)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    reached = [line for line in ended.stdout.splitlines() if line.startswith("code ")]
    expected = []
    for arguments, (code, sentence) in commands.items():
        assert sentence in ended.stdout + ended.stderr
        expected.append(f"code {code} of {arguments[0]}, with []")
    assert reached == expected


def test_what_writes_no_report_imports_no_matplotlib():
    """It wants a folder of its own, and warns where there is none, as in many containers."""
    figures = Path(peftcls.report.figures.__file__)
    for path in figures.parents[1].rglob("*.py"):
        imports = [
            ast.unparse(statement)
            for statement in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(statement, ast.Import | ast.ImportFrom)
        ]
        drawn = [text for text in imports if "matplotlib" in text or "report.figures" in text]
        assert bool(drawn) == (path == figures), path


def test_the_list_of_commands_has_whole_sentences(capsys):
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(cli.commands.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)

"""Files as they come: rows without a text, only a header; and a cache that cannot be written."""

import csv
import os
import subprocess
import sys

import pytest

from peftcls import Classification, attach_lora, cli, load_base, read_rows
from peftcls.data import reading
from peftcls.models.adapter_folder import save_adapter

PROGRAM = """
import os, sys
os.environ["HF_HOME"] = sys.argv[1]
from pathlib import Path
from peftcls.cli import main

print("exit code", main(["check", sys.argv[2]]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    task = Classification(labels=("no", "yes"), max_length=16)
    model, tokenizer = load_base(bert, task)
    path = tmp_path_factory.mktemp("awkward") / "run"
    save_adapter(path, attach_lora(model, task, rank=2), task, tokenizer)
    return str(path)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_rows_without_a_text_get_an_empty_answer_and_are_counted(
    folder, write, tmp_path, caplog, ending
):
    file = write("new.csv", 'id,text\n1,hello\n2,""\n3,   \n4,good morning\n')
    out = tmp_path / f"answers{ending}"
    assert cli.main(["predict", folder, str(file), "--out", str(out)]) == 0
    assert "2 of 4 rows of new.csv have no text and get an empty answer: rows 2, 3." in caplog.text
    answered = read_rows(out)
    assert answered["id"][:] == ["1", "2", "3", "4"]
    assert [bool(label) for label in answered["label"]] == [True, False, False, True]


def test_a_file_in_which_no_row_has_a_text_is_refused(folder, write, tmp_path, capsys):
    file = write("new.csv", 'id,text\n1,""\n2,""\n')
    out = tmp_path / "answers.csv"
    assert cli.main(["predict", folder, str(file), "--out", str(out)]) == 1
    assert "row 1 of new.csv has no text in column 'text'" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_with_only_a_header_says_so(folder, write, tmp_path, capsys):
    file = write("new.csv", "text,label\n")
    assert cli.main(["predict", folder, str(file), "--out", str(tmp_path / "a.csv")]) == 1
    assert "new.csv has no rows: expected at least one below the header." in capsys.readouterr().err


def test_a_command_leaves_no_copy_of_its_rows(tmp_path):
    home = tmp_path / "home"
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["text", "label", "customer"])
        table.writerows([f"message {n}", ["ham", "spam"][n % 2], f"name {n}"] for n in range(50))
    ended = run_check(home, file)
    assert "exit code 0" in ended.stdout
    kept = [path for path in home.rglob("*") if path.is_file() and path.suffix == ".arrow"]
    assert not kept
    assert not list(home.rglob("peftcls-*"))


def test_a_cache_that_cannot_be_written_is_no_obstacle_for_a_command(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nhello,yes\nmorning,no\n")
    ended = run_check("/proc/nope", file)
    assert "2 rows of train" in ended.stdout
    assert "exit code 0" in ended.stdout, ended.stderr


def test_a_cache_that_cannot_be_written_is_one_sentence_in_python(write, tmp_path, monkeypatch):
    blocked = write("blocked", "a file where the folder should be")
    monkeypatch.setattr(reading.datasets.config, "HF_DATASETS_CACHE", blocked / "cache")
    file = write("rows.csv", "text,label\nhello,yes\n")
    sentence = r"^copies of files cannot be written to .*blocked/cache .*; set HF_HOME to a folder"
    with pytest.raises(ValueError, match=sentence):
        read_rows(file)
    assert len(read_rows(file, cache_dir=tmp_path / "mine")) == 1


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            ("predict", "{folder}", "{rows}", "--out", "{ro}/a.csv"),
            "cannot write {ro}/a.csv: the f",
        ),
        (("export", "{folder}", "{ro}/onnx", "--onnx"), "cannot write {ro}/onnx: the folder {ro}"),
        (("merge", "{folder}", "{ro}/merged"), "cannot write {ro}/merged: the folder {ro} cannot"),
        (("train", "{rows}", "--out", "{ro}/run"), "--out {ro}/run: {ro} is not a folder that can"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(
    command, sentence, folder, write, tmp_path, monkeypatch, capsys
):
    rows = write("rows.csv", "text,label\nhello,yes\nmorning,no\n")
    closed = tmp_path / "ro"
    closed.mkdir()
    access = os.access
    # A read-only disk answers so to everybody, also to root.
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    places = {"folder": folder, "rows": rows, "ro": closed}
    assert cli.main([word.format(**places) for word in command]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(sentence.format(**places))
    assert shown.err.endswith("choose another.\n")
    assert not list(closed.iterdir())


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\0\0\0\xff", bytes(range(1, 256)) * 4])
def test_a_file_that_is_no_text_is_not_taken_for_one_in_another_encoding(content, write, capsys):
    assert cli.main(["check", str(write("picture.csv", content))]) == 1
    assert "picture.csv does not look like a text file: " in capsys.readouterr().err
    latin = write("rows.csv", "text,label\ncaf\xe9,yes\n".encode("latin-1"))
    assert cli.main(["check", str(latin)]) == 1
    assert "line 2 of rows.csv has the byte 0xe9, which is not UTF-8" in capsys.readouterr().err


def run_check(home, file):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(home), str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

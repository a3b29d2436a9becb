"""`--skip-bad-rows`: what is left out is counted, said and written, and the rest is used."""

import csv
import json

import pytest

from peftcls import Classification, attach_lora, load_base
from peftcls.cli import main
from peftcls.cli.skipping import SkippedRows
from peftcls.data.reading import as_dataset, name_source
from peftcls.models.adapter_folder import save_adapter

WORDS = {"ham": "see you at lunch", "spam": "free prize call now"}


@pytest.fixture
def messages(tmp_path):
    lines = ["id,text,label"]
    lines += [f"{n},{text} {n},{label}" for n in range(12) for label, text in WORDS.items()]
    lines[3] = "x,,ham"
    lines[6] = "y,a message,"
    path = tmp_path / "messages.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("skipping") / "run"
    task = Classification(labels=("ham", "spam"), max_length=16)
    model, tokenizer = load_base(bert, task)
    save_adapter(path, attach_lora(model, task), task, tokenizer)
    return str(path)


def test_bad_rows_are_left_out_of_a_training_and_written(messages, bert, tmp_path, capsys):
    command = ["train", str(messages), "--text", "text", "--label", "label", "--model", bert]
    command += ["--out", str(tmp_path / "run"), "--max-length", "16", "--epochs", "1"]
    assert main([*command, "--dry-run"]) == 1
    assert "row 6 of messages.csv has no label" in capsys.readouterr().err
    out = tmp_path / "bad.csv"
    skipping = [*command, "--skip-bad-rows", str(out)]
    assert main([*skipping, "--dry-run"]) == 0
    sentence = (
        "left out 2 of 24 rows of messages.csv: rows 3, 6; row 3 has no text in column 'text'; "
        "fill it in or leave the row out.\n"
    )
    shown = capsys.readouterr().out
    assert sentence in shown
    assert not out.exists()
    test = tmp_path / "test.csv"
    test.write_text("id,text,label\n1,a prize,spam\n2,a lunch,hamm\n3,see you,ham\n")
    assert main([*skipping, "--test", str(test)]) == 0
    shown = capsys.readouterr().out
    assert sentence in shown
    assert "left out 1 of 3 rows of test.csv: row 2; row 2 has the label 'hamm', exp" in shown
    assert f"the rows that were left out are in {out}, with the reasons.\n" in shown
    assert "2 rows of test.csv" in shown
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["row"], row["id"]) for row in rows] == [
        ("messages.csv", "3", "x"),
        ("messages.csv", "6", "y"),
        ("test.csv", "2", "2"),
    ]
    assert rows[1]["text"] == "a message"
    assert rows[1]["reason"].startswith("has no label in column 'label'")


def test_bad_rows_are_left_out_of_a_score(messages, folder, tmp_path, capsys):
    out = tmp_path / "bad.jsonl"
    command = ["evaluate", folder, str(messages), "--json", "--skip-bad-rows", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"] == 22
    assert "left out 2 of 24 rows of messages.csv: rows 3, 6; " in printed.err
    first, second = map(json.loads, out.read_text().splitlines())
    assert list(first) == ["file", "row", "id", "text", "label", "reason"]
    assert (first["row"], second["row"]) == (3, 6)


def test_a_file_of_an_earlier_run_does_not_stay(tmp_path):
    rows = name_source(as_dataset([{"text": "a", "label": "ham"}]), "a.csv")
    out = tmp_path / "bad.csv"
    out.write_text("old")
    skipped = SkippedRows(out, [])
    assert skipped.left_out(Classification(), rows) is rows
    skipped.write()
    assert out.read_text() == "file,row,reason\n"
    assert skipped.sentences() == ["no row of a.csv had to be left out."]


def test_columns_of_the_same_names_are_kept_beside_the_new_ones(tmp_path):
    rows = as_dataset([{"text": t, "label": "ham", "row": 7, "tags": ["x"]} for t in ("", "a")])
    skipped = SkippedRows(tmp_path / "bad.csv", [])
    skipped.left_out(Classification(), rows)
    skipped.write()
    with (tmp_path / "bad.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["skipped_row"], row["row"], row["tags"]) == ("1", "7", '["x"]')


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad.txt", "expected a file ending in .csv or .jsonl"),
        ("missing/bad.csv", "in a folder that exists"),
        ("messages.csv", "would replace the rows that are read"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_first(name, message, messages, tmp_path, capsys):
    command = ["train", str(messages), "--out", str(tmp_path / "run")]
    assert main([*command, "--skip-bad-rows", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""`--skip-bad-rows`: what is left out is counted, said and written, and the rest is used."""

import csv
import json

import pytest

from peftcls import Classification, Instruction, attach_lora, load_base
from peftcls.cli import main
from peftcls.cli.continuing import advise_on_forgetting
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


@pytest.fixture
def ragged(tmp_path):
    lines = ["text,label"]
    lines += [f"{text} {n},{label}" for n in range(12) for label, text in WORDS.items()]
    lines[3] = "a lunch, and more,ham"
    lines[6] = "free prize"
    lines[9] = ",ham"
    path = tmp_path / "ragged.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


LEFT_OUT = (
    "left out 2 of 24 rows of ragged.csv: rows 3 (line 4), 6 (line 7); row 3 has 3 fields, "
    "expected 2 (text, label); put quotes around a text that holds a separator.\n"
)


def test_lines_with_another_number_of_fields_are_left_out_of_a_prediction(
    ragged, folder, tmp_path, capsys
):
    out, answers = tmp_path / "bad.csv", tmp_path / "answers.csv"
    command = ["predict", folder, str(ragged), "--out", str(answers)]
    assert main(command) == 1
    assert "row 3 of ragged.csv (line 4) has 3 fields" in capsys.readouterr().err
    assert main([*command, "--skip-bad-rows", str(out)]) == 0
    shown = capsys.readouterr().out
    assert LEFT_OUT in shown
    # The row without a text keeps its number in the file, and is no error here.
    assert "1 of 22 rows of ragged.csv have no text and get an empty answer: row 9." in shown
    with answers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows[1:3]] == ["free prize call now 0", "free prize call now 1"]
    assert (len(rows), rows[6]["predicted_label"]) == (22, "")
    with out.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["row"], first["text"], first["label"]) == ("3", "a lunch", " and more,ham")
    assert first["reason"].startswith("line 4 has 3 fields, expected 2")
    assert (second["row"], second["text"], second["label"]) == ("6", "free prize", "")
    assert second["reason"].startswith("line 7 has 1 field, expected 2")


def test_lines_are_left_out_of_scores_and_of_labels_with_other_names(
    ragged, folder, tmp_path, capsys
):
    named = tmp_path / "named.csv"
    named.write_text(ragged.read_text().replace(",ham", ",h"))
    out = tmp_path / "bad.jsonl"
    command = ["evaluate", folder, str(named), "--json", "--label-names", "h=ham"]
    assert main([*command, "--skip-bad-rows", str(out)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"] == 21
    assert "left out 3 of 24 rows of named.csv: rows 3 (line 4), 6 (line 7), 9; " in printed.err
    assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [3, 6, 9]


def test_lines_that_are_no_objects_are_left_out(folder, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    lines = ['{"text": "a", "label": "ham"}', "not JSON", '{"text": "b", "label": "spam"}', "[1]"]
    path.write_text("\n".join(lines))
    out = tmp_path / "bad.csv"
    assert main(["evaluate", folder, str(path), "--skip-bad-rows", str(out)]) == 0
    assert "left out 2 of 4 rows of rows.jsonl: rows 2 (line 2), 4" in capsys.readouterr().err
    with out.open(newline="") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["not JSON", "[1]"]


def test_rows_that_a_task_cannot_answer_are_left_out_of_a_prediction(llama, tmp_path, capsys):
    task = Instruction(template="{input}\n{note}\nAnswer: ", max_length=24, max_new_tokens=4)
    model, tokenizer = load_base(llama, task)
    save_adapter(tmp_path / "run", attach_lora(model, task), task, tokenizer)
    path = tmp_path / "rows.csv"
    path.write_text(f"input,note\na patient,x\na drug,{'long note ' * 40}\n,\n")
    command = ["predict", str(tmp_path / "run"), str(path), "--out", str(tmp_path / "answers.csv")]
    assert main([*command, "--skip-bad-rows", str(tmp_path / "bad.csv")]) == 0
    assert "left out 1 of 3 rows of rows.csv: row 2; row 2 has a prompt" in capsys.readouterr().out
    with (tmp_path / "answers.csv").open(newline="") as file:
        assert [row["input"] for row in csv.DictReader(file)] == ["a patient", ""]


def test_bad_rows_are_left_out_of_continual_training(ragged, folder, tmp_path, capsys):
    out = tmp_path / "bad.csv"
    new_label = tmp_path / "new.csv"
    new_label.write_text(ragged.read_text() + "a new one,new\nanother new one,new\n,new\n")
    command = ["learn-on", folder, str(new_label), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert main(command) == 1
    assert "row 3 of new.csv (line 4) has 3 fields" in capsys.readouterr().err
    assert main([*command, "--replay", str(ragged), "--skip-bad-rows", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "left out 4 of 27 rows of new.csv: rows 3 (line 4), 6 (line 7), 9, 27; " in shown
    assert "left out 3 of 24 rows of ragged.csv: " in shown
    assert "no old rows are given" not in shown


def test_continual_training_says_what_is_known_of_forgetting(messages, folder, tmp_path, capsys):
    new = tmp_path / "new.csv"
    rows = [f"{text} {n},{label}" for n in range(8) for label, text in WORDS.items()]
    new.write_text("\n".join(["text,label", *rows]))
    command = ["learn-on", folder, str(new), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "no old rows are given: an adapter that learns only from new rows may forget" in shown
    advise_on_forgetting("accuracy", 0.9, 0.89, 0.3)
    assert not capsys.readouterr().out
    advise_on_forgetting("accuracy", 0.9, 0.7, 0.3)
    assert "its accuracy was 0.90 and is 0.70. To forget less, give a" in capsys.readouterr().out


def test_a_file_in_which_every_line_is_bad_is_refused(folder, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b,c\n")
    command = ["predict", folder, str(path), "--out", str(tmp_path / "answers.csv")]
    assert main([*command, "--skip-bad-rows", str(tmp_path / "bad.csv")]) == 1
    expected = "every row of rows.csv has an error; row 1 of rows.csv (line 2) has 3 fields"
    assert expected in capsys.readouterr().err
    assert main([*command, "--skip-bad-rows", str(tmp_path / "answers.csv")]) == 1
    assert "--skip-bad-rows and --out are both" in capsys.readouterr().err


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

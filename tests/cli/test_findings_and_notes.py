"""What is said is counted: a missing header, rows that were trained on, a prediction that ends."""

import json
import os
import signal

import pytest

from peftcls import (
    Classification,
    Predictor,
    attach_lora,
    examine_rows,
    load_base,
    read_rows,
    recipe,
)
from peftcls.cli import main
from peftcls.inference import answer_parts
from peftcls.models.adapter_folder import save_adapter

LINES = [
    f"{label}\t{text} number {n}"
    for n in range(8)
    for label, text in (("ham", "lunch at noon"), ("spam", "a free prize"))
]


@pytest.fixture
def headless(tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text("\n".join(LINES) + "\n")
    return file


@pytest.fixture
def headed(tmp_path):
    file = tmp_path / "headed.tsv"
    file.write_text("label\ttext\n" + "\n".join(LINES) + "\n")
    return file


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("notes") / "run"
    task = Classification(labels=("ham", "spam"), max_length=16)
    model, tokenizer = load_base(bert, task)
    save_adapter(path, attach_lora(model, task), task, tokenizer)
    return str(path)


# A file without a header


def test_a_missing_header_is_a_finding_that_is_counted_and_said_once(headless, capsys):
    assert main(["check", str(headless)]) == 0
    shown = capsys.readouterr().out
    assert "15 rows of train: 0 errors, 1 warning, 0 notes\n" in shown
    assert "warning  train  no-header" in shown
    assert shown.count("is also a value of its column") == 1
    assert "'ham' is also a value of its column, in 7 of the first 15 rows. If the file" in shown
    assert "give them: columns=['label', 'text'] (--columns label,text)." in shown
    assert main(["check", str(headless), "--columns", "label,text", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_splits_of_one_file_have_one_missing_header(headless):
    rows = read_rows(headless)
    task = Classification(text=rows.column_names[1], label="ham")
    examination = examine_rows(task, rows, rows.select(range(7)), rows.select(range(7, 15)))
    assert [f.split for f in examination.findings if f.what == "no-header"] == ["train"]


# Rows that were trained on


def test_the_file_of_the_training_is_noticed_when_it_is_scored(
    headed, bert, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recipe, "RESAMPLES", 20)
    out = str(tmp_path / "run")
    command = ["train", str(headed), "--out", out, "--model", bert, "--epochs", "1"]
    test = tmp_path / "test.tsv"
    test.write_text("label\ttext\nham\tsee you at noon\nspam\tanother prize\n")
    assert main([*command, "--valid", str(test)]) == 0
    capsys.readouterr()
    copied = tmp_path / "copied.tsv"
    copied.write_bytes(headed.read_bytes())
    assert main(["evaluate", out, str(copied), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"] == 16
    assert printed.err == (
        "note: the adapter was trained on 14 rows of copied.tsv: the scores say little "
        "about new rows; score rows that the adapter has not seen.\n"
    )
    assert main(["evaluate", out, str(test)]) == 0
    assert capsys.readouterr().err == ""


# A prediction that is ended


@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        (10, "\nended by SIGTERM: 10 of 16 rows are answered, in {part}; go on with --resume.\n"),
        (0, "\nended by SIGTERM before the first rows were answered; nothing is written.\n"),
    ],
)
def test_a_prediction_that_is_ended_says_how_far_it_came(
    folder, headed, tmp_path, monkeypatch, capsys, at, sentence
):
    monkeypatch.setattr(answer_parts, "CHUNK_ROWS", 5)
    answer = Predictor.answer_part

    def ended(self, table, start, end, **settings):
        if start == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, table, start, end, **settings)

    out = tmp_path / "answers.csv"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer_part", ended)
        with pytest.raises(SystemExit) as stop:
            main(["predict", folder, str(headed), "--out", str(out)])
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == sentence.format(part=f"{out}.part")
    assert (tmp_path / "answers.csv.part").is_dir() == bool(at)
    assert main(["predict", folder, str(headed), "--out", str(out), "--resume"]) == 0
    assert len(out.read_text().splitlines()) == 17

"""`--label-names`, `--label-separator` and label columns, from check to predict."""

import functools
import json

import pytest

from peftcls import Classification, attach_lora, load_base, recipe
from peftcls.cli import main, predicting
from peftcls.models.adapter_folder import save_adapter

TRAIN = ("--max-length", "16", "--epochs", "1", "--batch-size", "16")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are tested elsewhere."""
    monkeypatch.setattr(recipe, "RESAMPLES", 20)
    few = functools.partial(predicting.evaluate_answers, resamples=20)
    monkeypatch.setattr(predicting, "evaluate_answers", few)


def table(path, header, *rows, times=12):
    lines = [header]
    lines += [f"{text} {n},{cells}" for n in range(times) for text, cells in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_labels_get_names_in_check_train_and_learn_on(bert, tmp_path, capsys):
    rows = (("see you at lunch", "0"), ("free prize call now", "1"))
    file = table(tmp_path / "rows.csv", "text,kind", *rows)
    test = table(tmp_path / "test.csv", "text,kind", *rows, times=3)
    named = ["--label", "kind", "--label-names", "0=ham,1=spam"]
    assert main(["check", file, *named, "--test", test]) == 0
    assert "labels: 'ham' 12, 'spam' 12\n" in capsys.readouterr().out
    out = str(tmp_path / "run")
    command = ["train", file, *named, "--test", test, "--out", out, "--model", bert, *TRAIN]
    assert main([*command, "--dry-run"]) == 0
    assert "(2 labels: 'ham', 'spam')" in capsys.readouterr().out
    misspelt = [*named[:-1], "0=ham,1=spam,I=spam"]
    assert main(["check", file, *misspelt, "--test", test]) == 0
    sentence = "has no row with the labels ['I'] in column 'kind', which were to be renamed; it has"
    assert f"{sentence} ['0', '1']" in capsys.readouterr().out
    task = Classification(label="kind", labels=("ham", "spam"))
    model, tokenizer = load_base(bert, task)
    save_adapter(out, attach_lora(model, task), task, tokenizer)
    further = ["learn-on", out, file, "--out", str(tmp_path / "next"), "--label-names"]
    assert main([*further, "9=news"]) == 1
    assert "rows.csv has none of the labels ['9'] in column 'kind'" in capsys.readouterr().err


LISTS = (
    ("free prize call now", '"spam,short"'),
    ("see you at lunch", "short"),
    ("stock prices fell", '"news,spam"'),
)


def test_lists_with_commas_are_named_and_then_read(bert, tmp_path, capsys):
    file = table(tmp_path / "rows.csv", "text,label", *LISTS)
    assert main(["check", file]) == 0
    shown = capsys.readouterr().out
    assert "list-separator" in shown
    assert '--task multi-label --label-separator ","' in shown
    assert main(["check", file, "--label-separator", ","]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("task: multi-label; text column: 'text', label column: 'label'\n")
    assert "labels: 'spam' 24, 'short' 24, 'news' 12\n" in shown
    assert "list-separator" not in shown
    out = str(tmp_path / "run")
    command = ["train", file, "--label-separator", ",", "--out", out, "--model", bert, *TRAIN]
    assert main([*command, "--dry-run"]) == 0
    assert "(3 labels: 'news', 'short', 'spam')" in capsys.readouterr().out


def test_many_different_lists_are_no_labels_and_the_message_says_what_they_are(tmp_path, capsys):
    lines = [f"some text {a} {b},{a}|{b}" for a in range(8) for b in range(8)]
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    assert main(["check", str(file)]) == 1
    message = capsys.readouterr().err
    assert "has 64 different values in 64 rows, too many for labels" in message
    assert "They look like several labels with '|' between them" in message
    assert '--task multi-label --label-separator "|"' in message


def test_columns_of_0_and_1_are_labels_from_check_to_predict(bert, tmp_path, capsys):
    rows = (("free prize call now", "1,0"), ("see you at lunch", "0,0"), ("you drug", "1,1"))
    file = table(tmp_path / "rows.csv", "text,toxic,insult", *rows, times=6)
    columns = ["--label", "toxic, Insult"]
    assert main(["check", file, *columns]) == 0
    shown = capsys.readouterr().out
    assert "task: multi-label; text column: 'text', a column for each label: 'toxic', 'ins" in shown
    assert "labels: 'toxic' 12, 'insult' 6\n" in shown
    out = str(tmp_path / "run")
    assert main(["train", file, *columns, "--out", out, "--model", bert, *TRAIN]) == 0
    assert "(2 labels: 'toxic', 'insult')" in capsys.readouterr().out
    assert main(["evaluate", out, file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"].keys() == {"toxic", "insult"}
    answers = tmp_path / "answers.jsonl"
    command = ["predict", out, file, "--out", str(answers), "--probabilities"]
    assert main(command) == 0
    first = json.loads(answers.read_text().splitlines()[0])
    assert first["toxic"] == "1"
    assert {"labels", "probability_toxic", "probability_insult"} <= first.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "toxic,rude"], "has no column 'rude'"),
        (["--label", "toxic,insult", "--task", "pair"], "cannot be used with --task pair"),
        (["--label", "toxic,insult", "--label-names", "0=no"], "rename it with --map NEW=OLD"),
        (
            ["--label", "toxic,insult", "--label-separator", ","],
            "a column of its own; leave separator out",
        ),
        (
            ["--label", "toxic", "--task", "classification", "--label-separator", ","],
            "--label-separator cannot be used with --task classification",
        ),
        (["--label", "toxic", "--task", "regression", "--label-names", "0=a"], "is for labels"),
    ],
)
def test_options_that_exclude_each_other_are_one_sentence(options, message, tmp_path, capsys):
    file = table(tmp_path / "rows.csv", "text,toxic,insult", ("a text", "1,0"), ("b text", "0,1"))
    assert main(["check", file, *options]) == 1
    assert message in capsys.readouterr().err

"""`--columns` and `--split`: how the commands read their rows; `--overwrite`: what they replace."""

import json

import datasets
import pytest

from peftcls.cli import main
from peftcls.data import reading
from peftcls.data.scratch import scratch_folder


def headless(path):
    words = {"ham": "see you at lunch number", "spam": "win a free prize number"}
    lines = [f"{label}\t{text} {n}" for n in range(20) for label, text in words.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


TRAIN = ("--max-length", "16", "--epochs", "1", "--batch-size", "16")


def test_a_file_without_a_header_is_trained_on_answered_and_scored(tmp_path, capsys):
    file = headless(tmp_path / "rows.tsv")
    out = str(tmp_path / "run")
    columns = ("--columns", "label, text")
    assert main(["check", file, *columns]) == 0
    assert "40 rows of train" in capsys.readouterr().out
    assert main(["train", file, "--out", out, *columns, *TRAIN]) == 0
    answers = tmp_path / "answers.jsonl"
    assert main(["predict", out, file, "--out", str(answers), *columns]) == 0
    assert len(answers.read_text().splitlines()) == 40
    assert main(["evaluate", out, file, *columns]) == 0


def test_a_column_with_spaces_in_its_name_can_be_mapped(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text(" text , label \n" + "see you at noon,ham\nwin a prize,spam\n" * 10)
    columns = ("--map", "text= text ", "--map", "label= label ")
    assert main(["check", str(file), *columns]) == 0
    assert "text column: 'text', label column: 'label'" in capsys.readouterr().out


def test_an_adapter_is_replaced_only_where_that_is_said(tmp_path, capsys):
    file = headless(tmp_path / "rows.tsv")
    command = ["train", file, "--columns", "label,text", "--out", str(tmp_path / "run"), *TRAIN]
    assert main(command) == 0
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(command) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path / 'run'} holds an adapter already, saved on 20" in message
    assert "or replace it with --overwrite" in message
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before
    assert main([*command, "--dry-run"]) == 0
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.parametrize("options", [[], ["--split", "train"]])
def test_of_several_splits_of_a_data_set_the_one_that_is_meant_is_read(
    options, monkeypatch, capsys
):
    rows = [{"text": f"message {n} about the boat", "label": ["a", "b"][n % 2]} for n in range(8)]
    whole = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:2])
    )

    def load_dataset(name, split=None):
        assert name == "somebody/messages"
        return whole if split is None else whole[split]

    monkeypatch.setattr(reading.datasets, "load_dataset", load_dataset)
    code = main(["check", "somebody/messages", *options])
    shown = capsys.readouterr()
    assert code == 0
    assert "8 rows of train" in shown.out
    assert main(["check", "somebody/messages", *options, "--test", "somebody/messages"]) == 0
    assert "8 rows of train, 2 rows of test" in capsys.readouterr().out


def test_a_data_set_without_the_split_that_is_meant_is_refused(monkeypatch, capsys, tmp_path):
    rows = datasets.Dataset.from_list([{"text": "a boat", "label": "a"}])
    splits = datasets.DatasetDict(first=rows, second=rows)
    monkeypatch.setattr(reading.datasets, "load_dataset", lambda name, split=None: splits)
    assert main(["train", "somebody/messages", "--out", str(tmp_path / "run")]) == 1
    sentence = "has the splits ['first', 'second']; choose one, such as --split first."
    assert sentence in capsys.readouterr().err


def test_the_copies_of_a_command_are_gone_when_it_ends(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"message {n} about the boat", "label": "ab"[n % 2]} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = scratch_folder()
    assert main(["check", str(file)]) == 0
    assert not folder.exists()
    # Another one begins with no copy of this one, and ends as well.
    assert main(["check", str(file)]) == 0
    assert not folder.exists()


def test_long_answers_are_trained_on_where_room_is_asked_for(tmp_path, capsys):
    rows = [
        {"instruction": f"Tell me about boat {n}.", "output": "The boat is on the lake. " * 20}
        for n in range(12)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", str(file), "--out", str(tmp_path / "run"), "--epochs", "1", "--dry-run"]
    assert main(command) == 1
    assert "shorten it or raise --max-new-tokens" in capsys.readouterr().err
    assert main([*command, "--max-new-tokens", "256"]) == 0
    messages = ["train", headless(tmp_path / "rows.tsv"), "--columns", "label,text", *command[2:]]
    assert main([*messages, "--max-new-tokens", "256"]) == 1
    message = capsys.readouterr().err
    assert "--max-new-tokens cannot be used with --task classification" in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for `text` and the labels ham and spam."""
    path = tmp_path_factory.mktemp("mapped")
    out = str(path / "run")
    assert (
        main(
            ["train", headless(path / "rows.tsv"), "--columns", "label,text", "--out", out, *TRAIN]
        )
        == 0
    )
    return out


def test_columns_and_labels_of_other_names_are_answered_and_scored(folder, tmp_path, capsys):
    rows = [
        {"body": "win a free prize", "kind": 1, "id": "a"},
        {"body": "see you at lunch", "kind": 0, "id": "b"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "answers.jsonl"
    assert main(["predict", folder, str(file), "--out", str(out), "--map", "text=body"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    # The columns of the file keep their names.
    assert [{name: row[name] for name in rows[0]} for row in answers] == rows
    assert "text" not in answers[0]
    assert {row["label"] for row in answers} <= {"ham", "spam"}
    capsys.readouterr()
    mapped = ["--map", "text=body", "--map", "label=kind"]
    command = ["evaluate", folder, str(file), *mapped]
    assert main([*command, "--label-names", "0=ham,1=spam", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"].keys() == {"ham", "spam"}
    assert main(command) == 1
    assert "'1'" in capsys.readouterr().err
    names = ["--label-names", "0=ham,1=spam"]
    assert main(["compare", folder, folder, str(file), *mapped, *names]) == 0


def test_messages_stay_out_of_what_another_program_reads(folder, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nwin a prize,spam\nsee you,ham\n", encoding="utf-16")
    for command in (["evaluate", folder, str(file)], ["check", str(file)]):
        capsys.readouterr()
        main([*command, "--json"])
        said = capsys.readouterr()
        assert json.loads(said.out)
        assert "it was read as UTF-16" in said.err
    main(["check", str(file)])
    assert "it was read as UTF-16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "text=kind"], "has no column 'kind', which is to be read as 'text'"),
        (["--map", "text=label"], "has a column 'text' already, so 'label' cannot be read as it"),
        (["--map", "text"], "expected two names with = between them, found 'text'"),
        (["--label-names", "0=ham"], "has none of the labels ['0'] in column 'label'; it has"),
        (["--label-names", "0"], "--label-names 0=ham,1=spam: expected two names"),
    ],
)
def test_a_wrong_name_is_one_sentence(folder, tmp_path, options, message, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "win a prize", "label": "spam"}', encoding="utf-8")
    assert main(["evaluate", folder, str(file), *options]) == 1
    assert message in capsys.readouterr().err

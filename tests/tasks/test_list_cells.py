"""Cells that hold several labels or keywords, as one list or written in a text file."""

import csv
import json

import pytest

from peftcls import Classification, Instruction, RowError, check_rows, load_base, read_rows
from peftcls.tasks.list_cells import in_reading_order, joined, keywords_of, listed_cell


@pytest.mark.parametrize(
    ("cell", "entries"),
    [
        (["a", "b"], ["a", "b"]),
        ("a;b", ["a", "b"]),
        ('["a", "b;c"]', ["a", "b;c"]),
        ("['a', 'b']", ["a", "b"]),
        ("('a', 'b;c')", ["a", "b;c"]),
        ("{'b', 'a', 'c'}", ["b", "a", "c"]),
        ("['a' 'b;c']", ["a", "b;c"]),
        ("['it\\'s'\n \"so 'called'\"]", ["it's", "so 'called'"]),
        ("(a)", ["(a)"]),
        ("(1)", ["(1)"]),
        ("{'a': 1}", ["{'a': 1}"]),
        ('{"a": 1}', ['{"a": 1}']),
        ("[]", []),
        ('["a", null]', ["a", None]),
        ("[see page 3]", ["[see page 3]"]),
        ('[["a"]]', ['[["a"]]']),
        ("[a; b]", ["[a", " b]"]),
        (7, ["7"]),
    ],
)
def test_a_cell_is_read_as_the_list_that_it_is(cell, entries):
    assert listed_cell(cell, ";") == entries


@pytest.mark.parametrize("form", [json.dumps, str, ";".join], ids=["json", "python", "semicolons"])
def test_labels_of_a_csv_file_are_those_of_the_lists(form, tmp_path):
    lists = [["ham"], ["spam"], ["ham", "short"]] * 4
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"message {n}", form(labels)] for n, labels in enumerate(lists))
    rows = read_rows(tmp_path / "rows.csv")
    task = Classification(multi_label=True).learn(rows)
    assert task.labels == ("ham", "short", "spam")
    assert [task.gold_of(row) for row in rows] == [tuple(labels) for labels in lists]


def test_a_list_of_one_label_is_that_label():
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y"]}]
    assert Classification().learn(rows).labels == ("x", "y")
    with pytest.raises(RowError, match="expected one label"):
        Classification().learn([{"text": "a", "label": ["x", "y"]}])


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_row_that_nobody_labelled_is_no_row_without_labels(blank):
    task = Classification(multi_label=True, labels=("x", "y"))
    check_rows(task, [{"text": "a", "label": "[]"}, {"text": "b", "label": "x"}])
    with pytest.raises(RowError, match=r"row 1 of rows has nothing in column 'label'; write an em"):
        check_rows(task, [{"text": "a", "label": blank}, {"text": "b", "label": "x"}])


def test_labels_that_only_differ_in_how_an_accent_is_written_are_one_label():
    rows = [{"text": "a", "label": "caf\u00e9"}, {"text": "b", "label": "cafe\u0301"}]
    rows.append({"text": "c", "label": "bar"})
    assert Classification().learn(rows).labels == ("bar", "caf\u00e9")


def test_keywords_of_a_csv_file_are_those_of_the_list():
    task = Instruction(template="{input}\n", input="text", output="keywords", separator=";")
    for cell in (["boat", "red sail"], '["boat", "red sail"]', "boat; red sail"):
        assert task.gold_of({"text": "a", "keywords": cell}) == ("boat", "red sail")


def test_a_written_list_is_learnt_as_the_list(llama):
    task = Instruction(template="{input}\n", input="text", output="keywords", separator=";")
    _, tokenizer = load_base(llama, task)
    features = [
        task.encode({"text": "a", "keywords": cell}, tokenizer, with_target=True)
        for cell in (["boat", "red sail"], '["boat", "red sail"]', "boat; red sail")
    ]
    assert features[0] == features[1] == features[2]


# Instructions


def test_an_instruction_may_say_all_that_is_to_be_done():
    template = "{instruction}\n{input}\nAnswer: "
    task = Instruction(template=template, input="input", output="output")
    for empty in ("", None):
        check_rows(task, [{"instruction": "name a colour", "input": empty, "output": "red"}])
    with pytest.raises(RowError, match="has no text"):
        check_rows(task, [{"instruction": " ", "input": "", "output": "red"}])
    alone = Instruction(template="{title} {input}\n", input="input", output="output")
    with pytest.raises(RowError, match="has no text in column 'input'"):
        check_rows(alone, [{"title": "a title", "input": "", "output": "red"}])


def test_no_room_is_kept_free_beside_an_answer_that_is_there(llama):
    row = {"input": "the patient was given a new drug and recovered", "output": "drug"}
    task = Instruction(template="{input}\nAnswer: ", max_length=40, max_new_tokens=32)
    _, tokenizer = load_base(llama, task)
    feature = task.encode(row, tokenizer, with_target=True)
    assert not feature["shortened"]
    assert len(feature["input_ids"]) <= 40
    asked = task.encode(row, tokenizer, with_target=False)
    assert asked["shortened"]
    long = {**row, "input": row["input"] * 20}
    assert len(task.encode(long, tokenizer, with_target=True)["input_ids"]) == 40


@pytest.mark.parametrize(
    ("cell", "keywords"),
    [
        ("red sail; boat.", ("red sail", "boat")),
        ("red sail; boat .", ("red sail", "boat")),
        ("boat.", ("boat",)),
        ("boat; boat.", ("boat",)),
        ("boat; U.S.", ("boat", "U.S.")),
        ("boat; .", ("boat", ".")),
        (["red sail", "boat."], ("red sail", "boat.")),
    ],
    ids=["last", "spaced", "alone", "twice", "abbreviation", "only-a-stop", "a-list"],
)
def test_a_full_stop_closes_a_written_list(cell, keywords):
    assert keywords_of(cell, ";") == keywords


@pytest.mark.parametrize("separator", [";", "; ", "|", "\n"])
def test_joined_entries_are_read_again(separator):
    assert keywords_of(joined(["red sail", "boat"], separator), separator) == ("red sail", "boat")


def test_keywords_are_learnt_in_the_order_in_which_the_text_has_them():
    keywords = ["sea", "red sail", "harbour", "Boat"]
    text = "A boat with a red sail, out on the sea"
    assert in_reading_order(keywords, text) == ["Boat", "red sail", "sea", "harbour"]
    assert in_reading_order(["b", "a"], "nothing of it") == ["b", "a"]

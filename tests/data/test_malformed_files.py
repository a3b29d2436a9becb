"""Malformed files, rows and settings: each gives one sentence, and no other kind of exception."""

import inspect
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import peftcls
from peftcls import (
    Classification,
    Decisions,
    ExtractiveQA,
    Instruction,
    Regression,
    RowError,
    read_rows,
)
from peftcls.data.reading import as_dataset


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def squad(*paragraphs: Any) -> str:
    return json.dumps({"data": [{"title": "T", "paragraphs": list(paragraphs)}]})


def asked(**parts: Any) -> str:
    return squad(
        {
            "context": "c",
            "qas": [
                {
                    "id": "1",
                    "question": "q?",
                    "answers": [{"text": "c", "answer_start": 0}],
                    **parts,
                }
            ],
        }
    )


UTF8 = "which is not UTF-8; save the file as UTF-8 or pass its encoding"
FORM = "article 1, paragraph 1, question 1 of t.json is not in the SQuAD form"
FILES: list[tuple[str, str | bytes, str]] = [
    (
        "t.csv",
        b"\xef\xbb\xbf\xef\xbb\xbftext\nx\n",
        "t.csv has a column name with a NUL character or a byte order mark in it",
    ),
    ("t.csv", b"t\x00ext\nx\n", "t.csv has a column name with a NUL character"),
    ("t.csv", b"\xff\xfe\x00\x00t\x00\x00\x00", "t.csv has no rows"),
    ("t.csv", b"\x00\x00\xfe\xff\x00\x00\x00t", "t.csv has no rows"),
    ("t.csv", b"\x1f\x8b\x08\x00", "t.csv is compressed and damaged, or not complete"),
    (
        "t.jsonl",
        b"PK\x03\x04\x14\x00",
        "t.jsonl is a workbook or an archive, expected text; save the table as CSV in UTF-8.",
    ),
    ("t.csv", b"text\nok\n\xc3", f"line 3 of t.csv has the byte 0xc3, {UTF8}"),
    ("t.csv", b"text\n\xed\xa0\x80\n", f"line 2 of t.csv has the byte 0xed, {UTF8}"),
    ("t.csv", b"text\n\xc0\xaf\n", f"line 2 of t.csv has the byte 0xc0, {UTF8}"),
    (
        "t.csv",
        "text\n" + "x" * (16 * 1024 * 1024 + 1),
        "line 2 of t.csv is not valid csv: field larger than field limit",
    ),
    ("t.csv", "a,b,a\n1,2,3\n", "t.csv has the column 'a' 2 times"),
    ("t.csv", "a,b\n1,2\n3\n4,5\n", "row 2 of t.csv (line 3) has 1 field, expected 2 (a, b)"),
    ("t.csv", 'a,b\n"1\n2",3,4\n', "row 1 of t.csv (line 3) has 3 fields, expected 2"),
    ("t.csv", 'a\n"x"y\n', "line 2 of t.csv is not valid csv"),
    ("t.tsv", b"\xff\xfea\x00", "t.tsv has no rows"),
    ("t.tsv", b"a\n\xff\n", f"line 2 of t.tsv has the byte 0xff, {UTF8}"),
    ("t.tsv", "a\ta\n1\t2\n", "t.tsv has the column 'a' 2 times"),
    ("t.tsv", "a\tb\n1\n", "row 1 of t.tsv (line 2) has 1 field, expected 2"),
    ("t.json", "", "t.json is not JSON: Expecting value in line 1"),
    ("t.json", "nul", "t.json is not JSON: Expecting value in line 1"),
    ("t.json", b"\xff", f"line 1 of t.json has the byte 0xff, {UTF8}"),
    ("t.json", '{"data": 5}', "t.json is a number, expected a list of objects"),
    (
        "t.json",
        '{"data": {"a": 1}}',
        "t.json is an object with the keys ['a'], expected a list of objects",
    ),
    ("t.json", "[[1]]", "t.json is a list, expected a list of objects"),
    ("t.json", '[{"a": 1}, 5]', "t.json is a list, expected a list of objects"),
    ("t.json", '[{"a": 1, "a": 2}]', "t.json is not JSON: an object has 'a' twice"),
    (
        "t.json",
        '[{"a": Infinity}, {"a": "x"}]',
        "row 2 of t.json has text in column 'a', where row 1 has a number",
    ),
    (
        "t.json",
        '[{"a": {"b": 1}}, {"a": {"b": "x"}}]',
        "row 2 of t.json has text in column 'a', where row 1 has a number",
    ),
    ("t.json", '[{"a": [1, "x"]}]', "row 1 of t.json has text in column 'a'"),
    ("t.json", '[{"a": [[1], 2]}]', "row 1 of t.json has a number in column 'a'"),
    ("t.json", '[{"a\\u0000": 1}]', "t.json has a column name with a NUL character"),
    (
        "t.json",
        '[{"a": "\\udc80"}]',
        "row 1 of t.json has half of a surrogate pair, which is not a character in column 'a'",
    ),
    ("t.json", '[{"a": ["\\ud83d"]}]', "row 1 of t.json has half of a surrogate pair"),
    ("t.json", '[{"a": {"\\ud83d": 1}}]', "row 1 of t.json has half of a surrogate pair"),
    (
        "t.json",
        '[{"a": -9223372036854775809}]',
        "row 1 of t.json has a number of more than 64 bits in column 'a'",
    ),
    (
        "t.json",
        f'[{{"a": {"[" * 500}1{"]" * 500}}}]',
        "row 1 of t.json has more than 32 levels of lists or objects in column 'a'",
    ),
    (
        "t.json",
        f'[{{"a": {json.dumps([{"b": 1}])[:-1]}, {"[" * 40}{"]" * 40}]}}]',
        "row 1 of t.json has",
    ),
    ("t.json", f'[{{"a": {"[" * 9000}{"]" * 9000}}}]', "t.json"),
    (
        "t.jsonl",
        '{"a": 1}\n{"a": 1, "a": 2}\n',
        "row 2 of t.jsonl (line 2) is not JSON: an object has 'a' twice",
    ),
    (
        "t.jsonl",
        '{"a": 1},\n{"a": 2}\n',
        "row 1 of t.jsonl (line 1) is not JSON: Extra data at character 9",
    ),
    ("t.jsonl", '{"a": 1}{"a": 2}\n', "row 1 of t.jsonl (line 1) is not JSON: Extra data"),
    ("t.jsonl", "{'a': 1}\n", "row 1 of t.jsonl (line 1) is not JSON"),
    ("t.jsonl", '[{"a": 1}]\n', "row 1 of t.jsonl (line 1) is a list, expected an object"),
    ("t.jsonl", '{"a": 1}\n\0\n', "row 2 of t.jsonl (line 2) is not JSON"),
    (
        "t.jsonl",
        '\ufeff\ufeff{"a": 1}\n',
        "row 1 of t.jsonl (line 1) is not JSON: Unexpected UTF-8 BOM",
    ),
    ("t.jsonl", '{"a": 1}\n{"a": "x', "row 2 of t.jsonl (line 2) is not JSON: Unterminated string"),
    ("t.jsonl", '{"a": tru}\n', "row 1 of t.jsonl (line 1) is not JSON"),
    (
        "t.json",
        squad({"context": "c", "questions": [{"id": "1"}]}),
        "article 1, paragraph 1 of t.json is not in the SQuAD form (no 'qas', but 'questions')",
    ),
    (
        "t.json",
        squad({"context": "c", "qas": []}, {"context": "c", "QAs": []}),
        "article 1, paragraph 2 of t.json is not in the SQuAD form (no 'qas', but 'QAs')",
    ),
    (
        "t.json",
        squad({"text": "c", "qas": [{"id": "1", "question": "q?"}]}),
        f"{FORM} (no 'context')",
    ),
    (
        "t.json",
        squad({"context": "c", "qas": [{"id": "1", "question": "q?", "answer": {"text": "c"}}]}),
        f"{FORM} (no 'answers', but 'answer')",
    ),
    (
        "t.json",
        squad({"context": "c", "qas": [{"id": "1", "question": "q?", "spans": []}]}),
        f"{FORM} (no 'answers', but 'spans')",
    ),
    (
        "t.json",
        squad({"context": "c", "qas": [{"question": "q?", "answers": []}]}),
        f"{FORM} (no 'id')",
    ),
    (
        "t.json",
        squad({"context": "c", "qas": [{"id": "1", "Question": "q?", "answers": []}]}),
        f"{FORM} (no 'question')",
    ),
    (
        "t.json",
        squad({"context": None, "qas": [{"id": "1", "question": "q?"}]}),
        f"{FORM} ('context' is None, not a text)",
    ),
    (
        "t.json",
        squad({"context": ["c"], "qas": [{"id": "1", "question": "q?"}]}),
        f"{FORM} ('context' is a list, not a text)",
    ),
    ("t.json", asked(question=5), f"{FORM} ('question' is a number, not a text)"),
    (
        "t.json",
        asked(is_impossible=True),
        f"{FORM} (is_impossible is true and there are 1 answers)",
    ),
    (
        "t.json",
        asked(is_impossible=False, answers=[]),
        f"{FORM} (is_impossible is false and there are 0 answers)",
    ),
    (
        "t.json",
        asked(is_impossible="true"),
        f"{FORM} (is_impossible is 'true', neither true nor false)",
    ),
    ("t.json", asked(answers=["c"]), f"{FORM} ('answers' has a text in it, not an object)"),
    ("t.json", asked(answers="Bring"), f"{FORM} ('answers' is a text, not a list)"),
    (
        "t.json",
        asked(answers={"text": ["c"], "answer_start": [0]}),
        f"{FORM} ('answers' is an object, not a list)",
    ),
    (
        "t.json",
        squad({"context": "c", "qas": {"id": "1"}}),
        "article 1, paragraph 1 of t.json is not in the SQuAD form ('qas' is an object, "
        "not a list)",
    ),
    (
        "t.json",
        asked(answers=[{"text": "c", "answer_start": "?"}]),
        f"{FORM} (the answer_start '?' is not a number of characters)",
    ),
    (
        "t.json",
        asked(answers=[{"text": 5, "answer_start": 0}]),
        f"{FORM} ('text' is a number, not a text)",
    ),
    (
        "t.json",
        asked(answers=[{"text": "", "answer_start": 0}]),
        f"{FORM} (the question '1' has an answer without a text; where there is "
        "no answer, answers is an empty list)",
    ),
    (
        "t.json",
        asked(answers=[{"text": "c", "answer_start": 0}, {"text": " \n", "answer_start": 0}]),
        f"{FORM} (the question '1' has an answer",
    ),
    (
        "t.json",
        asked(answers=[{"text": "c", "answer_start": 1.5}]),
        f"{FORM} (the answer_start 1.5 is not a number of characters)",
    ),
    (
        "t.json",
        asked(answers=[{"text": "c", "answer_start": True}]),
        f"{FORM} (the answer_start True is not a number of characters)",
    ),
    (
        "t.json",
        asked(answers=[{"text": "c", "answer_start": None}]),
        f"{FORM} (the answer_start None is not a number of characters)",
    ),
    (
        "t.json",
        asked(answers=[{"text": "c", "answer_start": 10**30}]),
        "row 1 of t.json has a number of more than 64 bits in column 'answers'",
    ),
    (
        "t.json",
        json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": []}]}, {"Paragraphs": []}]}),
        "article 2 of t.json|article 1",
    ),
    (
        "t.json",
        squad("text"),
        "article 1 of t.json is not in the SQuAD form ('paragraphs' has a text in it, "
        "not an object)",
    ),
    (
        "t.json",
        squad(None),
        "article 1 of t.json is not in the SQuAD form ('paragraphs' has None in it, not an object)",
    ),
    (
        "t.json",
        '[{"paragraphs": {"a": 1}}]',
        "article 1 of t.json is not in the SQuAD form ('paragraphs' is an object, not a list)",
    ),
    (
        "t.json",
        '[{"paragraphs": null}]',
        "article 1 of t.json is not in the SQuAD form ('paragraphs' is None, not a list)",
    ),
]


@pytest.mark.parametrize(("name", "content", "sentence"), FILES)
def test_a_malformed_file_is_reported_with_its_place(write, name, content, sentence):
    with pytest.raises(RowError) as told:
        read_rows(write(name, content))
    assert any(str(told.value).startswith(part) for part in sentence.split("|"))
    assert "\n" not in str(told.value)


def test_what_is_odd_in_a_squad_file_and_means_nothing_bad_is_read(write):
    plausible = {
        "id": "1",
        "question": "q?",
        "answers": [],
        "is_impossible": True,
        "plausible_answers": [{"text": "c", "answer_start": 0}],
    }
    rows = read_rows(
        write(
            "t.json",
            squad(
                {"context": "nobody asks", "comment": "x"},
                {"context": "c", "qas": [plausible, {"id": 2, "question": "q?"}]},
            ),
        )
    )
    assert [(row["id"], row["answers"]) for row in rows] == [
        ("1", {"text": [], "answer_start": []}),
        ("2", None),
    ]


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def written(path: Path) -> None:
        pq.write_table(pa.table({"a": ["x" * 50] * 20}), path)
        path.write_bytes(change(path.read_bytes()))

    return written


PARQUET: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no columns": (lambda p: pq.write_table(pa.table({}), p), "t.parquet has no rows"),
    "no rows": (
        lambda p: pq.write_table(pa.table({"a": pa.array([], pa.string())}), p),
        "t.parquet has no rows",
    ),
    "a column twice": (
        lambda p: pq.write_table(
            pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), p
        ),
        "t.parquet has the column 'a' 2 times; name each once.",
    ),
    "a map": (
        lambda p: pq.write_table(
            pa.table({"a": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))}), p
        ),
        "t.parquet is not a parquet file that can be read: Arrow type map",
    ),
    "cut": (
        damaged(lambda b: b[:-20]),
        "t.parquet is not a parquet file that can be read: Parquet magic bytes not found",
    ),
    "a footer of gigabytes": (
        damaged(lambda b: b[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"),
        "t.parquet is not a parquet file that can be read",
    ),
    "magic alone": (
        damaged(lambda b: b"PAR1" + bytes(20) + b"PAR1"),
        "t.parquet is not a parquet file that can be read",
    ),
    "a csv": (
        lambda p: p.write_text("a,b\n1,2\n"),
        "t.parquet is not a parquet file that can be read",
    ),
}


@pytest.mark.parametrize("name", PARQUET)
def test_a_malformed_parquet_file_is_reported(tmp_path, name):
    make, sentence = PARQUET[name]
    make(tmp_path / "t.parquet")
    with pytest.raises(RowError) as told:
        read_rows(tmp_path / "t.parquet")
    assert str(told.value).startswith(sentence)
    assert "\n" not in str(told.value)


# Rows that are a table and make no sense to a task


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "rows",
    [
        [{1: "x"}],
        [{None: "x"}],
        [{("a",): 1}],
        [{"a": object()}],
        [{"a": nested(300)}],
        [{"a": 10**30}],
        [{"a": "\ud800"}],
        [{"a": 1}, {"a": "x"}],
        [{"a": [1]}, {"a": {"b": 1}}],
        [{"a": 1 + 2j}],
        None,
        5,
        "text",
        {"a": 1},
        [],
        [None],
    ],
)
def test_a_list_that_is_not_a_table_is_a_row_error(rows):
    with pytest.raises(
        RowError,
        match=r"^mine cannot be made into a table: |^mine has no rows\.$|"
        r"^mine: expected a table .* or a list of mappings",
    ):
        as_dataset(rows, "mine")


DEEP = '{"a":' * 100_000
ROWS: list[tuple[Any, dict, str]] = [
    (Classification(), {"text": None, "label": "a"}, "has no text in column 'text'"),
    (Classification(), {"text": 5, "label": "a"}, "has no text in column 'text'"),
    (Classification(), {"text": ["a"], "label": "a"}, "has no text in column 'text'"),
    (Classification(), {"text": b"a", "label": "a"}, "has no text in column 'text'"),
    (Classification(), {"text": "x", "label": float("nan")}, "has no label in column 'label'"),
    (
        Classification(),
        {"text": "x", "label": ["a", "b"]},
        "has the labels ['a', 'b'], expected one label",
    ),
    (Classification(), {"text": "x", "label": {"a": "1"}}, "has the share '1' for the label 'a'"),
    (Classification(), {"text": "x", "label": {"a": [1]}}, "has the share [1] for the label 'a'"),
    (Classification(), {"text": "x", "label": {"a": -1.0}}, "has the share -1.0 for the label 'a'"),
    (
        Classification(),
        {"text": "x", "label": '{"a": Infinity}'},
        "has the share inf for the label 'a'",
    ),
    (Classification(), {"text": "x", "label": {"a": 0.0}}, "has no label in column 'label'"),
    (
        Classification(labels=("a", "b")),
        {"text": "x", "label": DEEP + "}"},
        'has the label \'{"a":',
    ),
    (
        Classification(multi_label=True),
        {"text": "x", "label": ["a", None]},
        "has the labels ['a', None], expected labels without gaps",
    ),
    (
        Classification(multi_label=True),
        {"text": "x", "label": {"a": 2}},
        "has the share 2 for the label 'a'",
    ),
    (Regression(), {"text": "x", "score": None}, "has None in column 'score', expected a number"),
    (
        Regression(),
        {"text": "x", "score": float("inf")},
        "has inf in column 'score', expected a number",
    ),
    (Regression(), {"text": "x", "score": "nan"}, "has 'nan' in column 'score', expected a number"),
    (
        Regression(),
        {"text": "x", "score": "1e999"},
        "has '1e999' in column 'score', expected a number",
    ),
    (Regression(), {"text": "x", "score": "1,5"}, "has '1,5' in column 'score', expected a number"),
    (Regression(), {"text": "x", "score": True}, "has True in column 'score', expected a number"),
    (Regression(), {"text": "x", "score": [1.0]}, "has [1.0] in column 'score', expected a number"),
    (
        Instruction(),
        {"instruction": " ", "input": None, "output": "o"},
        "has no text in column 'instruction'",
    ),
    (
        Instruction(),
        {"instruction": "i", "input": "x", "output": None},
        "has no answer in column 'output'",
    ),
    (
        Instruction(separator=";"),
        {"instruction": "i", "input": "x", "output": [True]},
        "has True in the list in column 'output', expected texts",
    ),
    (
        Instruction(separator=";"),
        {"instruction": "i", "input": "x", "output": [None]},
        "has no answer in column 'output' between its ';'",
    ),
    (
        Instruction(separator=";"),
        {"instruction": "i", "input": "x", "output": "; ;"},
        "has no answer in column 'output' between its ';'",
    ),
    (
        Instruction(labels=("a", "b")),
        {"instruction": "i", "input": "x", "output": ["a"]},
        "has ['a'] in column 'output', expected one label",
    ),
    (
        Instruction(),
        {"instruction": "i", "input": "x", "output": ["a"]},
        "has ['a'] in column 'output', expected a text; for several, set separator",
    ),
    (
        Instruction(separator=";"),
        {"instruction": "i", "input": "x", "output": {"a": 1}},
        "has {'a': 1} in column 'output', expected a text",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": "c", "answer_start": "0"}},
        "has the answer_start '0'",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": 0}},
        "has the answer_start 0 beside a list",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": 5}},
        "has the answer_start 5 beside a list",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0, 1]}},
        "has 1 answer texts and 2 answer_start",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": None},
        "has nothing in column 'answers'; give the answer, or an empty list",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": " "},
        "has nothing in column 'answers'; give the answer, or an empty list",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": ["c", " "], "answer_start": [0, 0]}},
        "has an answer without a text",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": "", "answer_start": 0}},
        "has an answer without a text",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": None, "answer_start": None}},
        "has the answers \"[{'text': None",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": 5},
        "has the answers '5', expected a text or objects",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": ["c"]},
        "has the answers \"['c']\", expected a text or objects",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": DEEP + "}"},
        'has the answer \'{"a":',
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": "off the text"},
        "has the answer 'off the text'; it occurs nowhere",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c c", "answers": {"text": ["c"], "answer_start": [1]}},
        "has the answer 'c' at character 1",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": "c", "answers": {"text": ["d"], "answer_start": [-9]}},
        "has the answer 'd' at character -9",
    ),
    (
        ExtractiveQA(),
        {"question": "", "context": "c", "answers": "c"},
        "has no text in column 'question'",
    ),
    (
        ExtractiveQA(),
        {"question": "q", "context": " ", "answers": "c"},
        "has no text in column 'context'",
    ),
]


@pytest.mark.parametrize(("task", "row", "sentence"), ROWS)
def test_a_row_that_makes_no_sense_to_its_task_is_reported(task, row, sentence):
    with pytest.raises(RowError) as told:
        peftcls.check_rows(task, as_dataset([row], "mine"))
    assert any(str(told.value).startswith(f"row 1 of mine {part}") for part in sentence.split("|"))


@pytest.mark.parametrize(
    ("task", "row", "sentence"), [case for case in ROWS if len(repr(case[1])) < 1000]
)
def test_the_same_row_is_an_error_of_an_examination(task, row, sentence):
    assert peftcls.examine_rows(task, [row, row]).errors


# Settings


SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (Classification, {"max_length": "12"}, "max_length='12': expected a whole number."),
    (Classification, {"max_length": 12.0}, "max_length=12.0: expected a whole number."),
    (Classification, {"max_length": True}, "max_length=True: expected a whole number."),
    (
        Classification,
        {"max_length": 10**30},
        "max_length=1000000000000000000000000000000: expected a whole number of less than 64 bits.",
    ),
    (Classification, {"text": 5}, "text=5: expected a text or 2 texts."),
    (Classification, {"text": ("a", 5)}, "text=('a', 5): expected a text or 2 texts."),
    (Classification, {"label": None}, "label=None: expected a text or several, each a text."),
    (Classification, {"labels": 5}, "labels=5: expected several, each a text or None."),
    (
        Classification,
        {"labels": [None, "a"]},
        "labels=[None, 'a']: expected several, each a text or None.",
    ),
    (Classification, {"label_smoothing": "0.1"}, "label_smoothing='0.1': expected a number."),
    (Classification, {"multi_label": 1}, "multi_label=1: expected True or False."),
    (Classification, {"loss": 0}, "loss=0: expected 'cross_entropy' or 'bce' or 'focal' or None."),
    (
        Classification,
        {"class_weight": 2.0},
        "class_weight=2.0: expected 'balanced' or a mapping or None.",
    ),
    (
        Classification,
        {"class_weight": {"a": "2"}},
        "class_weight has '2', expected numbers above 0.",
    ),
    (Classification, {"decisions": 5}, "decisions=5: expected Decisions(...)."),
    (Classification, {"decisions": {"a": 1, "b": 2}}, "Decisions has no ['a', 'b']"),
    (
        Classification,
        {"max_length": "12", "causal": None},
        "causal=None: expected True or False; max_length='12': expected a whole number.",
    ),
    (Regression, {"causal": "yes"}, "causal='yes': expected True or False."),
    (Regression, {"mean": "0"}, "mean='0': expected a number or None."),
    (Regression, {"target": ["a"]}, "target=['a']: expected a text."),
    (Instruction, {"template": None}, "template=None: expected a text."),
    (Instruction, {"template": b"{input}"}, "template=b'{input}': expected a text."),
    (Instruction, {"max_length": None}, "max_length=None: expected a whole number."),
    (Instruction, {"max_new_tokens": float("nan")}, "max_new_tokens=nan: expected a whole number."),
    (Instruction, {"separator": 5}, "separator=5: expected a text or None."),
    (Instruction, {"labels": {"a": 1}}, "labels={'a': 1}: expected several, each a text or None."),
    (Instruction, {"input": 5}, "input=5: expected a text."),
    (ExtractiveQA, {"stride": "128"}, "stride='128': expected a whole number."),
    (ExtractiveQA, {"n_best": 1.5}, "n_best=1.5: expected a whole number."),
    (ExtractiveQA, {"max_answer_tokens": None}, "max_answer_tokens=None: expected a whole number."),
    (ExtractiveQA, {"null_threshold": "0.5"}, "null_threshold='0.5': expected a number."),
    (ExtractiveQA, {"unanswerable": "yes"}, "unanswerable='yes': expected True or False or None."),
    (Decisions, {"temperature": "1"}, "temperature='1': expected a number."),
    (Decisions, {"thresholds": [0.5]}, "thresholds=[0.5]: expected a mapping or None."),
    (Decisions, {"thresholds": {"a": "x"}}, "the threshold 'x' for 'a'"),
    (read_rows, {"source": 5}, "source=5: expected a text or a path."),
    (read_rows, {"source": "t.csv", "encoding": 8}, "encoding=8: expected a text or None."),
    (
        read_rows,
        {"source": "t.csv", "columns": "ab"},
        "columns='ab': expected several, each a text or None.",
    ),
    (
        read_rows,
        {"source": "t.csv", "columns": [1]},
        "columns=[1]: expected the names of the columns, each a text.",
    ),
    (read_rows, {"source": "t.csv", "split": 0}, "split=0: expected a text or None."),
]


@pytest.mark.parametrize(("make", "given", "sentence"), SETTINGS)
def test_a_setting_of_the_wrong_kind_is_one_sentence(make, given, sentence):
    with pytest.raises(ValueError, match=r"expected|no") as told:
        make(**given)
    assert str(told.value).startswith(sentence)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rank": "8"}, "rank='8': expected a whole number."),
        ({"rank": 8.0}, "rank=8.0: expected a whole number."),
        ({"alpha": "16"}, "alpha='16': expected a number or None."),
        ({"dropout": None}, "dropout=None: expected a number."),
        (
            {"targets": 5},
            "targets=5: expected 'attention' or 'all-linear' or several, each a text or None.",
        ),
        ({"targets": [None]}, "targets=[None]: expected"),
        ({"layers": 1}, "layers=1: expected several, each a whole number or None."),
        ({"layers": ["1"]}, "layers=['1']: expected several, each a whole number or None."),
        ({"method": 5}, "method=5: expected 'lora' or 'lora+'"),
        ({"seed": "0"}, "seed='0': expected a whole number."),
        ({"rank": 0}, "rank=0, alpha=None, dropout=0.0: expected"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_no_adapter(bert, given, sentence):
    task = Classification(labels=("no", "yes"))
    model, _ = peftcls.load_base(bert, task)
    with pytest.raises(ValueError, match="expected") as told:
        peftcls.attach_lora(model, task, **given)
    assert str(told.value).startswith(sentence)


ODD = [
    "12",
    1.5,
    None,
    [],
    {},
    True,
    -1,
    0,
    float("nan"),
    float("inf"),
    b"x",
    ("a",),
    object(),
    10**30,
    ["a", "b", "c"],
    "",
    {"a": "b"},
    (1, 2),
    [None],
]


@pytest.mark.parametrize("make", [Classification, Regression, Instruction, ExtractiveQA, Decisions])
def test_no_setting_ends_in_another_error_than_a_value_error(make):
    for name in inspect.signature(make).parameters:
        for value in ODD:
            try:
                made = make(**{name: value})
            except ValueError as error:
                assert (
                    name in str(error)
                    or "threshold" in str(error)
                    or "decisions" in str(error).lower()
                ), (name, value)
            else:
                assert hash(repr(made)), "what was made can be shown"


# Any bytes, any values


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def table_bytes(path: Path) -> bytes:
    pq.write_table(pa.table({"text": ["x", "y"], "label": [1, None]}), path)
    return path.read_bytes()


@given(place=st.integers(0, 10_000), new=st.binary(min_size=0, max_size=6), cut=st.integers(0, 6))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_parquet_file_with_changed_bytes_is_a_table_or_a_row_error(fuzz_folder, place, new, cut):
    whole = table_bytes(fuzz_folder / "whole.parquet")
    at = place % len(whole)
    path = fuzz_folder / "any.parquet"
    path.write_bytes(whole[:at] + new + whole[at + cut :])
    outcome(path)


def outcome(path: Path) -> None:
    before = set(path.parent.iterdir())
    try:
        rows = read_rows(path)
        rows.to_list()
    except RowError as error:
        assert path.name in str(error), "the file is named"
    else:
        assert len(rows) > 0
    assert set(path.parent.iterdir()) == before, "nothing is written beside the file"


keys = st.sampled_from(
    [
        "context",
        "qas",
        "questions",
        "id",
        "question",
        "answers",
        "answer",
        "text",
        "answer_start",
        "is_impossible",
        "paragraphs",
        "title",
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
forms = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
answer_forms = st.fixed_dictionaries(
    {"text": st.just("c") | leaves, "answer_start": st.just(0) | leaves}
)
question_forms = st.fixed_dictionaries(
    {"id": st.just("1") | leaves, "question": st.just("q") | leaves},
    optional={
        "answers": st.lists(answer_forms, max_size=2) | forms,
        "is_impossible": leaves,
        "answer": forms,
    },
)
paragraph_forms = st.fixed_dictionaries(
    {"context": st.just("c") | leaves},
    optional={"qas": st.lists(question_forms, max_size=2) | forms, "q": forms},
)


@given(paragraphs=st.lists(paragraph_forms | forms, max_size=2))
@example(
    paragraphs=[
        {
            "context": "c",
            "qas": [
                {
                    "id": "1",
                    "question": "q",
                    "answers": [{"text": "c", "answer_start": float("inf")}],
                }
            ],
        }
    ]
)
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_anything_like_a_squad_file_is_a_table_or_a_row_error(fuzz_folder, paragraphs):
    path = fuzz_folder / "any.json"
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    outcome(path)


TASKS = [
    Classification(),
    Classification(labels=("a", "b")),
    Classification(multi_label=True),
    Regression(),
    ExtractiveQA(),
    Instruction(separator=";"),
    Instruction(labels=("a", "b")),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
@given(values=st.lists(st.lists(forms, min_size=3, max_size=3), min_size=1, max_size=3))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_values_are_learnt_checked_and_examined_or_a_row_error(task, values):
    columns = task.columns(with_target=True)
    rows = [dict(zip(columns, row, strict=False)) | {columns[-1]: row[-1]} for row in values]
    try:
        table = as_dataset(rows, "mine")
        peftcls.check_rows(task.learn(table), table, training=True)
    except RowError as error:
        assert "mine" in str(error) or "rows" in str(error)
        assert peftcls.examine_rows(task, rows).errors
    else:
        peftcls.examine_rows(task, rows)

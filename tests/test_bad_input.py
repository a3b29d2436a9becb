"""Bad input gives one sentence (what was expected, what was found, where); nothing is written."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import transformers
from conftest import SIZES, save_base, word_piece_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

import peftcls
from peftcls import Classification, Instruction, RowError, TrainConfig, read_rows
from peftcls.data.reading import as_dataset

GOOD = [
    {"text": "the patient recovered", "label": "yes"},
    {"text": "stock prices fell", "label": "no"},
]
TEMPLATE = "Text: {input}\nAnswer: "


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def exactly(sentence: str) -> str:
    return f"^{re.escape(sentence)}$"


# Files


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", "", "t.csv is empty: expected a line with the names of the columns."),
        ("t.tsv", "", "t.tsv is empty: expected a line with the names of the columns."),
        ("t.csv", "\n", "t.csv is empty: expected a line with the names of the columns."),
        ("t.csv", "text,label\n", "t.csv has no rows: expected at least one below the header."),
        ("t.tsv", "text\tlabel\n", "t.tsv has no rows: expected at least one below the header."),
        ("t.csv", "text,label\n\n\n", "t.csv has no rows: expected at least one below the header."),
        (
            "t.csv",
            "text;label\na;b\nc\n",
            "row 2 of t.csv (line 3) has 1 field, expected 2 (text, label); "
            "put quotes around a text that "
            "holds a separator.",
        ),
        ("t.csv", "sep=;\n", "t.csv is empty: expected a line with the names of the columns."),
        (
            "t.csv",
            b"PK\x03\x04\x14\x00\x06",
            "t.csv is a workbook or an archive, expected text; save the table as CSV in UTF-8.",
        ),
        (
            "t.csv",
            b"\xd0\xcf\x11\xe0\xa1\xb1",
            "t.csv is a workbook or an archive, expected text; save the table as CSV in UTF-8.",
        ),
        (
            "t.csv",
            "text,label,text\na,b,c\n",
            "t.csv has the column 'text' 2 times; name each once.",
        ),
        (
            "t.csv",
            "text,label\na,b\n\nc\n",
            "row 2 of t.csv (line 4) has 1 field, expected 2 (text, label); "
            "put quotes around a text that "
            "holds a separator.",
        ),
        (
            "t.csv",
            "text,label\na, b, c\n",
            "row 1 of t.csv (line 2) has 3 fields, expected 2 (text, label); "
            "put quotes around a text that "
            "holds a separator.",
        ),
        (
            "t.tsv",
            "text\tlabel\na\tb\tc\n",
            "row 1 of t.tsv (line 2) has 3 fields, expected 2 (text, label); "
            "put quotes around a text that "
            "holds a separator.",
        ),
        (
            "t.csv",
            'text,label\n"a "b" c",d\n',
            "line 2 of t.csv is not valid csv: ',' expected after '\"'. "
            'Inside quotes, write " as "".',
        ),
        (
            "t.csv",
            '[{"text": "a", "label": "b"}]',
            "t.csv looks like JSON and not like csv: give it a name that ends in .json, or in "
            ".jsonl for one row in a line.",
        ),
        (
            "t.csv",
            'text,label\n"a,b\n',
            "t.csv: the quoted field that starts in line 2 is never closed. "
            'Inside quotes, write " as "".',
        ),
        (
            "t.csv",
            'text,label\na,b\n\n"a,b\nc,d\ne,f\n',
            "t.csv: the quoted field that starts in line 4 is never closed. "
            'Inside quotes, write " as "".',
        ),
        (
            "t.csv",
            'text,label\na,b\n"a\nb","c\n\n',
            "t.csv: the quoted field that starts in line 4 is never closed. "
            'Inside quotes, write " as "".',
        ),
        (
            "t.csv",
            'text,label\na,"',
            "t.csv: the quoted field that starts in line 2 is never closed. "
            'Inside quotes, write " as "".',
        ),
        (
            "t.csv",
            'text,label\na,b\n"a\nb","c\n"d,e\n',
            "the row in lines 3 to 5 of t.csv is not valid csv: ',' expected after '\"'. "
            'Inside quotes, write " as "".',
        ),
        (
            "t.jsonl",
            '[\n  {"text": "a"}\n]\n',
            "row 1 of t.jsonl (line 1) begins a list of objects; give the file a name that ends in "
            ".json.",
        ),
        (
            "t.jsonl",
            '{"text": "a"}\n{"text": "b"\n',
            "row 2 of t.jsonl (line 2) is not JSON: Expecting ',' delimiter at character 13; "
            "expected one object per line.",
        ),
        (
            "t.csv",
            "text,label\na,b\ncafé,c\n".encode("latin-1"),
            "line 3 of t.csv has the byte 0xe9, which is not UTF-8; save the file as UTF-8 "
            "or pass its encoding, for example encoding='latin-1'.",
        ),
        (
            "t.jsonl",
            '{"text": "café"}'.encode("latin-1"),
            "line 1 of t.jsonl has the byte 0xe9, which is not UTF-8; save the file as UTF-8 or "
            "pass its encoding, for example encoding='latin-1'.",
        ),
        (
            "t.jsonl",
            '{"a": 1}\n\n{broken\n',
            "row 2 of t.jsonl (line 3) is not JSON: Expecting property name enclosed in double "
            "quotes at "
            "character 2; expected one object per line.",
        ),
        (
            "t.jsonl",
            '{"a": 1}\n[1]\n',
            'row 2 of t.jsonl (line 2) is a list, expected an object such as {"text": "..."}.',
        ),
        (
            "t.jsonl",
            '"x"\n',
            'row 1 of t.jsonl (line 1) is a text, expected an object such as {"text": "..."}.',
        ),
        (
            "t.jsonl",
            "5\n",
            'row 1 of t.jsonl (line 1) is a number, expected an object such as {"text": "..."}.',
        ),
        (
            "t.jsonl",
            "null\n",
            'row 1 of t.jsonl (line 1) is None, expected an object such as {"text": "..."}.',
        ),
        (
            "t.jsonl",
            '{"text": "x", "label": "1"}\n{"text": "y", "label": 1}\n',
            "row 2 of t.jsonl has a number in column 'label', where row 1 has text; "
            "use one type of value in a column.",
        ),
        (
            "t.json",
            '[{"label": null}, {"label": ["a"]}, {"label": "a"}]',
            "row 3 of t.json has text in column 'label', where row 2 has a list; "
            "use one type of value in a column.",
        ),
        (
            "t.jsonl",
            '{"label": true}\n{"label": 1}\n',
            "row 2 of t.jsonl has a number in column 'label', where row 1 has true or false; "
            "use one type of value in a column.",
        ),
        (
            "t.json",
            '{"a": 1}\n{"a": 2}',
            "t.json is not JSON: Extra data in line 2; if it holds one object per line, "
            "name it .jsonl.",
        ),
        (
            "t.json",
            '{"a": 1}',
            "t.json is an object with the keys ['a'], expected a list of objects or the SQuAD "
            "form.",
        ),
        ("t.json", "[1]", "t.json is a list, expected a list of objects or the SQuAD form."),
    ],
)
def test_a_bad_file_is_reported_in_one_sentence(write, name, content, sentence):
    with pytest.raises(RowError, match=exactly(sentence)):
        read_rows(write(name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", ""),
        ("t.jsonl", "\n"),
        ("t.json", "[]"),
        ("t.json", '{"data": []}'),
        ("t.json", '[{"paragraphs": []}]'),
    ],
)
def test_a_json_file_without_rows_is_reported(write, name, content):
    with pytest.raises(RowError, match=rf"^{re.escape(name)} has no rows: expected at least one"):
        read_rows(write(name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", "{}"),
        ("t.json", "[{}]"),
        ("t.jsonl", '{"a": 99999999999999999999999}'),
        ("t.jsonl", '{"a": "\\ud800"}'),
        ("t.jsonl", '{"\\ud800": 1}'),
        ("t.jsonl", "[" * 100_000),
        ("t.json", "[" * 100_000),
        ("t.jsonl", '{"a": ' + "9" * 5000 + "}"),
        ("t.json", "9" * 5000),
        ("t.jsonl", '{"a": 9007199254740993}\n{"a": 1.5}'),
        ("t.parquet", b""),
        ("t.parquet", b"no table at all"),
        ("t.csv", '""\n\n'),
        ("t.json", '[{"paragraphs": null}]'),
    ],
)
def test_an_odd_file_is_a_row_error_with_the_files_name(write, name, content):
    with pytest.raises(RowError, match=re.escape(name)):
        read_rows(write(name, content))


@pytest.mark.parametrize("encoding", ["nope", "hex", "base64"])
def test_an_unknown_encoding_is_reported(write, encoding):
    with pytest.raises(
        RowError,
        match=exactly(
            f"encoding='{encoding}' is not the name of an encoding; try 'utf-8', "
            f"'latin-1' or 'cp1252'."
        ),
    ):
        read_rows(write("t.csv", "text\nx\n"), encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "ascii"])
def test_a_file_in_another_encoding_than_the_given_one_is_reported(write, encoding):
    with pytest.raises(RowError, match=r"t\.csv"):
        read_rows(write("t.csv", "text,label\ncafé,y\n"), encoding=encoding)


FORMS = ".csv, .json, .jsonl, .ndjson, .parquet, .tsv, .xlsx"


def test_rows_from_a_pipe_are_refused_in_one_sentence():
    with pytest.raises(
        RowError,
        match=r"cannot read -: rows are not read from a pipe; expected a file ending in \.csv",
    ):
        read_rows("-")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(
        RowError,
        match=f"there is no file {re.escape(str(tmp_path / 'missing.csv'))}; check the path",
    ):
        read_rows(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("missing", "nothing there"),
        ("folder", "a folder"),
        ("folder.csv", "a folder"),
        ("t.ods", "a file of another kind"),
        ("t.txt", "a file of another kind"),
    ],
)
def test_a_path_that_cannot_be_read_is_reported_with_what_is_there(tmp_path, name, found):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "t.ods").write_text("x")
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(
        RowError,
        match=exactly(
            f"cannot read {tmp_path / name}: expected a file ending in {FORMS}, found {found}."
        ),
    ):
        read_rows(tmp_path / name)


def test_too_few_names_of_columns_are_reported(write):
    with pytest.raises(
        RowError, match=r"^row 1 of t\.csv \(line 1\) has 2 fields, expected 1 \(text\)"
    ):
        read_rows(write("t.csv", "a,b\n"), columns=["text"])


# Any bytes at all


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
pieces = st.lists(
    st.sampled_from(
        [
            '"',
            ",",
            "\t",
            "\n",
            "\r",
            "\0",
            "a",
            "é",
            "{",
            "}",
            "[",
            "]",
            ":",
            '"a"',
            "1",
            " ",
            "\\",
            "null",
            "\ufeff",
        ]
    ),
    max_size=25,
).map("".join)
contents = st.one_of(
    st.binary(max_size=40),
    pieces.map(str.encode),
    pieces.map(lambda text: text.encode("utf-16")),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(json_values, max_size=3).map(
        lambda values: "\n".join(map(json.dumps, values)).encode()
    ),
    st.lists(
        st.dictionaries(st.sampled_from(["a", "b", "data", "paragraphs"]), json_values, max_size=3),
        max_size=3,
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
@given(content=contents)
@example(content=b"a\n\0\n")
@example(content=b"\xff\xfe")
@example(content=b"\xef\xbb\xbf")
@example(content=b'"')
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_table_or_a_row_error(fuzz_folder, suffix, content):
    path = fuzz_folder / f"any{suffix}"
    path.write_bytes(content)
    try:
        rows = read_rows(path)
    except RowError as error:
        assert "any" in str(error), "the message names the file"
    else:
        assert isinstance(rows, datasets.Dataset)
        assert len(rows) > 0


# Training


def trainer_for(task, base: str, out: Path, **config):
    model, tokenizer = peftcls.load_base(base, task)
    return peftcls.Trainer(
        peftcls.attach_lora(model, task, rank=2),
        task,
        tokenizer,
        TrainConfig(out, epochs=1, **config),
    )


@pytest.fixture
def refused(tmp_path, bert, llama):
    """Train on rows that must be refused, and see that nothing was learnt or written."""

    def check(task, train, valid, sentence: str) -> None:
        out = tmp_path / "out"
        trainer = trainer_for(task, bert if isinstance(task, Classification) else llama, out)
        with pytest.raises(RowError, match=sentence):
            trainer.fit(train, valid)
        assert not out.exists() or not any(out.iterdir()), (
            "nothing is written for rows that are refused"
        )
        assert trainer.progress.step == 0, "no second is spent on rows that are refused"

    return check


CLASSIFIER = Classification(labels=("no", "yes"), max_length=32)
CHOOSER = Instruction(
    template=TEMPLATE,
    input="text",
    output="label",
    labels=("no", "yes"),
    max_length=64,
    max_new_tokens=8,
)
WRITER = Instruction(
    template=TEMPLATE, input="text", output="label", max_length=64, max_new_tokens=5
)
LONG = Instruction(
    template="{title}\nText: {input}\nAnswer: ",
    input="text",
    output="label",
    max_length=64,
    max_new_tokens=5,
)
BAD_ROWS = {
    "missing column": (
        CLASSIFIER,
        [{"text": "a"}],
        "row 1 of train_rows has no column 'label'; it has ['text']. Classification needs "
        "['text', 'label'].",
    ),
    "missing column of an instruction": (
        CHOOSER,
        [{"label": "no"}],
        "row 1 of train_rows has no column 'text'; it has ['label']. Instruction "
        "needs ['text', 'label'].",
    ),
    "empty text": (
        CLASSIFIER,
        [*GOOD, {"text": "", "label": "yes"}],
        "row 3 of train_rows has no text in column 'text'; fill it in or leave the row out.",
    ),
    "a text of spaces": (
        CLASSIFIER,
        [{"text": " \n", "label": "yes"}, *GOOD],
        "row 1 of train_rows has no text in column 'text'; fill it in or leave the row out.",
    ),
    "no text": (
        CHOOSER,
        [*GOOD, {"text": None, "label": "yes"}],
        "row 3 of train_rows has no text in column 'text'; fill it in or leave the row out.",
    ),
    "empty label": (
        CLASSIFIER,
        [*GOOD, {"text": "x", "label": ""}],
        "row 3 of train_rows has no label in column 'label'; fill it in or leave the row out.",
    ),
    "a label of spaces": (
        CLASSIFIER,
        [*GOOD, {"text": "x", "label": " "}],
        "row 3 of train_rows has no label in column 'label'; fill it in or leave the row out.",
    ),
    "empty answer": (
        CHOOSER,
        [*GOOD, {"text": "x", "label": ""}],
        "row 3 of train_rows has no answer in column 'label'; fill it in or leave the row out.",
    ),
    "no label": (
        CLASSIFIER,
        [*GOOD, {"text": "x", "label": None}],
        "row 3 of train_rows has no label in column 'label'; fill it in or leave the row out.",
    ),
    "unknown label": (
        CLASSIFIER,
        [*GOOD, {"text": "x", "label": "Yes"}],
        "row 3 of train_rows has the label 'Yes', expected one of ['no', 'yes'].",
    ),
    "unknown answer": (
        CHOOSER,
        [*GOOD, {"text": "x", "label": "Yes"}],
        "row 3 of train_rows has the label 'Yes', expected one of ['no', 'yes'].",
    ),
    "one class": (
        CLASSIFIER,
        [GOOD[0]] * 3,
        "train_rows has only the label ['yes'] in column 'label'; "
        "a classifier needs at least two labels. When continuing from a folder, "
        "add old rows with with_replay.",
    ),
    "one answer": (
        CHOOSER,
        [GOOD[0]] * 3,
        "train_rows has only the label ['yes'] in column 'label'; "
        "a classifier needs at least two labels. When continuing from a folder, "
        "add old rows with with_replay.",
    ),
    "an answer longer than the limit": (
        WRITER,
        [*GOOD, {"text": "x", "label": "1 2 3 4 5 6"}],
        "row 3 of train_rows has an answer of 10 tokens in column 'label', expected at most 4; "
        "shorten it or "
        "raise max_new_tokens (now 5).",
    ),
    "several problems": (
        CLASSIFIER,
        [*GOOD, {"text": "", "label": "yes"}, {"text": "x", "label": "maybe"}],
        "row 3 of train_rows has no text in column 'text'; fill it in or leave the row out.\n"
        "row 4 of train_rows has the label 'maybe', expected one of ['no', 'yes'].",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_training_rows_are_reported_before_anything_is_written(refused, name):
    task, rows, sentence = BAD_ROWS[name]
    refused(task, rows, None, exactly(sentence))


@pytest.mark.parametrize(
    ("task", "row", "sentence"),
    [
        (
            CLASSIFIER,
            {"text": "x", "label": "maybe"},
            "row 3 of valid_rows has the label 'maybe', expected one of ['no', 'yes'].",
        ),
        (
            CHOOSER,
            {"text": "x", "label": "maybe"},
            "row 3 of valid_rows has the label 'maybe', expected one of ['no', 'yes'].",
        ),
        (
            CLASSIFIER,
            {"text": "", "label": "no"},
            "row 3 of valid_rows has no text in column 'text'; fill it in or leave the row out.",
        ),
        (
            CLASSIFIER,
            {"text": "x", "label": ""},
            "row 3 of valid_rows has no label in column 'label'; fill it in or leave the row out.",
        ),
    ],
)
def test_bad_validation_rows_are_reported_before_anything_is_written(refused, task, row, sentence):
    refused(task, GOOD, [*GOOD, row], exactly(sentence))


def test_validation_rows_without_a_column_are_reported_before_anything_is_written(refused):
    refused(
        CLASSIFIER,
        GOOD,
        [{"text": "x"}],
        exactly(
            "row 1 of valid_rows has no column 'label'; it has ['text']. "
            "Classification needs ['text', 'label']."
        ),
    )


def test_many_bad_rows_are_counted_and_the_first_five_shown(refused):
    bad = [{"text": "", "label": "yes"}] * 7
    lines = [
        f"row {n} of train_rows has no text in column 'text'; fill it in or leave the row out."
        for n in range(3, 8)
    ]
    refused(
        CLASSIFIER,
        [*GOOD, *bad],
        None,
        exactly("\n".join([*lines, "(2 more rows have such problems.)"])),
    )


def test_a_prompt_whose_fixed_part_is_too_long_is_reported(refused):
    rows = [{"title": "short", **GOOD[0]}, {"title": "1 " * 50, **GOOD[1]}]
    refused(
        LONG,
        rows,
        None,
        r"^row 2 of train_rows has a prompt of \d+ tokens without 'input', expected fewer than 59; "
        r"shorten its other "
        r"columns or raise max_length\.$",
    )


def test_a_validation_prompt_whose_fixed_part_is_too_long_is_reported_before_the_first_step(
    refused,
):
    rows = [{"title": "short", **row} for row in GOOD]
    refused(
        LONG,
        rows,
        [*rows, {"title": "1 " * 50, **GOOD[1]}],
        r"^row 3 of valid_rows has a prompt of \d+ tokens without 'input'",
    )


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "a", "label": 1}, {"text": "b", "label": "x"}],
        [{"text": "a", "label": "x"}, {"text": 5, "label": "y"}],
    ],
)
def test_a_list_of_rows_with_mixed_kinds_in_a_column_is_reported(refused, rows):
    refused(CLASSIFIER, rows, None, r"train_rows .*column")


def test_a_label_that_is_not_a_number_is_reported(refused):
    refused(
        Classification(labels=("0", "1"), max_length=32),
        [{"text": "a", "label": 0.0}, {"text": "b", "label": float("nan")}],
        None,
        "row 2 of train_rows",
    )


def test_a_score_that_the_task_does_not_have_is_reported_before_the_first_step(bert, tmp_path):
    trainer = trainer_for(CLASSIFIER, bert, tmp_path / "out", monitor="acuracy")
    with pytest.raises(ValueError, match=r"monitor='acuracy'"):
        trainer.fit(GOOD, GOOD)
    assert trainer.progress.step == 0
    assert not (tmp_path / "out").exists()


def test_nothing_to_train_is_reported(bert, tmp_path):
    model, tokenizer = peftcls.load_base(bert, CLASSIFIER)
    with pytest.raises(
        ValueError,
        match=exactly(
            "nothing of the model is trained; call attach_lora(model, task) or train_only(model, "
            "task, ...) "
            "first."
        ),
    ):
        peftcls.Trainer(model, CLASSIFIER, tokenizer, TrainConfig(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# Settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss": "mse"}, "loss='mse': expected 'cross_entropy', 'bce' or 'focal'."),
        (
            {"multi_label": True, "loss": "focal"},
            "loss='focal' with multi_label=True: several labels in a row need loss='bce'.",
        ),
        (
            {"multi_label": True, "class_weight": "balanced"},
            "class_weight with multi_label=True: a row with several labels has no one weight; "
            "leave it out.",
        ),
        (
            {"loss": "focal", "label_smoothing": 0.1},
            "label_smoothing with loss='focal': it is defined for 'cross_entropy'.",
        ),
        (
            {"label_smoothing": 1.0},
            "label_smoothing=1.0: expected a share of at least 0 and below 1.",
        ),
        (
            {"pooling": "max"},
            "pooling='max': expected 'cls', 'first', 'last', 'mean' or 'compare'.",
        ),
        ({"max_length": 7}, "max_length=7: expected at least 8 tokens."),
        (
            {"pooling": "max", "max_length": 0},
            "max_length=0: expected at least 8 tokens; pooling='max': expected 'cls', 'first', "
            "'last', 'mean' or 'compare'.",
        ),
    ],
)
def test_classification_settings_that_are_not_valid_are_reported(settings, sentence):
    with pytest.raises(ValueError, match=exactly(sentence)):
        Classification(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"labels": ("a", "a")},
        {"labels": ("1", 1)},
        {"labels": "yes"},
        {"class_weight": "balance"},
        {"text": ("a", "b", "c")},
        {"labels": ("a", "b"), "class_weight": {"c": 2.0}},
    ],
)
def test_classification_settings_that_would_do_something_else_in_silence_are_refused(settings):
    with pytest.raises(ValueError, match=next(reversed(settings))):
        Classification(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": ("a",)}, "labels=('a',): expected two or more different labels."),
        ({"labels": ()}, "labels=(): expected two or more different labels."),
        (
            {"labels": ("a", "a ")},
            "labels=('a', 'a '): expected different names, none of them empty.",
        ),
        (
            {"template": "a {input} b {input} c: "},
            "template has {input} 2 times: expected a text that has it once.",
        ),
        (
            {"labels": ("a", "b"), "separator": ";"},
            "labels and separator: an answer is one of a closed set or a list, not both.",
        ),
        ({"template": " \n"}, "template is empty: expected a text with {input}."),
        (
            {"max_length": 10, "max_new_tokens": 10},
            "max_length=10 with max_new_tokens=10: expected room for a prompt beside the answer; "
            "raise the one or lower the other.",
        ),
        (
            {"max_new_tokens": 1},
            "max_new_tokens=1: expected at least 2, a token of the answer and its end mark.",
        ),
    ],
)
def test_instruction_settings_that_are_not_valid_are_reported(settings, sentence):
    with pytest.raises(ValueError, match=exactly(sentence)):
        Instruction(**settings)


@pytest.mark.parametrize("settings", [{"labels": "yes"}, {"labels": ("", "a")}, {"separator": ""}])
def test_instruction_settings_that_would_do_something_else_in_silence_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Instruction(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, "TrainConfig: epochs=0: expected a whole number of at least 1."),
        ({"batch_size": 1.5}, "batch_size=1.5: expected a whole number."),
        (
            {"micro_batch_size": 0},
            "TrainConfig: micro_batch_size=0: expected a whole number of at least 1.",
        ),
        ({"patience": -1}, "TrainConfig: patience=-1: expected a whole number of at least 1."),
        (
            {"learning_rate": float("nan")},
            "TrainConfig: learning_rate=nan: expected a number above 0.",
        ),
        ({"max_grad_norm": 0}, "TrainConfig: max_grad_norm=0: expected a number above 0."),
        (
            {"weight_decay": -0.1},
            "TrainConfig: weight_decay=-0.1: expected a number of at least 0.",
        ),
        ({"warmup": 1}, "TrainConfig: warmup=1: expected a share of the steps, from 0 to below 1."),
        (
            {"schedule": "step"},
            "TrainConfig: schedule='step': expected 'linear', 'cosine' or 'constant'.",
        ),
        (
            {"epochs": 0, "warmup": 2},
            "TrainConfig: epochs=0: expected a whole number of at least 1; warmup=2: "
            "expected a share of the steps, from 0 "
            "to below 1.",
        ),
    ],
)
def test_training_settings_that_are_not_valid_are_reported(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=exactly(sentence)):
        TrainConfig(tmp_path, **settings)


def test_a_seed_that_is_not_valid_is_reported(tmp_path):
    with pytest.raises(ValueError, match="seed=-1"):
        TrainConfig(tmp_path, seed=-1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"method": "dorra"},
            "method='dorra': expected one of ['adalora', 'dora', 'ia3', 'lora', 'lora+', 'pissa', "
            "'rslora']; did you mean 'dora'?",
        ),
        (
            {"method": "xyz"},
            "method='xyz': expected one of ['adalora', 'dora', 'ia3', 'lora', 'lora+', 'pissa', "
            "'rslora'].",
        ),
        (
            {"targets": "q_proj"},
            "targets='q_proj': expected 'attention', 'all-linear' or a list of names such as "
            "['q_proj', 'v_proj'].",
        ),
        (
            {"targets": ["qwery"]},
            "BertForSequenceClassification has no linear layer 'qwery'; did you mean 'query'?",
        ),
        (
            {"targets": ["query", "xyz"]},
            "BertForSequenceClassification has no linear layer 'xyz'; its layers are called query, "
            "key, value, dense.",
        ),
        (
            {"targets": []},
            "no module of BertForSequenceClassification fits targets=[], layers=None; "
            "try targets='all-linear'.",
        ),
        ({"layers": [0, 2]}, "layers=[0, 2]: there is no layer 2; the model has layers 0 to 1."),
        ({"layers": [-3]}, "layers=[-3]: there is no layer -3; the model has layers 0 to 1."),
        (
            {"layers": []},
            "no module of BertForSequenceClassification fits targets=None, layers=[]; "
            "try targets='all-linear'.",
        ),
    ],
)
def test_lora_settings_that_are_not_valid_are_reported(bert, settings, sentence):
    model, _ = peftcls.load_base(bert, CLASSIFIER)
    with pytest.raises(ValueError, match=exactly(sentence)):
        peftcls.attach_lora(model, CLASSIFIER, **settings)


def test_labels_that_are_not_known_yet_are_reported(bert):
    with pytest.raises(
        ValueError,
        match=exactly(
            "the label names are not known yet: use task = task.learn(rows), or give labels=(...)."
        ),
    ):
        peftcls.load_base(bert, Classification())


def test_a_model_that_does_not_come_from_load_base_is_reported():
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=9, **SIZES)
    )
    with pytest.raises(
        ValueError,
        match=exactly(
            "this model does not come from load_base; use model, tokenizer = load_base(name, "
            "task), so that "
            "the adapter can name the base it belongs to."
        ),
    ):
        peftcls.attach_lora(model, CLASSIFIER)


# Prediction


@pytest.fixture(scope="module")
def adapter(bert, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter")
    trainer_for(CLASSIFIER, bert, out).fit(GOOD)
    return out


@pytest.fixture(scope="module")
def predictor(adapter):
    return peftcls.load_predictor(adapter)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            7,
            "expected texts, rows or a table (a DataFrame, a datasets.Dataset, a dict of columns), "
            "found int.",
        ),
        (
            {"a", "b"},
            "expected texts, rows or a table (a DataFrame, a datasets.Dataset, a dict of columns), "
            "found set.",
        ),
        (["a", ""], "row 2 of rows has no text in column 'text'; fill it in or leave the row out."),
        (
            [{"body": "a"}],
            "row 1 of rows has no column 'text'; it has ['body']. Classification needs ['text'].",
        ),
        (
            [1, 2],
            "text 1 of 2 is 1 (int), expected a text.",
        ),
        (
            ["a", None],
            "text 2 of 2 is None (NoneType), expected a text.",
        ),
        (
            [{"text": 1.5}, {"text": 2.5}],
            "row 1 of rows has no text in column 'text', it has 1.5 (float); write it as a text, "
            "or name the column that holds the texts.\n"
            "row 2 of rows has no text in column 'text', it has 2.5 (float); write it as a text, "
            "or name the column that holds the texts.",
        ),
        (
            [{"text": "a"}, {"text": None}],
            "row 2 of rows has no text in column 'text'; fill it in or leave the row out.",
        ),
    ],
)
def test_rows_that_cannot_be_answered_are_reported(predictor, rows, sentence):
    with pytest.raises(RowError, match=exactly(sentence)):
        predictor.predict(rows)


@pytest.mark.parametrize(
    "rows",
    [
        ["a", None],
        [None],
        [5],
        [("a", "b")],
        ["a", {"text": "b"}],
        [{"text": "a"}, "b"],
        [["a", "b"], ["c"]],
    ],
)
def test_bare_rows_of_another_kind_are_a_row_error(predictor, rows):
    with pytest.raises(RowError):
        predictor.predict(rows)


def test_no_rows_have_no_answers(predictor):
    assert predictor.predict([]) == []


def test_bare_texts_are_refused_where_the_template_needs_more(llama):
    model, tokenizer = peftcls.load_base(llama, LONG)
    with pytest.raises(
        RowError,
        match=exactly(
            "bare texts are not enough: the template needs the columns ['title', 'text']; "
            "give rows such as "
            "{'column': value}."
        ),
    ):
        peftcls.Predictor(model, LONG, tokenizer).predict(["a"])


# Adapter folders


@pytest.fixture
def copy(adapter, tmp_path):
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "peftcls.json").read_text())


def test_a_base_of_the_same_shape_with_other_weights_is_refused(copy, tmp_path):
    config = transformers.BertConfig(vocab_size=400, **SIZES)
    same, other = (
        save_base(
            tmp_path / str(seed), transformers.BertModel, config, word_piece_tokenizer(), seed=seed
        )
        for seed in (0, 1)
    )
    assert peftcls.load_predictor(copy, base=same).predict(["a"]) == peftcls.load_predictor(
        copy
    ).predict(["a"])
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(other)} is not the base of {re.escape(str(copy))}: "
        rf"expected weights with the fingerprint "
        r"[0-9a-f]{12}, found [0-9a-f]{12}; pass base=\.\.\. "
        r"with the model the adapter was trained on\.$",
    ):
        peftcls.load_predictor(copy, base=other)


def test_a_missing_adapter_folder_is_reported(tmp_path):
    with pytest.raises(
        ValueError,
        match=exactly(f"there is no folder {tmp_path / 'none'}, expected that of an adapter."),
    ):
        peftcls.load_predictor(tmp_path / "none")


def test_a_folder_without_a_manifest_is_reported(copy):
    (copy / "peftcls.json").unlink()
    with pytest.raises(
        ValueError,
        match=exactly(
            f"{copy} has no peftcls.json, so it is not an adapter folder of peftcls or was not "
            "saved to its end. If a training was interrupted there, repeat its command with "
            "--resume."
        ),
    ):
        peftcls.load_predictor(copy)


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"],
)
def test_a_missing_file_of_an_adapter_folder_is_named(copy, name):
    assert name in manifest_of(copy)["files"]
    (copy / name).unlink()
    with pytest.raises(
        ValueError,
        match=exactly(
            f"{copy} has no file {name}, which its peftcls.json lists; copy the folder again."
        ),
    ):
        peftcls.load_predictor(copy)


def test_every_file_beside_the_manifest_is_in_it_but_the_card_which_may_be_edited(copy):
    assert sorted(manifest_of(copy)["files"]) == sorted(
        {file.name for file in copy.iterdir()} - {"peftcls.json", "README.md"}
    )


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("adapter_model.safetensors", lambda data: data[:-9]),
        ("adapter_model.safetensors", flip),
        ("tokenizer.json", flip),
        ("adapter_config.json", flip),
        ("adapter_model.safetensors", lambda _: b""),
    ],
)
def test_a_damaged_file_of_an_adapter_folder_is_named(copy, name, damage):
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    with pytest.raises(
        ValueError,
        match=exactly(
            f"{name} in {copy} is damaged: its SHA-256 is not the one in peftcls.json; "
            f"copy the folder "
            "again."
        ),
    ):
        peftcls.load_predictor(copy)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"files": {}}',
        b"\xff",
        b'{"files": {}, "task": {}, "base": {}}',
        b'{"files": {}, "task": {"name": "Classification"}, "base": {"name": "x"}}',
    ],
)
def test_a_broken_manifest_is_reported(copy, content):
    (copy / "peftcls.json").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(str(copy / 'peftcls.json'))} is damaged \(\w+: .*\); "
        rf"copy the folder again\.$",
    ):
        peftcls.load_predictor(copy)


def change(folder: Path, **parts) -> None:
    manifest = manifest_of(folder)
    for part, fields in parts.items():
        manifest[part].update(fields)
    (folder / "peftcls.json").write_text(json.dumps(peftcls.models.adapter_manifest.seal(manifest)))


def test_an_unknown_task_is_reported(copy):
    change(copy, task={"name": "Tagging"})
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(str(copy / 'peftcls.json'))} names the task 'Tagging', "
        rf"expected one of \[.*'Classification'"
        r".*\]; name a task class of your own with tasks=\[\.\.\.\]\.$",
    ):
        peftcls.load_predictor(copy)


def test_a_task_of_another_version_is_reported(copy):
    change(copy, task={"novelty": 1})
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(str(copy / 'peftcls.json'))} describes a task that is not valid: "
        rf"Classification has "
        r"no \['novelty'\]; the folder was written by another version of peftcls\.$",
    ):
        peftcls.load_predictor(copy)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "folder/file"])
def test_a_manifest_that_points_out_of_its_folder_is_refused(copy, path):
    change(copy, files={path: "0"})
    with pytest.raises(
        ValueError,
        match=exactly(
            f"{copy} has no file {path}, which its peftcls.json lists; copy the folder again."
        ),
    ):
        peftcls.load_predictor(copy)


@pytest.mark.parametrize("base", [{"dtype": "float31"}, {"novelty": 1}])
def test_a_base_that_cannot_be_understood_is_reported(copy, base):
    change(copy, base=base)
    with pytest.raises(ValueError, match=r"peftcls\.json"):
        peftcls.load_predictor(copy)


def test_an_adapter_folder_is_no_base(copy):
    with pytest.raises(
        ValueError,
        match=exactly(
            f"{copy} is an adapter folder, expected a base model; "
            f"load it with load_predictor({str(copy)!r})."
        ),
    ):
        peftcls.load_base(copy, CLASSIFIER)


def test_a_list_of_rows_is_not_changed_by_being_checked():
    rows = [dict(row) for row in GOOD]
    peftcls.check_rows(CLASSIFIER, as_dataset(rows), training=True)
    assert rows == GOOD


def test_a_folder_whose_labels_were_swapped_is_refused(copy):
    text = (copy / "peftcls.json").read_text()
    labels = json.loads(text)["task"]["labels"]
    (copy / "peftcls.json").write_text(
        json.dumps(
            {**json.loads(text), "task": {**json.loads(text)["task"], "labels": labels[::-1]}}
        )
    )
    with pytest.raises(
        ValueError,
        match=r"peftcls\.json is damaged \(ValueError: its own SHA-256 is another\); "
        r"copy the folder again",
    ):
        peftcls.load_predictor(copy)


def test_a_folder_of_another_format_is_refused(copy):
    (copy / "peftcls.json").write_text(
        json.dumps(peftcls.models.adapter_manifest.seal({**manifest_of(copy), "format": 9}))
    )
    with pytest.raises(
        ValueError,
        match=r"has the format 9, expected 1; load it with the version of peftcls that wrote it",
    ):
        peftcls.load_predictor(copy)


def base_task() -> peftcls.Classification:
    return peftcls.Classification(labels=("a", "b"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "has no config.json, so it is not a base model",
        ),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "cannot load the base model .*: OSError: ",
        ),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            "cannot load the base model .*: ValueError: Unrecognized model",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "has no .*safetensors file; other weight files",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
            "cannot load the base model .*: SafetensorError: ",
        ),
    ],
)
def test_a_damaged_base_is_reported_in_one_sentence(bert, tmp_path, spoil, sentence):
    shutil.copytree(bert, tmp_path / "base")
    spoil(tmp_path / "base")
    with pytest.raises(ValueError, match=sentence):
        peftcls.load_base(tmp_path / "base", base_task())


def test_a_base_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(
        ValueError,
        match=f"there is no folder {re.escape(str(tmp_path / 'nope'))}, "
        f"expected one with a base model",
    ):
        peftcls.load_base(tmp_path / "nope", base_task())


def test_an_output_directory_that_is_a_file_is_refused_before_training(bert, tmp_path, text_rows):
    (tmp_path / "taken").write_text("mine")
    model, tokenizer = peftcls.load_base(bert, task := peftcls.Classification().learn(text_rows))
    with pytest.raises(ValueError, match="is not a folder that can be written to; choose another"):
        peftcls.Trainer(
            peftcls.attach_lora(model, task),
            task,
            tokenizer,
            peftcls.TrainConfig(tmp_path / "taken" / "out"),
        )
    assert (tmp_path / "taken").read_text() == "mine"

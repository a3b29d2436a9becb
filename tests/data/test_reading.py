"""Read tables: values stay what the file says in every format; edited files are read again."""

import codecs
import csv
import io
import json

import datasets
import pytest

from peftcls import RowError, read_rows
from peftcls.data.missing_columns import require_columns
from peftcls.data.reading import as_dataset, source_name

ROWS = [
    {"text": "the patient recovered", "label": "yes"},
    {"text": "stock prices fell", "label": "no"},
]
MORE_THAN_A_WRITE = (
    1500  # datasets settles the kind of a column on its first thousand rows unless it is told
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def squad(*articles) -> str:
    return json.dumps({"version": "1.1", "data": list(articles)})


def article(title, *paragraphs) -> dict:
    return {
        "title": title,
        "paragraphs": [
            {
                "context": context,
                "qas": [
                    {
                        "id": id_,
                        "question": f"question {id_}?",
                        "answers": [{"text": t, "answer_start": context.index(t)}],
                    }
                    for id_, t in questions
                ],
            }
            for context, questions in paragraphs
        ],
    }


# The forms


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nthe patient recovered,yes\nstock prices fell,no\n"),
        ("a.CSV", "text,label\nthe patient recovered,yes\nstock prices fell,no\n"),
        ("a.csv", "text,label\r\nthe patient recovered,yes\r\nstock prices fell,no"),
        ("a.csv", '"text","label"\n"the patient recovered","yes"\n"stock prices fell","no"\n'),
        ("a.csv", "text,label\n\nthe patient recovered,yes\n\nstock prices fell,no\n\n"),
        ("a.tsv", "text\tlabel\nthe patient recovered\tyes\nstock prices fell\tno\n"),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps({"data": ROWS})),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.jsonl", "\n\n".join(json.dumps(row) for row in ROWS)),
    ],
)
def test_every_form_of_a_table_gives_the_same_rows(write, name, content):
    assert read_rows(write(name, content)).to_list() == ROWS


def test_a_parquet_file_gives_the_same_rows(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert rows.to_list() == ROWS
    assert source_name(rows) == "a.parquet"


def test_a_path_may_be_given_as_text(write):
    assert read_rows(str(write("a.csv", "text\nx\n"))).to_list() == [{"text": "x"}]


@pytest.mark.parametrize(
    "content",
    [
        "text;label\nthe patient recovered;yes\nstock prices fell;no\n",
        "\ufefftext;label\nthe patient recovered;yes\nstock prices fell;no\n",
        "sep=;\r\ntext;label\r\nthe patient recovered;yes\r\nstock prices fell;no\r\n",
        "sep=|\ntext|label\nthe patient recovered|yes\nstock prices fell|no\n",
        '"text";"label"\n"the patient recovered";yes\nstock prices fell;"no"\n',
        "text\tlabel\nthe patient recovered\tyes\nstock prices fell\tno\n",
    ],
)
def test_a_csv_file_with_another_separator_gives_the_same_rows(write, content):
    assert read_rows(write("a.csv", content)).to_list() == ROWS


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("text;label\n1,5 mg, daily;no\n", {"text": "1,5 mg, daily", "label": "no"}),
        ('text;label\n"a;b";no\n', {"text": "a;b", "label": "no"}),
        ("text,label\na;b;c,no\n", {"text": "a;b;c", "label": "no"}),
        ("text,a;b\nx,y\n", {"text": "x", "a;b": "y"}),
        ("text\na;b\n", {"text": "a;b"}),
        ('"text;x",label\na,b\n', {"text;x": "a", "label": "b"}),
        (",text,label\n0,a,b\n", {"": "0", "text": "a", "label": "b"}),
    ],
)
def test_only_the_first_line_decides_the_separator_of_a_csv_file(write, content, row):
    assert read_rows(write("a.csv", content)).to_list() == [row]


def test_a_file_without_a_header_may_be_separated_by_semicolons(write):
    rows = read_rows(write("a.csv", "a;b\nc;d\n"), columns=["text", "label"])
    assert rows.to_list() == [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]


def test_the_rows_remember_the_file_they_come_from(write):
    one, other = (
        read_rows(write("one.csv", "text\nx\n")),
        read_rows(write("other.csv", "text\nx\n")),
    )
    assert (source_name(one), source_name(other)) == ("one.csv", "other.csv")


# Values


@pytest.mark.parametrize(
    "value",
    [
        "0012",
        "NA",
        "N/A",
        "null",
        "None",
        "nan",
        "1.0",
        "1e5",
        "True",
        " x ",
        "2020-01-01",
        "-",
        "日本",
    ],
)
@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_value_stays_the_text_that_it_is(write, name, separator, value):
    rows = read_rows(write(name, f"text{separator}label\nx{separator}{value}\ny{separator}0\n"))
    assert rows["label"][:] == [value, "0"]
    assert rows.features["label"] == datasets.Value("string")


@pytest.mark.parametrize("value", ["0012", "NA", "null", "None"])
def test_a_text_in_json_stays_the_text_that_it_is(write, value):
    assert read_rows(write("a.jsonl", json.dumps({"label": value}))).to_list() == [{"label": value}]


def test_an_empty_field_is_an_empty_text(write):
    assert read_rows(write("a.csv", "text,label\n,\nx,\n")).to_list() == [
        {"text": "", "label": ""},
        {"text": "x", "label": ""},
    ]


def test_a_json_row_without_a_column_has_nothing_in_it(write):
    rows = read_rows(write("a.jsonl", '{"a": "x"}\n{"b": "y"}\n'))
    assert rows.to_list() == [{"a": "x", "b": None}, {"a": None, "b": "y"}]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ({"text": "x", "label": None}, {"text": "x", "label": "yes"}),
        ({"text": "x"}, {"text": "x", "label": "yes"}),
        ({"text": "x", "label": 1}, {"text": "x", "label": 1.5}),
        ({"text": "x", "label": []}, {"text": "x", "label": ["yes"]}),
        ({"text": "x", "label": {"a": None}}, {"text": "x", "label": {"a": "yes"}}),
    ],
)
def test_a_column_whose_kind_shows_late_is_read_like_one_whose_kind_shows_early(write, first, last):
    rows = read_rows(
        write(
            "a.jsonl",
            "".join(json.dumps(row) + "\n" for row in [*[first] * MORE_THAN_A_WRITE, last]),
        )
    )
    assert len(rows) == MORE_THAN_A_WRITE + 1
    assert rows[-1] == last


# Encodings


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ncafé,yes\n"),
        ("a.tsv", "text\tlabel\ncafé\tyes\n"),
        ("a.json", '[{"text": "café", "label": "yes"}]'),
        ("a.jsonl", '{"text": "café", "label": "yes"}\n'),
    ],
)
def test_a_byte_order_mark_is_not_part_of_the_first_column(write, name, content):
    assert read_rows(write(name, codecs.BOM_UTF8 + content.encode())).to_list() == [
        {"text": "café", "label": "yes"}
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf8", "UTF-8"])
def test_a_byte_order_mark_is_no_text_either_when_utf8_is_asked_for_by_name(write, encoding):
    assert read_rows(
        write("a.csv", codecs.BOM_UTF8 + b"text\nx\n"), encoding=encoding
    ).column_names == ["text"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\ncafé\n"),
        ("a.tsv", "text\ncafé\n"),
        ("a.jsonl", '{"text": "café"}\n'),
        ("a.json", '[{"text": "café"}]'),
    ],
)
def test_another_encoding_is_read_when_it_is_named(write, name, content, encoding):
    assert read_rows(write(name, content.encode(encoding)), encoding=encoding).to_list() == [
        {"text": "café"}
    ]


def test_the_same_bytes_in_two_encodings_are_two_tables(write):
    path = write("a.csv", "text\ncafé\n".encode())
    assert [read_rows(path, encoding=e)["text"][0] for e in ("utf-8", "latin-1", "utf-8")] == [
        "café",
        "cafÃ©",
        "café",
    ]


# Quotes


def test_a_quoted_csv_text_may_hold_separators_quotes_and_new_lines(write):
    rows = read_rows(write("a.csv", 'text,label\n"one, ""two""\nand three",yes\n"\r\n",no\n'))
    assert rows.to_list() == [
        {"text": 'one, "two"\nand three', "label": "yes"},
        {"text": "\r\n", "label": "no"},
    ]


@pytest.mark.parametrize(
    "text",
    ['"free prize', 'say "hello" now', 'a 5" disk', '"one" and "two"', '"', '"""', 'ends with "'],
)
def test_stray_quotes_in_a_tsv_are_characters(write, text):
    rows = read_rows(write("a.tsv", f'label\ttext\nspam\t{text}\nham\t"quoted"\nham\tplain\n'))
    assert rows["text"][:] == [text, '"quoted"', "plain"]


def test_well_formed_quoting_in_a_tsv_is_taken_off(write):
    rows = read_rows(write("a.tsv", 'text\tlabel\n"say ""hello"""\t"yes"\nplain\t"no"\n'))
    assert rows.to_list() == [
        {"text": 'say "hello"', "label": "yes"},
        {"text": "plain", "label": "no"},
    ]


@pytest.mark.parametrize("text", ['say "hello"', "one\ttwo", "one\ntwo", "one\r\ntwo", '"\t\n"'])
def test_a_tsv_that_the_csv_module_wrote_is_read_back_as_it_was(write, text):
    table = io.StringIO(newline="")
    csv.writer(table, "excel-tab").writerows([["text", "label"], [text, "yes"], ["plain", "no"]])
    assert read_rows(write("a.tsv", table.getvalue())).to_list() == [
        {"text": text, "label": "yes"},
        {"text": "plain", "label": "no"},
    ]


def test_all_5574_rows_of_a_table_like_sms_spam_are_read(write):
    lines = [
        f"{'spam' if n % 7 == 0 else 'ham'}\t{chr(34) * (n % 500 == 3)}message {n}"
        for n in range(5574)
    ]
    rows = read_rows(write("SMSSpamCollection.tsv", "\n".join(lines)), columns=["label", "text"])
    assert len(rows) == 5574
    assert rows["text"][3] == '"message 3'


# No header


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_file_without_a_header_gets_its_columns_by_name(write, name, separator):
    rows = read_rows(
        write(name, f"ham{separator}see you\nspam{separator}call now\n"), columns=["label", "text"]
    )
    assert rows.to_list() == [
        {"label": "ham", "text": "see you"},
        {"label": "spam", "text": "call now"},
    ]


def test_other_column_names_are_another_table(write):
    path = write("a.csv", "x,y\n1,2\n")
    assert read_rows(path, columns=["a", "b"]).column_names == ["a", "b"]
    assert read_rows(path).column_names == ["x", "y"]
    assert read_rows(path, columns=["b", "a"]).column_names == ["b", "a"]


# SQuAD


def test_all_articles_and_paragraphs_of_a_squad_file_are_read(write):
    rows = read_rows(
        write(
            "a.json",
            squad(
                article(
                    "One",
                    ("a drug was given", [("1", "drug"), ("2", "given")]),
                    ("prices fell", [("3", "fell")]),
                ),
                article("Two", ("a galaxy far away", [("4", "galaxy")])),
            ),
        )
    )
    assert rows["id"][:] == ["1", "2", "3", "4"]
    assert rows["title"][:] == ["One", "One", "One", "Two"]
    assert rows[3] == {
        "id": "4",
        "title": "Two",
        "paragraph": 1,
        "context": "a galaxy far away",
        "question": "question 4?",
        "answers": {"text": ["galaxy"], "answer_start": [2]},
    }
    assert all(
        r["context"][s:].startswith(t)
        for r in rows
        for t, s in zip(r["answers"]["text"], r["answers"]["answer_start"], strict=True)
    )


def test_a_question_without_an_answer_and_a_paragraph_without_questions_are_read(write):
    content = {
        "title": "One",
        "paragraphs": [
            {"context": "nobody asks"},
            {
                "context": "c",
                "qas": [
                    {"id": "1", "question": "q?", "answers": [], "is_impossible": True},
                    {"id": "2", "question": "q?"},
                ],
            },
        ],
    }
    rows = read_rows(write("a.json", squad(content)))
    assert rows["answers"][:] == [{"text": [], "answer_start": []}, None]


def test_a_large_squad_file_whose_first_thousand_questions_have_no_answer_is_read(write):
    questions = [{"id": str(n), "question": "q?", "answers": []} for n in range(MORE_THAN_A_WRITE)]
    last = {"id": "last", "question": "q?", "answers": [{"text": "c", "answer_start": 0}]}
    rows = read_rows(
        write(
            "a.json",
            squad({"title": "t", "paragraphs": [{"context": "c", "qas": [*questions, last]}]}),
        )
    )
    assert rows[-1]["answers"] == {"text": ["c"], "answer_start": [0]}


@pytest.mark.parametrize(
    "found",
    [
        [{"paragraphs": []}, {"no": "paragraphs"}],
        [{"paragraphs": None}],
        [{"paragraphs": ["text"]}],
        [{"paragraphs": [{"qas": None}]}],
        [{"paragraphs": [{"context": "c", "qas": ["text"]}]}],
        [{"paragraphs": [{"qas": [{"id": "1", "question": "q?", "answers": []}]}]}],
        [
            {
                "paragraphs": [
                    {
                        "context": "c",
                        "qas": [{"id": "1", "question": "q?", "answers": [{"text": "c"}]}],
                    }
                ]
            }
        ],
        [
            {
                "paragraphs": [
                    {
                        "context": "c",
                        "qas": [
                            {
                                "id": "1",
                                "question": "q?",
                                "answers": [{"text": "c", "answer_start": "?"}],
                            }
                        ],
                    }
                ]
            }
        ],
        [
            {
                "paragraphs": [
                    {"context": "c", "qas": [{"id": "1", "question": "q?", "answers": "c"}]}
                ]
            }
        ],
    ],
)
def test_a_broken_squad_file_is_a_row_error_that_says_so(write, found):
    with pytest.raises(RowError, match=r"a\.json"):
        read_rows(write("a.json", json.dumps({"data": found})))


# The cache


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\nx\n"),
        ("a.tsv", "text\nx\n"),
        ("a.jsonl", '{"text": "x"}'),
        ("a.json", '[{"text": "x"}]'),
    ],
)
def test_a_table_is_memory_mapped(write, name, content):
    assert read_rows(write(name, content)).cache_files


def test_a_parquet_table_is_memory_mapped(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet").cache_files


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", "text\n{}\n"),
        ("a.tsv", "text\n{}\n"),
        ("a.jsonl", '{{"text": "{}"}}\n'),
        ("a.json", '[{{"text": "{}"}}]'),
    ],
)
def test_an_edited_file_of_the_same_length_is_not_answered_from_the_cache(write, name, form):
    found = [read_rows(write(name, form.format(text)))["text"][0] for text in ("old", "new", "old")]
    assert found == ["old", "new", "old"]


def test_an_edited_parquet_file_is_not_answered_from_the_cache(tmp_path):
    found = []
    for text in ("old", "new", "old"):
        datasets.Dataset.from_list([{"text": text}]).to_parquet(tmp_path / "a.parquet")
        found.append(read_rows(tmp_path / "a.parquet")["text"][0])
    assert found == ["old", "new", "old"]


def test_the_fingerprint_is_that_of_the_content(write):
    one, same, other = (
        read_rows(write(name, text))
        for name, text in (("a.csv", "text\nx\n"), ("b.csv", "text\nx\n"), ("c.csv", "text\ny\n"))
    )
    assert one._fingerprint == same._fingerprint != other._fingerprint


def test_reading_leaves_the_progress_bars_as_they_were(write):
    path = write("a.csv", "text\nx\n")
    shown = datasets.is_progress_bar_enabled()
    try:
        for turn in (datasets.disable_progress_bars, datasets.enable_progress_bars):
            turn()
            before = datasets.is_progress_bar_enabled()
            read_rows(path)
            assert datasets.is_progress_bar_enabled() == before
    finally:
        (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()


# Rows that are at hand already


def test_a_list_of_mappings_becomes_a_table_with_all_their_columns():
    rows = as_dataset(iter([{"a": 1}, {"a": 2, "b": "x"}]), "mine")
    assert rows.to_list() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert source_name(rows) == "mine"


def test_a_data_set_is_taken_as_it_is():
    rows = datasets.Dataset.from_list(ROWS)
    assert as_dataset(rows) is rows


def test_an_empty_list_has_no_rows():
    with pytest.raises(RowError, match=r"^train_rows has no rows\.$"):
        as_dataset([], "train_rows")


@pytest.mark.parametrize("rows", ["text", {"text": "x"}, ["x"], [{"text": "x"}, "y"]])
def test_a_value_that_is_not_a_list_of_mappings_is_refused(rows):
    with pytest.raises(
        RowError,
        match=r"^rows: expected a table \(a DataFrame, a datasets\.Dataset, a dict of columns\) or "
        r"a list of mappings such as \{'text': '\.\.\.'\}, found ",
    ):
        as_dataset(rows)


def test_a_missing_column_is_named_with_the_columns_that_are_there():
    with pytest.raises(
        RowError,
        match=r"^row 1 of t\.csv has no column 'text'; it has \['a', 'b'\]\. Reader needs \['a', "
        r"'text'\]\.$",
    ):
        require_columns(as_dataset([{"a": 1, "b": 2}], "t.csv"), ["a", "text"], "Reader")


# Long fields


def test_the_field_limit_of_the_csv_module_stays_as_it_was(write):
    limit = csv.field_size_limit()
    long_text = "x" * (limit + 1)
    rows = read_rows(write("a.csv", f"text,label\n{long_text},yes\n"))
    assert rows["text"][0] == long_text
    assert csv.field_size_limit() == limit
    with pytest.raises(RowError, match="is never closed"):
        read_rows(write("b.csv", f'text,label\n"{long_text},yes\n'))
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("a.tsv", 'text\tlabel\n"{}"\t"yes"\n', {"label": "yes"}),
        ("a.csv", "text{}\ny\n", {}),
    ],
)
def test_a_field_longer_than_the_limit_of_the_csv_module_is_read_anywhere(
    write, name, content, row
):
    long_text = "x" * (csv.field_size_limit() + 1)
    rows = read_rows(write(name, content.format(long_text)))
    expected = {"text": long_text, **row} if row else {"text" + long_text: "y"}
    assert rows.to_list() == [expected]

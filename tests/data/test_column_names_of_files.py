"""Files as they are handed around: without names of columns, with tabs, with other endings."""

import gzip
import logging
import zipfile

import datasets
import pytest

from peftcls import RowError, read_rows
from peftcls.cli.column_guessing import guess_columns

SMS = 'ham\tGo until Jurong, crazy.. only\nspam\t"Free entry in 2, a prize, or so\nham\tOk lar\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["SMSSpamCollection", "sms.txt", "sms.TXT", "sms.csv", "sms.tsv"])
def test_texts_with_commas_behind_tabs_are_read_under_any_name(write, name):
    rows = read_rows(write(name, SMS), columns=["label", "text"])
    assert rows["label"][:] == ["ham", "spam", "ham"]
    assert rows["text"][1] == '"Free entry in 2, a prize, or so'


def test_an_archive_may_have_a_text_that_explains_its_table(tmp_path):
    archive = tmp_path / "sms+spam+collection.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("SMSSpamCollection", SMS)
        file.writestr("readme", "What it is\n")
    assert read_rows(archive, columns=["label", "text"])["label"][:] == ["ham", "spam", "ham"]


def test_texts_with_commas_are_read_between_semicolons(write):
    rows = read_rows(write("a.csv", "yes;one, two\nno;three\n"), columns=["label", "text"])
    assert rows["text"][:] == ["one, two", "three"]


@pytest.mark.parametrize(
    "content",
    ['text,label\n"a;b, c",x\nd;e,y\n', 'text,label\n"a\tb",x\n"c\td",y\n', "a;b,c;d\ne;f,g;h\n"],
)
def test_a_file_whose_lines_have_the_same_commas_is_separated_by_them(write, content):
    assert len(read_rows(write("a.csv", content)).column_names) == 2


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            'bad,"int a = f(x, y);\nreturn a;"\nok,"f(x, y, z);"\nbad,"return f(a, b);"\n',
            [
                ("bad", "int a = f(x, y);\nreturn a;"),
                ("ok", "f(x, y, z);"),
                ("bad", "return f(a, b);"),
            ],
        ),
        ('1,"Dear;\nfoo; bar"\n', [("1", "Dear;\nfoo; bar")]),
        ('he said "hi"\tx\n"a\tb"\ty\n', [('he said "hi"', "x"), ("a\tb", "y")]),
        ('"he said ""hi"""\tx\n5" nail\ty\n', [('he said "hi"', "x"), ('5" nail', "y")]),
    ],
)
def test_quotes_and_line_breaks_in_them_are_read_as_before(write, content, rows):
    found = read_rows(write("a.csv", content), columns=["a", "b"])
    assert [tuple(row.values()) for row in found] == rows


@pytest.mark.parametrize("name", ["SMSSpamCollection.gz", "sms.txt.gz"])
def test_a_compressed_file_with_tabs_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(SMS.encode()))
    assert len(read_rows(tmp_path / name, columns=["label", "text"])) == 3


def test_a_text_file_of_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "rows.txt").write_text(SMS.replace('"', ""), encoding="utf-16")
    assert len(read_rows(tmp_path / "rows.txt", columns=["label", "text"])) == 3


def test_columns_without_a_name_are_not_guessed(write):
    lines = [f"{'spam' if n % 3 == 0 else 'ham'},a message of some words {n},,," for n in range(30)]
    lines[4] = 'ham,a message that goes,"on in another column of the file",,'
    rows = read_rows(write("spam.csv", "\n".join(["v1,v2,,,", *lines])))
    found = guess_columns(rows)
    assert (found.text, found.label) == (("v2",), "v1")


@pytest.mark.parametrize("content", ["\n\ntext,label\na,x\n", "\r\ntext;label\r\na;x\r\n"])
def test_empty_lines_before_the_names_are_passed_over(write, content):
    assert read_rows(write("a.csv", content)).to_list() == [{"text": "a", "label": "x"}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("great film;4,5\nbad;1,0\n", [["great film", "4,5"], ["bad", "1,0"]]),
        ("7,3;great film\n8,1;bad\n", [["7,3", "great film"], ["8,1", "bad"]]),
        # The semicolon is a text's.
        (
            "4,good; very good\n1,bad; very bad\n",
            [["4", "good; very good"], ["1", "bad; very bad"]],
        ),
        ("4,5\n1,0\n", [["4", "5"], ["1", "0"]]),
    ],
)
def test_commas_of_numbers_separate_nothing(write, content, rows):
    table = read_rows(write("a.csv", content), columns=["first", "second"])
    assert [list(row.values()) for row in table] == rows


def test_a_row_with_a_field_too_many_is_still_refused(write):
    with pytest.raises(RowError, match=r"row 2 of a.csv .line 3. has 3 fields, expected 2"):
        read_rows(write("a.csv", "text,label\na,x\nb;c,d,y\n"))


def test_columns_without_a_name_get_one(write, caplog):
    content = 'v1,v2,,,\nham,see you,,,\nspam,"call, now","and more",,\n'
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        rows = read_rows(write("spam.csv", content))
    assert rows.column_names == ["v1", "v2", "unnamed_3", "unnamed_4", "unnamed_5"]
    assert rows["unnamed_3"][:] == ["", "and more"]
    assert caplog.messages == [
        "spam.csv has columns without a name, which are called unnamed_3, unnamed_4, unnamed_5 "
        "here; no text or label is looked for in them unless they are asked for by these names."
    ]


def test_one_column_without_a_name_holds_row_numbers(write, caplog):
    assert read_rows(write("a.csv", ",text\n0,one\n1,two\n")).column_names == ["", "text"]
    assert not caplog.messages


def test_names_that_the_first_line_has_too_are_said(write, caplog):
    path = write("a.csv", "text,label\none,x\n")
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        assert len(read_rows(path, columns=["text", "label"])) == 2
        assert len(read_rows(path, columns=["label", "text"])) == 2
    assert caplog.messages == [
        "The first line of a.csv has the very names that are given as columns, and was read as a "
        "row; leave columns (--columns) out."
    ]


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "hello\n"), ("notes", "hello\n"), ("a.bin", "a\tb\n")]
)
def test_other_texts_are_no_table(write, name, content):
    with pytest.raises(RowError, match=r"expected a file ending in .*, found a file of another"):
        read_rows(write(name, content))

"""Files as they are handed around: without names of columns, with tabs, with other endings."""

import logging
import zipfile

import datasets
import pytest

from peftcls import RowError, read_rows

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
        "spam.csv has 3 columns without a name, which are called unnamed_3, unnamed_4, unnamed_5 "
        "here; they are not read unless they are asked for by these names."
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

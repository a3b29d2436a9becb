"""Workbooks, compressed files and encodings: the same rows as from a csv file in UTF-8."""

import datetime
import gzip
import io
import json
import logging
import sys
import zipfile

import datasets
import openpyxl
import pandas as pd
import pytest

from peftcls import RowError, cli, read_rows

ROWS = [{"text": "the drug", "label": "yes"}, {"text": "stocks, and\nbanks", "label": "no"}]
CSV = b'text,label\nthe drug,yes\n"stocks, and\nbanks",no\n'
CHINESE = "text,label\n这个药对病人有很好的作用,医\n股票的价格在下跌，我们都不知道,财\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, logger="peftcls")
    logging.getLogger("peftcls").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("peftcls").removeHandler(caplog.handler)


def workbook(path, **sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_csv", ".csv"), content)
    return buffer.getvalue()


# Tables as one JSON object


@pytest.mark.parametrize("form", ["records", "columns", "index", "split", "table", "list"])
def test_what_pandas_writes_as_json_gives_the_same_rows(form, tmp_path):
    frame = pd.DataFrame(ROWS)
    path = tmp_path / "rows.json"
    if form == "list":
        path.write_text(json.dumps(frame.to_dict("list")))
    else:
        frame.to_json(path, orient=form)
    rows = read_rows(path)
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS


@pytest.mark.parametrize(
    "content",
    [
        {"text": ["a", "b"], "label": ["x"]},
        {"text": {"0": "a"}, "label": {"1": "x"}},
        {"text": {"name": "a"}, "label": {"name": "x"}},
        {"columns": ["text", "label"], "data": [["a"]]},
        {"columns": ["text", "text"], "data": [["a", "x"]]},
        {"text": "a", "label": "x"},
        {"train": [{"text": "a"}], "test": [{"text": "b"}]},
    ],
)
def test_an_object_that_is_no_table_is_refused(content, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RowError, match="expected a list of objects or the SQuAD form"):
        read_rows(path)


# Workbooks


def test_a_workbook_gives_the_rows_of_its_sheet(tmp_path):
    header = list(ROWS[0])
    path = workbook(
        tmp_path / "a.xlsx", first=[header, *(list(row.values()) for row in ROWS)], empty=[]
    )
    assert read_rows(path).to_list() == ROWS


def test_cells_keep_their_types_and_gaps_are_missing_values(tmp_path):
    path = workbook(
        tmp_path / "a.xlsx",
        s=[
            ["text", "score", "day"],
            ["0012", 1, datetime.datetime(2024, 5, 1)],
            [None, None, None],
            ["NA", 2.5, None],
            ["", 3],
        ],
    )
    rows = read_rows(path)
    assert rows["text"][:] == ["0012", "NA", None]
    assert rows["score"][:] == [1.0, 2.5, 3.0]
    assert rows["day"][:] == ["2024-05-01T00:00:00", None, None]


def test_columns_of_a_sheet_without_a_name(tmp_path, caplog):
    # As pandas writes the numbers of rows.
    path = workbook(tmp_path / "a.xlsx", s=[[None, "text"], [0, "one"], [1, "two"]])
    assert read_rows(path).column_names == ["", "text"]
    assert not caplog.messages
    path = workbook(tmp_path / "b.xlsx", s=[[None, "text", None, "label"], [0, "a", "b", "c"]])
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        assert read_rows(path).column_names == ["unnamed_1", "text", "unnamed_3", "label"]
    assert "b.xlsx has columns without a name" in caplog.messages[0]


def test_a_sheet_of_several_is_chosen_by_its_name(tmp_path, capsys):
    path = workbook(tmp_path / "a.xlsx", one=[["text"], ["x"]], two=[["text"], ["y"]])
    assert read_rows(path, split="two")["text"][:] == ["y"]
    with pytest.raises(RowError, match=r"a.xlsx has the sheets \['one', 'two'\]; choose one"):
        read_rows(path)
    with pytest.raises(RowError, match="has no sheet 'three'"):
        read_rows(path, split="three")
    assert cli.main(["check", str(path), "--split", "one", "--text", "text"]) == 1
    assert "choose" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ([["text", "text"], ["a", "b"]], "the column 'text' 2 times"),
        ([["text"], ["a"], ["b", None, "c"]], "row 3 of the sheet in a.xlsx has 'c' in a column"),
        ([["text"]], "a.xlsx has no rows: expected at least one below the header"),
        ([["text"], ["a"], [5]], "row 2 of a.xlsx has a number in column 'text', where row 1 has"),
    ],
)
def test_a_sheet_that_is_no_table_is_one_sentence(tmp_path, sheet, message):
    with pytest.raises(RowError, match=message):
        read_rows(workbook(tmp_path / "a.xlsx", s=sheet))


def test_what_is_no_workbook_and_a_missing_package_are_said(write, monkeypatch):
    path = write("a.xlsx", "text\nx\n")
    with pytest.raises(RowError, match=r"a\.xlsx is not a workbook that can be read"):
        read_rows(path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'peftcls\[xlsx\]'"):
        read_rows(path)


# Compressed files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.csv", gzip.compress(CSV, mtime=0)),
        ("a.zip", zipped(rows_csv=CSV)),
        ("a.csv.zip", zipped(**{"rows_csv": CSV, "__MACOSX__._rows_csv": b"x"})),
        (
            "a.ndjson",
            b'{"text": "the drug", "label": "yes"}\n'
            b'{"text": "stocks, and\\nbanks", "label": "no"}\n',
        ),
    ],
)
def test_a_compressed_file_is_read_as_the_table_in_it(write, name, content):
    assert read_rows(write(name, content)).to_list() == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", gzip.compress(CSV, mtime=0)[:-9], "a.csv.gz is compressed and damaged"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", "a.csv.gz is compressed and damaged"),
        ("a.zip", b"PK\x03\x04", "a.zip is compressed and damaged"),
        ("a.zip", zipped(one_csv=CSV, two_csv=CSV), "holds 2 files"),
        ("a.zip", zipped(), "holds 0 files"),
    ],
)
def test_a_damaged_archive_is_one_sentence(write, name, content, message):
    with pytest.raises(RowError, match=message):
        read_rows(write(name, content))


# Encodings


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "gbk", "gb2312", "gb18030"]
)
def test_another_encoding_is_found_and_said(write, messages, encoding):
    rows = read_rows(write("a.csv", CHINESE.encode(encoding)))
    assert rows["label"][:] == ["医", "财"]
    assert "a.csv is not in UTF-8; it was read as" in messages.text
    example = "latin-1" if encoding.startswith("gb") else "utf-16-be"
    assert f"encoding={example!r}" in messages.text


def test_text_in_utf_8_is_read_without_a_message(write, messages):
    assert read_rows(write("a.csv", CHINESE))["label"][:] == ["医", "财"]
    assert not messages.text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("text\nun café très sucré à Orléans déjà vu\n", "latin-1"),
        ("text\n안녕하세요 오늘 날씨가 좋습니다 주식 가격\n", "euc-kr"),
        ("text\nпациент выздоровел после лечения лекарством\n", "cp1251"),
        ("text\n今日は天気がいいですね 株価は下がりました\n", "shift-jis"),
    ],
)
def test_what_is_not_chinese_is_refused_and_not_guessed(write, text, encoding):
    path = write("a.csv", text.encode(encoding))
    with pytest.raises(RowError, match="which is not UTF-8; save the file as UTF-8 or pass its"):
        read_rows(path)
    assert read_rows(path, encoding=encoding).column_names == ["text"]

"""Folders, patterns and saved data sets: one table, whose messages say which file a row is in."""

import datasets
import pytest

from peftcls import Classification, RowError, check_rows, cli, read_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "b.csv").write_text("label,text\nno,three\n", encoding="utf-8")
    (folder / "a.csv").write_text("text,label\none,yes\ntwo,no\n", encoding="utf-8")
    (folder / "notes.txt").write_text("not a table", encoding="utf-8")
    (folder / ".c.csv").write_text("hidden\nx\n", encoding="utf-8")
    return folder


def test_the_files_of_a_folder_or_a_pattern_are_one_table_in_the_order_of_names(folder):
    rows = read_rows(folder)
    assert rows.to_list() == [
        {"text": "one", "label": "yes"},
        {"text": "two", "label": "no"},
        {"text": "three", "label": "no"},
    ]
    assert read_rows(f"{folder}/*.csv").to_list() == rows.to_list()
    assert read_rows(f"{folder}/b*")["text"][:] == ["three"]


def test_a_wrong_row_is_named_with_the_rows_of_each_file(folder):
    (folder / "b.csv").write_text("label,text\nno,\n", encoding="utf-8")
    rows = read_rows(folder)
    with pytest.raises(
        RowError, match=r"row 3 of rows \(a.csv: rows 1 to 2, b.csv: rows 3 to 3\) has"
    ):
        check_rows(Classification(labels=("yes", "no")), rows)


def test_many_files_are_counted(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.csv").write_text("text\nx\n", encoding="utf-8")
    assert len(read_rows(f"{tmp_path}/?.csv")) == 9
    with pytest.raises(RowError, match=r"of \?.csv \(9 files in the order of their names\) has no"):
        check_rows(Classification(labels=("a", "b")), read_rows(f"{tmp_path}/?.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,kind\nx,y\n", r"b.csv has the columns \['text', 'kind'\], and a.csv has"),
        ("text,label\nx\n", "row 1 of b.csv .line 2. has 1 field"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(folder, content, message):
    (folder / "b.csv").write_text(content, encoding="utf-8")
    with pytest.raises(RowError, match=message):
        read_rows(folder)


def test_other_types_and_an_empty_pattern_are_one_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": 5}', encoding="utf-8")
    with pytest.raises(RowError, match=r"b\.jsonl and a\.jsonl hold values of different types"):
        read_rows(f"{tmp_path}/*.jsonl")
    with pytest.raises(RowError, match="no file fits"):
        read_rows(f"{tmp_path}/*.csv")


def test_a_saved_data_set_is_read_with_its_class_names_and_splits(tmp_path, capsys):
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    table.save_to_disk(tmp_path / "table")
    assert read_rows(tmp_path / "table")["label"][:] == ["yes", "no"]
    splits = datasets.DatasetDict(train=table, test=table.select([0]))
    splits.save_to_disk(tmp_path / "splits")
    assert len(read_rows(tmp_path / "splits", split="test")) == 1
    with pytest.raises(RowError, match=r"has the splits \['test', 'train'\]; choose one"):
        read_rows(tmp_path / "splits")
    assert cli.main(["check", str(tmp_path / "splits"), "--split", "train"]) in (0, 1)
    assert "choose one" not in capsys.readouterr().err
    (tmp_path / "table" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(RowError, match="was saved by datasets and cannot be read"):
        read_rows(tmp_path / "table")

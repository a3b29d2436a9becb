"""Rows that were put aside keep the numbers that they have in the user's file."""

import re

import pytest

from peftcls import Classification, RowError, check_rows, cli, examine_rows, load_base, recipe
from peftcls.data.reading import name_source, read_rows
from peftcls.data.row_numbers import name_part, row_numbers, select_rows
from peftcls.engine.model_state import base_facts
from peftcls.tasks.encoding import encode_table
from peftcls.tasks.splitting import split_off


@pytest.fixture
def file(write):
    lines = [f"word {n} of the text,{['no', 'yes'][n % 2]}" for n in range(1, 41)]
    return write("rows.csv", "\n".join(["text,label", *lines]) + "\n")


def test_a_part_of_a_part_has_the_numbers_of_the_file(file):
    rows = read_rows(file)
    assert list(row_numbers(rows)) == list(range(1, 41))
    part = select_rows(select_rows(rows, range(10, 40)), [0, 5, 7])
    assert list(row_numbers(part)) == [11, 16, 18]
    assert part["text"][:] == [f"word {n} of the text" for n in (11, 16, 18)]
    assert list(row_numbers(name_part(part, "rows.csv, test rows"))) == [11, 16, 18]
    assert part.column_names == ["text", "label"]


def test_other_rows_do_not_inherit_the_numbers(file):
    part = select_rows(read_rows(file), [3, 9])
    for other in (part.shuffle(seed=1), part.select([1, 0]), part.map(lambda row: row)):
        assert list(row_numbers(other)) == [1, 2]
    assert list(row_numbers(name_source(part, "another name"))) == [1, 2]


def test_messages_about_a_part_name_the_row_of_the_file(file, bert):
    rows = read_rows(file)
    task = Classification(max_length=16).learn(rows)
    left, aside = split_off(task, rows, 0.2, name="test")
    for part in (left, aside):
        for number, text in zip(row_numbers(part), part["text"], strict=True):
            assert text == f"word {number} of the text"
    strict = Classification(labels=("no", "maybe"))
    first = next(n for n in row_numbers(aside) if n % 2)
    with pytest.raises(RowError, match=rf"^row {first} of rows.csv has the label 'yes'"):
        check_rows(strict, aside)
    finding = next(f for f in examine_rows(strict, left).findings if f.what == "unknown-label")
    assert finding.rows == tuple([n for n in row_numbers(left) if n % 2][: len(finding.rows)])
    model, tokenizer = load_base(bert, task)
    assert len(encode_table(task, aside, tokenizer, base_facts(model).fingerprint).features) == 8


def test_the_report_of_the_command_names_the_rows_of_the_file(file, bert, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "RESAMPLES", 20)
    out = tmp_path / "run"
    command = ["train", str(file), "--out", str(out), "--model", bert, "--epochs", "1"]
    assert cli.main(command) == 0
    page = (out / "report.html").read_text()
    shown = re.findall(r'class="place">row (\d+)</span>.*?word (\d+) of', page, re.DOTALL)
    assert shown
    assert all(number == word for number, word in shown)
    assert any(int(number) > 6 for number, _ in shown)

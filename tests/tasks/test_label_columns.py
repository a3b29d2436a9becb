"""Several labels a row: a separator of one's own, columns of 0 and 1, and names for labels."""

import pandas as pd
import pytest

from peftcls import (
    Classification,
    Instruction,
    RowError,
    check_rows,
    examine_rows,
    with_label_names,
)
from peftcls.tasks.label_columns import label_columns_problems
from peftcls.tasks.list_cells import likely_separator

ONE_HOT = Classification(label=("toxic", "insult"))
ROWS = [
    {"text": "a", "toxic": 1, "insult": 0},
    {"text": "b", "toxic": 0, "insult": 0},
    {"text": "c", "toxic": 1, "insult": 1},
]


@pytest.mark.parametrize(
    ("separator", "cell"), [(",", "x,y"), ("|", "x | y"), (None, "x;y"), (",", '["x", "y"]')]
)
def test_labels_of_a_cell_are_separated_as_the_task_says(separator, cell):
    rows = [{"text": "a", "label": cell}, {"text": "b", "label": "x"}]
    task = Classification(multi_label=True, separator=separator).learn(rows)
    assert task.labels == ("x", "y")
    assert task.gold_of(rows[0]) == ("x", "y")
    assert Classification.from_json(task.to_json()) == task


def test_each_column_of_0_and_1_is_a_label():
    task = ONE_HOT.learn(ROWS)
    assert (task.multi_label, task.loss, task.labels) == (True, "bce", ("toxic", "insult"))
    assert task.columns(with_target=True) == ["text", "toxic", "insult"]
    assert [task.gold_of(row) for row in ROWS] == [("toxic",), (), ("toxic", "insult")]
    check_rows(task, ROWS, training=True)
    assert Classification.from_json(task.to_json()) == task
    assert not examine_rows(ONE_HOT, ROWS).errors


def test_columns_of_a_csv_file_and_of_a_data_frame_are_the_same():
    texts = [{name: str(value) for name, value in row.items()} for row in ROWS]
    texts[1]["toxic"] = "False"
    frame = pd.DataFrame(ROWS).astype({"insult": bool})
    for rows in (texts, frame.to_dict("records")):
        check_rows(ONE_HOT, rows)
        assert [ONE_HOT.gold_of(row) for row in rows] == [("toxic",), (), ("toxic", "insult")]
    assert ONE_HOT.learn(frame) == ONE_HOT.learn(ROWS)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "row 2 of rows has nothing in column 'insult'; write 0 or 1 there, or leave"),
        ("-1", "row 2 of rows has '-1' in column 'insult', expected 0 or 1, since each of"),
        ("no", "row 2 of rows has 'no' in column 'insult', expected 0 or 1"),
        ("nan", "row 2 of rows has 'nan' in column 'insult', expected 0 or 1"),
    ],
)
def test_what_is_neither_0_nor_1_is_named_with_its_column(cell, message):
    rows = [{**ROWS[0], "insult": "0"}, {**ROWS[1], "insult": cell}]
    for check in (check_rows, lambda task, rows: task.learn(rows)):
        with pytest.raises(RowError, match=message):
            check(ONE_HOT, rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": ()}, r"label=\(\): expected a column, or several with 0 and 1"),
        ({"label": ("a", "text")}, r"expected different columns"),
        ({"label": ("a", "b"), "labels": ("b", "a")}, "called after their columns; leave labels"),
        ({"label": ("a", "b"), "separator": ","}, "a column of its own; leave separator out"),
        ({"separator": ","}, "without multi_label=True: one label a row has nothing to separate"),
        ({"separator": "", "multi_label": True}, "separator='': expected a text such as ','"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Classification(**settings)


def test_good_settings_have_no_problem():
    assert label_columns_problems("label", ("a",), ",", several=True) == []
    assert label_columns_problems(("a", "b"), ("a", "b"), None, several=True) == []


@pytest.mark.parametrize(
    ("labels", "mark"),
    [
        ({"a,b": 3, "b,c": 2, "a": 4}, ","),
        ({"a|b": 1, "b|c": 1, "c|a": 1}, "|"),
        ({"Rome, Italy": 3, "Paris, France": 2, "Lyon, France": 3}, None),
        ({"yes, surely": 3, "no, surely": 3, "perhaps": 4}, None),
        ({"a": 500, "b": 500, "a,b": 2}, None),
        ({"ham": 3, "spam": 4}, None),
    ],
)
def test_lists_are_told_from_labels_that_hold_a_comma(labels, mark):
    assert likely_separator(labels) == mark


def texts(*labels):
    return [{"text": f"text number {n}", "label": label} for n, label in enumerate(labels * 5)]


@pytest.mark.parametrize(
    ("task", "advice"),
    [
        (
            Classification(),
            "give multi_label=True, separator=',' (--task multi-label --label-separator \",\").",
        ),
        (Classification(multi_label=True), "give separator=',' (--label-separator \",\")."),
    ],
)
def test_lists_without_a_choice_are_a_finding_that_says_what_to_write(task, advice):
    rows = texts("news,sport", "sport", "news", "news,money", "money")
    (finding,) = [f for f in examine_rows(task, rows).findings if f.what == "list-separator"]
    assert (finding.severity, finding.rows, finding.count) == ("warning", (1, 4, 6, 9, 11), 10)
    assert finding.sentence.startswith("labels such as 'news,sport' look like several")
    assert finding.sentence.endswith(advice)
    chosen = Classification(multi_label=True, separator=",")
    assert not [f for f in examine_rows(chosen, rows).findings if f.what == "list-separator"]


# Names


def test_labels_get_names():
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, {"text": "c", "label": None}]
    named = with_label_names(rows, "label", {0: "ham", "1": "spam"})
    assert named["label"][:] == ["ham", "spam", None]
    mixed = with_label_names([{"label": "1.5"}, {"label": "1"}], "label", {1.0: "spam"})
    assert mixed["label"][:] == ["1.5", "spam"]


def test_several_labels_of_a_cell_get_names():
    cells = [{"label": "0; 1"}, {"label": "[1, 2]"}, {"label": ""}, {"label": "[]"}]
    named = with_label_names(cells, "label", {0: "ham", 1: "spam"}, separator=";")
    assert named["label"][:] == [["ham", "spam"], ["spam", "2"], None, []]
    shares = with_label_names([{"label": {"0": 2, "1": 1}}], "label", {0: "ham", 1: "spam"})
    assert shares["label"][0] == {"ham": 2, "spam": 1}


def test_names_for_labels_that_no_row_has_are_refused():
    with pytest.raises(RowError, match=r"rows has none of the labels \['3'\] in column 'label'; "):
        with_label_names([{"label": "1"}], "label", {3: "spam"})
    with pytest.raises(RowError, match="has no column 'kind'"):
        with_label_names([{"label": "1"}], "kind", {1: "spam"})


def test_a_task_knows_its_target_columns():
    assert ONE_HOT.target_columns() == ("toxic", "insult")
    assert Instruction(template="{input} {output}").target_columns() == ("output",)

"""Rows with errors are left out: each with its reason, and the others keep their numbers."""

import pytest

from peftcls import Classification, ExtractiveQA, Instruction, Regression, RowError
from peftcls.data.reading import as_dataset
from peftcls.data.row_numbers import row_numbers
from peftcls.models.tokenizers import load_tokenizer_only
from peftcls.quality.bad_rows import leave_out_bad_rows


def found(task, rows, **settings):
    kept, bad = leave_out_bad_rows(task, as_dataset(rows), **settings)
    return list(row_numbers(kept)), {row.number: row.reason for row in bad}


def test_a_row_without_a_text_or_a_label_is_left_out():
    rows = [
        {"text": "a", "label": "x"},
        {"text": " ", "label": "y"},
        {"text": "c", "label": None},
        {"text": "d", "label": "y"},
    ]
    kept, bad = found(Classification(), rows)
    assert kept == [1, 4]
    assert bad == {
        2: "has no text in column 'text'; fill it in or leave the row out",
        3: "has no label in column 'label'; fill it in or leave the row out",
    }
    kept, bad = found(Classification(labels=("x", "z")), rows)
    assert kept == [1]
    assert bad[4] == "has the label 'y', expected one of ['x', 'z']"


def test_rows_that_are_all_good_are_the_same_table():
    rows = as_dataset([{"text": "a", "score": 1.0}, {"text": "b", "score": 2.0}])
    assert leave_out_bad_rows(Regression(target="score"), rows) == (rows, [])


def test_rows_that_are_all_bad_are_refused():
    with pytest.raises(RowError, match="row 1 of rows has no text"):
        found(Classification(), [{"text": "", "label": "x"}])
    task = Instruction(template="{input} Answer: ", max_length=8, max_new_tokens=4)
    with pytest.raises(RowError, match="has no column 'output'"):
        found(task, [{"input": "a"}])


def test_questions_are_left_out_by_their_answers_and_ids():
    anna, nobody = {"text": ["Anna"], "answer_start": [0]}, {"text": [], "answer_start": []}
    good = {"question": "who?", "context": "Anna came", "answers": anna, "is_impossible": False}
    rows = [
        {**good, "id": "1"},
        {**good, "id": "2", "answers": {"text": ["Bo"], "answer_start": [0]}},
        {**good, "id": "1"},
        {**good, "id": "4", "is_impossible": True},
        {**good, "id": "5", "is_impossible": True, "answers": nobody},
    ]
    kept, bad = found(ExtractiveQA(), rows, training=True)
    assert kept == [1, 5]
    assert bad[3] == "has the id '1', which row 1 has already"
    assert bad[4].startswith("has an answer though is_impossible is true")
    assert 3 not in found(ExtractiveQA(), rows)[1]


def test_what_does_not_fit_is_found_with_a_tokenizer(llama):
    task = Instruction(template="{input} Answer: ", max_length=32, max_new_tokens=4)
    rows = [{"input": "a", "output": "yes"}, {"input": "b", "output": "no " * 20}]
    assert found(task, rows) == ([1, 2], {})
    kept, bad = found(task, rows, tokenizer=load_tokenizer_only(llama))
    assert kept == [1]
    assert "expected at most 3; shorten it or raise max_new_tokens" in bad[2]


def test_rows_to_train_on_are_left_out_by_their_weights():
    rows = [
        {"text": "a", "label": "x", "weight": "1"},
        {"text": "b", "label": "y", "weight": "heavy"},
        {"text": "c", "label": "y", "weight": "-1"},
        {"text": "d", "label": "y", "weight": "0"},
    ]
    kept, bad = found(Classification(weight="weight"), rows, training=True)
    assert kept == [1, 4]
    assert bad == {
        2: "has 'heavy' in column 'weight', expected a weight of at least 0, such as 0.5",
        3: "has '-1' in column 'weight', expected a weight of at least 0, such as 0.5",
    }
    assert found(Classification(weight="weight"), rows) == ([1, 2, 3, 4], {})

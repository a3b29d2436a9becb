"""`answers_frame`: the columns that `peftcls predict` writes, as a DataFrame; and short reprs."""

import json

import pandas as pd
import pytest

from peftcls import (
    Answer,
    Classification,
    Decisions,
    ExtractiveQA,
    Instruction,
    Regression,
    answers_frame,
)

SURE = Answer(label="yes", probabilities={"no": 0.25, "yes": 0.75})
ABSTAINS = Answer(probabilities={"no": 0.45, "yes": 0.55})
LABELS = Classification(labels=("no", "yes"))
SETS = Classification(labels=("no", "yes"), multi_label=True)
KEYWORDS = Instruction(template="{input} ", separator=";")

KINDS = [
    (LABELS, [SURE, ABSTAINS]),
    (SETS, [Answer(labels=("no", "yes"), probabilities={"no": 0.6, "yes": 0.9})]),
    (SETS, [Answer(labels=(), probabilities={"no": 0.1, "yes": 0.2})]),
    (Regression(), [Answer(value=2.5), Answer(value=-1.0)]),
    (Instruction(template="{input} "), [Answer(text="a drug"), Answer(text="", usable=False)]),
    (KEYWORDS, [Answer(text="a; b", labels=("a", "b")), Answer(text="", labels=(), usable=False)]),
    (
        ExtractiveQA(),
        [
            Answer(text="a drug", start=3, end=9, probability=0.5),
            Answer(text="", probability=0.8, null_probability=0.8),
        ],
    ),
]


def without_gaps(value):
    """A cell as JSON has it; a gap is None."""
    if isinstance(value, list):
        return value
    return None if pd.isna(value) else value


@pytest.mark.parametrize(("task", "answers"), KINDS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_columns_are_those_of_the_file_of_answers(task, answers, probabilities):
    frame = answers_frame(answers, probabilities=probabilities)
    assert list(frame.columns) == list(task.answer_columns(probabilities=probabilities))
    for answer, (_, row) in zip(answers, frame.iterrows(), strict=True):
        expected = task.answer_values(answer, probabilities=probabilities)
        assert [without_gaps(value) for value in row] == expected


def test_the_columns_have_types():
    frame = answers_frame(KINDS[-1][1])
    assert frame.dtypes.astype(str).to_dict() == {
        "text": "object",
        "start": "Int64",
        "end": "Int64",
        "probability": "float64",
    }
    assert json.loads(frame.to_json())["start"] == {"0": 3, "1": None}


def test_the_answers_stand_beside_the_rows_of_the_users_frame():
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["?", "?"]}, index=["x", "y"])
    answers = answers_frame([SURE, ABSTAINS], index=frame.index)
    beside = frame.join(answers.add_prefix("predicted_"))
    assert beside.columns.tolist() == ["text", "label", "predicted_label", "predicted_probability"]
    assert beside.loc["x", "predicted_label"] == "yes"
    assert beside["predicted_probability"].tolist() == [0.75, 0.55]


def test_no_answers_make_an_empty_frame():
    assert answers_frame([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("answers", "index", "sentence"),
    [
        (["yes"], None, r"answer 1 is str, expected the answers of a predictor"),
        ([SURE, Answer(value=1.0)], None, r"answer 2 is of the kind 'number', the first .*'label'"),
        ([SURE], ["x", "y"], r"index has 2 entries for 1 answers"),
    ],
)
def test_what_makes_no_frame_is_refused(answers, index, sentence):
    with pytest.raises(ValueError, match=sentence):
        answers_frame(answers, index=index)


# Descriptions


def test_an_answer_shows_what_is_set():
    assert repr(SURE) == "Answer(label='yes', probabilities={'no': 0.25, 'yes': 0.75})"
    assert repr(Answer(value=1 / 3)) == "Answer(value=0.333333)"
    assert repr(Answer(text="", labels=(), usable=False)) == (
        "Answer(labels=(), text='', usable=False)"
    )
    assert repr(Answer(text="a", start=0, end=1, n_best=(SURE,))).endswith(f"n_best=({SURE!r},))")


def test_many_labels_are_counted_and_not_listed():
    many = {f"label {number}": 0.01 for number in range(100)}
    shown = repr(Answer(label="label 7", probabilities=many))
    assert shown.endswith("'label 9': 0.01, ... 100 in all})")
    assert repr(Classification(labels=tuple(many))).count("label ") == 10


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        (
            Classification(text="title", max_length=64),
            "Classification(text='title', loss='cross_entropy', max_length=64)",
        ),
        (
            Classification(decisions=Decisions(temperature=2.0)),
            "Classification(loss='cross_entropy', decisions=Decisions(temperature=2))",
        ),
        (Regression(mean=0.5), "Regression(mean=0.5)"),
        (ExtractiveQA(n_best=2), "ExtractiveQA(n_best=2)"),
        (KEYWORDS, "Instruction(separator=';', template='{input} ')"),
    ],
)
def test_a_task_shows_what_differs_from_the_defaults(task, shown):
    assert repr(task) == shown

"""Numbers: in the table's own units, whatever the head works with, and never one that is none."""

import json

import pytest
import torch

import peftcls
from peftcls import Regression, RowError
from peftcls.cli import main
from peftcls.data.reading import as_dataset

MEDICAL = [
    "the patient recovered",
    "a new drug was given",
    "the drug and the patient",
    "a patient was given a new drug and recovered",
]
OTHER = [
    "stock prices fell",
    "the bank raised rates",
    "radio waves from a galaxy far away",
    "see you at lunch",
]
ROWS = [
    {"text": f"{text} {n}", "score": score}
    for n in range(2)
    for texts, score in ((MEDICAL, 340.0), (OTHER, 120.0))
    for text in texts
]


@pytest.fixture(scope="module", params=["bert", "llama"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    task = Regression(max_length=32).learn(ROWS)
    model, tokenizer = peftcls.load_base(request.getfixturevalue(request.param), task)
    model = peftcls.attach_lora(model, task, rank=4, targets="all-linear")
    trainer = peftcls.Trainer(
        model,
        task,
        tokenizer,
        peftcls.TrainConfig(
            folder, epochs=40, batch_size=8, learning_rate=5e-3, head_init="random"
        ),
    )
    return trainer, trainer.fit(ROWS, ROWS)


@pytest.mark.slow
def test_a_plain_relation_is_learnt_in_the_units_of_the_table(trained):
    trainer, scores = trained
    assert scores["pearson"] > 0.99
    assert scores["rmse"] < 40
    values = [
        answer.value
        for answer in trainer.predict(
            [{"text": text} for text in ("the patient recovered", "stock prices fell")]
        )
    ]
    assert values == pytest.approx([340, 120], abs=60)


def test_a_loaded_folder_gives_the_same_numbers(trained):
    trainer, _ = trained
    texts = [row["text"] for row in ROWS]
    again = peftcls.load_predictor(trainer.output_dir)
    kept = [answer.value for answer in trainer.predict(ROWS)]
    assert [answer.value for answer in again.predict(texts)] == pytest.approx(kept, rel=1e-5)
    assert again.task == trainer.task
    assert len({round(value) for value in kept}) > 1


def test_the_loss_is_the_squared_error_in_units_of_the_deviation(trained):
    trainer, _ = trained
    task, row = trainer.task, {"text": "see you at lunch", "score": 230.0}
    with torch.no_grad():
        found = task.loss_sum(
            trainer.model,
            task.collate(
                [task.encode(row, trainer.tokenizer, with_target=True)], trainer.tokenizer
            ),
        )
    (answer,) = trainer.predict([row])
    assert (task.mean, task.deviation) == (230, 110)
    assert float(found) == pytest.approx(((answer.value - 230) / 110) ** 2, rel=1e-4)


def test_there_is_nothing_to_calibrate(trained):
    trainer, _ = trained
    with pytest.raises(
        ValueError,
        match=r"^Regression gives no probabilities of labels here, "
        r"so there is nothing to calibrate\.$",
    ):
        trainer.calibrate(ROWS)


def test_a_number_may_be_written_as_text():
    rows = [
        {"text": "a", "score": "3.5"},
        {"text": "b", "score": " -1e1 "},
        {"text": "c", "score": "7"},
    ]
    task = Regression().learn(rows)
    peftcls.check_rows(task, as_dataset(rows), training=True)
    assert task.mean == pytest.approx((3.5 - 10 + 7) / 3)
    assert task.gold_of(rows[0]) == ("3.5",)


@pytest.mark.parametrize("value", ["NA", "nan", "inf", "-inf", "1e999", "", None, "3,5"])
def test_what_is_no_number_is_told_with_its_row(value):
    rows = [{"text": "a", "score": "1"}, {"text": "b", "score": "2"}, {"text": "c", "score": value}]
    task = Regression().learn(rows)
    assert (task.mean, task.deviation) == (1.5, 0.5)
    expected = r"like 0\.5"
    if value == "3,5":
        expected = (
            "with a point and no comma; for a comma before the decimals give "
            r"decimal=',' \(--decimal ,\)"
        )
    sentence = rf"^row 3 of rows has {value!r} in column 'score', expected a number {expected}\.$"
    with pytest.raises(RowError, match=sentence):
        peftcls.check_rows(task, as_dataset(rows), training=True)


@pytest.mark.parametrize(
    ("decimal", "value", "sentence"),
    [
        (".", "155,843.50", "expected a number like 0.5; take out what marks thousands."),
        (".", "1,034", "give decimal=',' (--decimal ,); take out what marks thousands."),
        (",", "53.677", "a number like 0,5, without a point; take out what marks thousands."),
        (",", "53.67", "a number like 0,5, without a point."),
        (".", "1 034", "take out what marks thousands."),
    ],
)
def test_marks_of_thousands_are_to_be_taken_out(decimal, value, sentence):
    task = Regression(decimal=decimal, mean=0.0, deviation=1.0)
    with pytest.raises(RowError) as error:
        peftcls.check_rows(task, as_dataset([{"text": "a", "score": value}]))
    assert str(error.value).endswith(sentence)


def test_numbers_with_a_decimal_comma_are_read_where_it_is_said(bert, tmp_path, capsys):
    numbers = ["3,5", "-10", "7,25e1", "4", " 1,0 "]
    rows = [{"text": f"text {n}", "score": number} for n, number in enumerate(numbers)]
    task = Regression(decimal=",").learn(rows)
    assert [float(task.gold_of(row)[0]) for row in rows] == [3.5, -10, 72.5, 4, 1.0]
    assert task.mean == pytest.approx(14.2)
    assert Regression.from_json(task.to_json()) == task
    with pytest.raises(ValueError, match=r"decimal=';': expected '\.' or ','"):
        Regression(decimal=";")
    for wrong in ("1.234,5", "3.5", "1,2,3", ","):
        problem = task.problem({"text": "a", "score": wrong}, with_target=True)
        assert problem is not None
        assert "expected a number like 0,5, without a point" in problem

    file = tmp_path / "rows.csv"
    lines = [f'text {n} of the lake,"{n},5"' for n in range(40)]
    file.write_text("\n".join(["text,score", *lines]))
    command = ["train", str(file), "--model", bert, "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert main(command) == 1
    assert "--decimal ," in capsys.readouterr().err
    assert main([*command, "--decimal", ","]) == 0
    assert main(["evaluate", str(tmp_path / "run"), str(file)]) == 0
    assert main([*command, "--overwrite", "--task", "classification", "--decimal", ","]) == 1
    assert "--decimal cannot be used with --task classification" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_told_with_its_row(value):
    rows = as_dataset([{"text": "a", "score": 1.0}, {"text": "b", "score": value}])
    with pytest.raises(
        RowError,
        match=rf"^row 2 of rows has {value!r} in column 'score', expected a number like 0\.5\.$",
    ):
        peftcls.check_rows(Regression().learn(rows), rows)


def test_the_same_number_in_every_row_is_nothing_to_learn():
    rows = as_dataset([{"text": "a", "score": "2"}, {"text": "b", "score": "2.0"}])
    with pytest.raises(
        RowError,
        match=r"^rows has the same number in column 'score' of every row; "
        r"there is nothing to learn\.$",
    ):
        peftcls.check_rows(Regression().learn(rows), rows, training=True)


@pytest.mark.parametrize(
    ("given", "mean", "deviation"),
    [
        ({}, 2.0, 1.0),
        ({"mean": 5.0}, 5.0, 1.0),
        ({"deviation": 4.0}, 2.0, 4.0),
        ({"mean": 5.0, "deviation": 4.0}, 5.0, 4.0),
    ],
)
def test_what_is_given_is_not_learnt(given, mean, deviation):
    learnt = Regression(**given).learn([{"text": "a", "score": 1.0}, {"text": "b", "score": 3.0}])
    assert (learnt.mean, learnt.deviation) == (mean, deviation)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"deviation": 0.0}, r"deviation=0\.0: expected a finite number above 0\."),
        (
            {"pooling": "max"},
            r"pooling='max': expected 'cls', 'first', 'last', 'mean' or 'compare'\.",
        ),
        ({"max_length": 4}, r"max_length=4: expected at least 8 tokens\."),
    ],
)
def test_settings_that_cannot_be_are_told(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Regression(**settings)


def test_a_task_that_has_not_learnt_is_told(bert):
    with pytest.raises(
        ValueError,
        match=r"^the mean and deviation of the numbers are not known yet: "
        r"use task = task\.learn\(rows\)\.$",
    ):
        peftcls.load_base(bert, Regression())


def test_scale_and_settings_are_in_the_folder(trained):
    trainer, _ = trained
    task = json.loads((trainer.output_dir / "peftcls.json").read_text())["task"]
    assert (task["name"], task["mean"], task["deviation"]) == ("Regression", 230.0, 110.0)

"""Tables in memory, as users hold them: data frames, columns, data sets with splits and classes."""

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from small_runs import build

import peftcls
from peftcls import Classification, RowError, check_rows
from peftcls.data.reading import as_dataset, read_rows
from peftcls.data.tables import table_of

ROWS = [{"text": f"film {n} was {'good' if n % 2 else 'bad'}", "label": n % 2} for n in range(8)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label")}


class Frame:
    """A data frame of another library, which hands on its columns to Arrow."""

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table(COLUMNS).__arrow_c_stream__(requested_schema)


TABLES = {
    "pandas": pd.DataFrame(ROWS),
    "polars": pl.DataFrame(ROWS),
    "pandas_with_an_index": pd.DataFrame(ROWS, index=[f"row {n}" for n in range(8)]),
    "arrow": pa.table(COLUMNS),
    "another_frame": Frame(),
    "columns": COLUMNS,
    "numpy_columns": {name: np.array(cells) for name, cells in COLUMNS.items()},
    "rows": ROWS,
    "a_generator": (row for row in ROWS),
    "a_data_set": datasets.Dataset.from_list(ROWS),
    "a_single_split": datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_what_users_hold_is_the_same_table(rows):
    assert as_dataset(rows).to_list() == ROWS


def test_missing_cells_of_a_data_frame_are_missing():
    frame = pd.DataFrame({"text": ["a", None, np.nan]})
    assert as_dataset(frame)["text"][:] == ["a", None, None]
    with pytest.raises(RowError, match="row 2 of rows has no text in column 'text'"):
        check_rows(Classification(), frame, with_target=False)


def test_categories_are_their_names():
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": pd.Categorical(["no", "yes", None])})
    assert as_dataset(frame)["label"][:] == ["no", "yes", None]


def test_the_types_of_newer_data_frames_are_the_usual_ones():
    """polars hands on views of texts, lists of them, and categories whose names are views."""
    names = pa.array(["no", "yes"]).cast(pa.string_view())
    table = pa.table(
        {
            "text": pa.array(["a", "b", None]).cast(pa.string_view()),
            "label": pa.DictionaryArray.from_arrays(pa.array([1, None, 0]), names),
            "tags": pa.array([["x"], [], ["y", "x"]], pa.large_list(pa.string_view())),
        }
    )
    rows = as_dataset(table)
    assert rows.select([2, 0]).to_list() == [
        {"text": None, "label": "no", "tags": ["y", "x"]},
        {"text": "a", "label": "yes", "tags": ["x"]},
    ]
    assert "view" not in str(rows.features)


def test_categories_lists_and_gaps_of_polars_are_those_of_the_table():
    frame = pl.DataFrame(
        {"text": ["a", "b", None], "label": ["yes", None, "no"], "tags": [["x"], [], ["y", "x"]]},
        schema_overrides={"label": pl.Categorical},
    )
    rows = as_dataset(frame)
    assert rows.to_list() == [
        {"text": "a", "label": "yes", "tags": ["x"]},
        {"text": "b", "label": None, "tags": []},
        {"text": None, "label": "no", "tags": ["y", "x"]},
    ]
    with pytest.raises(RowError, match=r"found a LazyFrame: call its collect\(\) first"):
        as_dataset(frame.lazy())


def test_a_column_of_values_of_several_types_is_refused():
    with pytest.raises(RowError, match=r"cannot be made into a table: .*one type of value"):
        as_dataset(pd.DataFrame({"text": ["a", 1, [2]]}))


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([{"text": "a", "n": 1}, {"text": None}, {"text": 2}], "row 3 has '2' (int) in column"),
        ({"text": ["a", "b"], "label": ["x", True]}, "row 2 has 'True' (bool) in column 'label'"),
        (pd.DataFrame({"text": ["a", 1]}), "row 2 has '1' (int) in column 'text', where row 1 has"),
        (
            [{"label": ["a"]}, {"label": ["b", True]}],
            """row 2 has "['b', True]" (list) in column""",
        ),
    ],
)
def test_the_value_that_does_not_fit_into_its_column_is_named(rows, place):
    with pytest.raises(RowError) as told:
        as_dataset(rows, "mine")
    assert str(told.value).startswith(f"mine cannot be made into a table: {place}")
    assert str(told.value).endswith("; use one type of value in each column.")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({"text": ["a", "b"], "label": ["x"]}, "column 'text' and column 'label' have 2 and 1"),
        ({"text": ["a", "b\ud800"]}, "row 2 has half of a surrogate pair"),
        ([{"text": "a"}, {"text": "b\ud800"}], "row 2 has half of a surrogate pair"),
    ],
    ids=["lengths", "surrogate", "surrogate-in-rows"],
)
def test_columns_that_make_no_table_are_told_why(rows, problem):
    with pytest.raises(RowError) as told:
        as_dataset(rows, "mine")
    assert str(told.value).startswith(f"mine cannot be made into a table: {problem}")
    assert "type of value" not in str(told.value)


def test_a_column_name_that_occurs_twice_is_refused():
    frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    doubled = pa.table([["a"], ["b"]], names=["text", "text"])
    for table in (frame, doubled):
        sentence = r"^train has 2 columns with the name 'text', expected a name of its own for each"
        with pytest.raises(RowError, match=sentence):
            as_dataset(table, "train")


def test_an_empty_frame_has_no_rows():
    with pytest.raises(RowError, match="train has no rows"):
        as_dataset(pd.DataFrame({"text": []}), "train")


def test_one_row_is_no_mapping_of_columns():
    assert table_of({"text": "one", "label": "two"}, "rows") is None
    assert table_of({"text": "one", "labels": ["a", "b"]}, "rows") is None


def with_classes():
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
        }
    )
    rows = [{**row, "tags": [row["label"], 0][: 1 + row["label"]]} for row in ROWS]
    rows.append({"text": "not labelled", "label": -1, "tags": []})
    return datasets.Dataset.from_list(rows, features=features)


def test_classes_keep_their_names(tmp_path):
    table = with_classes()
    assert Classification().learn(table.select(range(8))).labels == ("bad", "good")
    assert as_dataset(table)["label"][-3:] == ["bad", "good", None]
    assert as_dataset(table)["tags"][:2] == [["x"], ["y", "x"]]
    assert as_dataset(table).column_names == table.column_names
    table.to_parquet(tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet")["label"][:2] == ["bad", "good"]
    named = Classification(labels=("bad", "good"))
    check_rows(named, table.select(range(8)))


def test_truth_values_keep_their_names():
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [True, False]})
    assert Classification().learn(table).labels == ("False", "True")


def test_several_splits_are_refused_where_one_is_meant():
    splits = datasets.DatasetDict(train=as_dataset(ROWS), test=as_dataset(ROWS))
    with pytest.raises(
        RowError, match=r"rows has the splits \['train', 'test'\]; give one of them, such as rows\["
    ):
        as_dataset(splits)


def test_a_training_uses_the_splits_train_and_validation(bert, text_rows, tmp_path):
    splits = datasets.DatasetDict(
        train=as_dataset(text_rows), validation=as_dataset(text_rows[:6]), test=as_dataset(ROWS)
    )
    assert Classification().learn(splits).labels == Classification().learn(text_rows).labels
    trainer = build(bert, tmp_path / "splits", text_rows)
    scores = trainer.fit(splits)
    expected = build(bert, tmp_path / "rows", text_rows).fit(text_rows, text_rows[:6])
    assert scores == pytest.approx(expected)


def test_each_use_takes_its_split(bert, text_rows, tmp_path):
    train, valid, test = text_rows, text_rows[:6], text_rows[2:8]
    splits = datasets.DatasetDict(
        train=as_dataset(train), validation=as_dataset(valid), test=as_dataset(test)
    )
    trainer = build(bert, tmp_path / "run", text_rows)
    found = peftcls.examine_rows(trainer.task, splits)
    assert str(found) == str(peftcls.examine_rows(trainer.task, train, valid, test))
    peftcls.check_rows(trainer.task, splits)
    assert trainer.evaluate(splits) == trainer.evaluate(test)
    answers = trainer.predict(splits)
    assert answers == trainer.predict(test)
    found = peftcls.evaluate_answers(trainer.task, answers, splits)
    assert str(found) == str(peftcls.evaluate_answers(trainer.task, answers, test))
    assert trainer.dry_run(splits).rows == trainer.dry_run(train).rows


def test_folds_and_sweeps_take_the_training_split(bert, text_rows, tmp_path):
    splits = datasets.DatasetDict(train=as_dataset(text_rows), validation=as_dataset(text_rows[:6]))
    scores = []
    for name, rows in (("splits", (splits,)), ("rows", (text_rows, text_rows[:6]))):
        trainer = build(bert, tmp_path / name, text_rows)
        parts = (trainer.model, trainer.task, trainer.tokenizer)
        swept = peftcls.sweep(*parts, {"one": trainer.config}, *rows)
        folded = peftcls.cross_validate(*parts, trainer.config, rows[0], folds=2)
        scores.append((swept[0].scores, folded.scores))
    assert scores[0] == scores[1]


# Answers


@pytest.fixture(scope="module")
def predictor(bert):
    task = Classification(labels=("no", "yes"))
    model, tokenizer = peftcls.load_base(bert, task)
    return peftcls.Predictor(model, task, tokenizer)


@pytest.mark.parametrize("rows", [v for k, v in TABLES.items() if k != "a_generator"])
def test_rows_are_answered_and_not_the_names_of_columns(predictor, rows):
    expected = predictor.predict([row["text"] for row in ROWS])
    for found, right in zip(predictor.predict(rows), expected, strict=True):
        assert found.probabilities == pytest.approx(right.probabilities, abs=1e-6)


@pytest.mark.parametrize("one", [ROWS[0]["text"], {"text": ROWS[0]["text"]}, ROWS[0]])
def test_one_text_and_one_row_are_answered(predictor, one):
    (found,) = predictor.predict(one)
    (right,) = predictor.predict([ROWS[0]["text"]])
    assert found.probabilities == pytest.approx(right.probabilities, abs=1e-6)


def test_one_pair_is_answered(bert, tmp_path):
    task = Classification(text=("a", "b"), labels=("no", "yes"))
    model, tokenizer = peftcls.load_base(bert, task)
    predictor = peftcls.Predictor(model, task, tokenizer)
    (found,) = predictor.predict(("radio waves", "stock prices"))
    (right,) = predictor.predict([("radio waves", "stock prices")])
    assert found.probabilities == pytest.approx(right.probabilities, abs=1e-6)


@pytest.mark.parametrize("rows", [None, 3, b"text", 1.5])
def test_what_is_no_table_and_no_text_is_refused(predictor, rows):
    with pytest.raises(RowError, match=f"found {type(rows).__name__}"):
        predictor.predict(rows)


def test_several_adapters_answer_a_frame(bert, text_rows, tmp_path):
    for name in ("one", "two"):
        build(bert, tmp_path / name, text_rows).fit(text_rows)
    together = peftcls.load_predictor([tmp_path / "one", tmp_path / "two"])
    expected = together.predict([row["text"] for row in ROWS], "one")
    for found in (together.predict(TABLES["pandas"], "one"), together.predict(COLUMNS, "one")):
        assert [a.label for a in found] == [a.label for a in expected]
    assert len(together.predict_all("radio waves")["two"]) == 1


def test_a_column_of_a_frame_is_no_table():
    assert table_of(pd.Series(["a", "b"]), "rows") is None


def test_what_is_a_table_already_is_taken_as_it_is():
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    columns = {"text": ["a", "b"], "label": ["x", "y"]}
    whole = datasets.Dataset.from_list(rows)
    for table in (rows, columns, whole, pd.DataFrame(rows), datasets.DatasetDict(train=whole)):
        assert read_rows(table).to_list() == rows
    splits = datasets.DatasetDict(train=whole, test=whole.select([0]))
    assert read_rows(splits, split="test").to_list() == rows[:1]
    with pytest.raises(RowError, match=r"split='dev': this table has \['train', 'test'\]"):
        read_rows(splits, split="dev")
    with pytest.raises(RowError, match="split='dev': this table has no splits"):
        read_rows(rows, split="dev")
    with pytest.raises(ValueError, match="source=None: expected a text or a path"):
        read_rows(None)


def test_a_dict_of_columns_of_data_frames_is_a_table():
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    other = pl.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    expected = frame.to_dict("records")
    for each in (frame, other):
        table = as_dataset({"text": each["text"], "label": each["label"]})
        assert table.to_list() == expected


def test_a_file_is_no_table_and_what_reads_it_is_named():
    with pytest.raises(RowError, match=r"found 'rows.csv'; read a file with read_rows"):
        as_dataset("rows.csv")

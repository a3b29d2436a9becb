"""The estimators for scikit-learn: what they take, pickles, searches, and its own checks."""

import io
import pickle
import tempfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError, SkipTestWarning
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data

from peftcls import load_predictor
from peftcls.sklearn import TextClassifier, TextRegressor
from peftcls.sklearn.targets import read_labels

FAST = {"epochs": 1, "batch_size": 8, "max_length": 16, "rank": 2}
LEARNS = {**FAST, "epochs": 8, "learning_rate": 1e-2}
TEXTS = [
    f"{text} {number}"
    for number in range(2)
    for text in (
        "the patient recovered",
        "a new drug was given",
        "the drug and the patient",
        "a patient was given a new drug and recovered",
        "stock prices fell",
        "the bank raised rates",
        "radio waves from a galaxy far away and away",
        "see you at lunch",
    )
]
LABELS = ["yes", "yes", "yes", "yes", "no", "no", "no", "no"] * 2
LARGEST_PICKLE = 400_000
"""Bytes; the tiny base has more than twice as many."""


@pytest.fixture
def texts():
    return list(TEXTS)


@pytest.fixture
def labels():
    return list(LABELS)


@pytest.fixture
def classifier(bert):
    return TextClassifier(bert, **FAST)


@pytest.fixture(scope="module")
def fitted(bert):
    """A classifier that has learnt the labels; tests leave it as it is."""
    return TextClassifier(bert, **LEARNS).fit(TEXTS, LABELS)


@pytest.fixture
def regressor(bert):
    return TextRegressor(bert, **FAST)


def shout(texts):
    return [text.upper() for text in texts]


# What X may be


def test_a_classifier_learns_labels_and_gives_their_probabilities(fitted, texts, labels):
    assert fitted.predict(texts).tolist() == labels
    assert fitted.score(texts, labels) == 1.0
    probabilities = fitted.predict_proba(texts)
    assert probabilities.shape == (16, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    assert (fitted.classes_[probabilities.argmax(1)] == np.array(labels)).all()
    odds = np.log(probabilities[:, 1] / probabilities[:, 0])
    np.testing.assert_allclose(fitted.decision_function(texts), odds)


@pytest.mark.parametrize(
    "held",
    [
        tuple,
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: np.array(texts)[:, None],
        lambda texts: pd.Series(texts, name="other", index=range(7, 7 + len(texts))),
        lambda texts: pd.DataFrame({"other": texts}),
        lambda texts: [[text] for text in texts],
    ],
    ids=["tuple", "array", "objects", "column of an array", "Series", "DataFrame", "lists of one"],
)
def test_texts_may_be_held_in_any_way(held, fitted, texts):
    expected = fitted.predict_proba(texts)
    np.testing.assert_allclose(fitted.predict_proba(held(texts)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "held", [list, np.array, lambda pairs: pd.DataFrame(pairs, columns=["a", "b"])]
)
def test_pairs_of_texts_are_read_as_pairs(held, classifier, texts, labels):
    pairs = held([["drug", text] for text in texts])
    classifier.fit(pairs, labels)
    assert len(classifier.predictor_.task.text_columns()) == 2
    assert classifier.predict(pairs).shape == (16,)
    with pytest.raises(ValueError, match=r"X has texts, but the estimator was fitted on pairs"):
        classifier.predict(texts)


def test_the_columns_of_a_frame_are_remembered(classifier, texts, labels):
    frame = pd.DataFrame({"title": texts, "abstract": texts})
    classifier.fit(frame, labels)
    assert classifier.feature_names_in_.tolist() == ["title", "abstract"]
    assert classifier.predictor_.task.text == ("title", "abstract")
    swapped = r"X has the columns \['abstract', 'title'\].* fitted on \['title', 'abstract'\]"
    with pytest.raises(ValueError, match=swapped):
        classifier.predict(frame[["abstract", "title"]])
    classifier.fit(texts, labels)
    assert not hasattr(classifier, "feature_names_in_")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (scipy.sparse.eye_array(3), r"X is a sparse matrix, expected texts"),
        (np.eye(3), r"X holds numbers \(shape \(3, 3\), type float64\), expected texts"),
        (pd.DataFrame({"n": [1, 2, 3]}), r"X holds numbers \(shape \(3, 1\)"),
        (["a", "b", 3], r"row 3 of X is 3 \(int\), expected a text; fill it in"),
        (["a", None, "c"], r"row 2 of X is None \(NoneType\), expected a text"),
        (pd.Series(["a", np.nan, "c"]), r"row 2 of X is nan \(float\), expected a text"),
        (["a", " ", "c"], r"row 2 of X has an empty text; fill it in"),
        ([("a", "b"), ("c",), ("d", "e")], r"row 2 of X has 1 columns, row 1 has 2"),
        ([("a", "b", "c")] * 3, r"X has 3 columns, expected texts .* choose them first"),
        ("one text", r"X is 'one text' \(str\), expected texts"),
        ({"a", "b"}, r"X is \{.*\} \(set\), expected texts"),
        ([], r"X has no rows"),
        (np.full((2, 2, 2), "a"), r"X has 3 dimensions"),
    ],
)
def test_what_are_no_texts_is_refused(wrong, sentence, classifier, fitted):
    with pytest.raises(ValueError, match=sentence):
        clone(classifier).fit(wrong, ["yes", "no", "no"])
    with pytest.raises(ValueError, match=sentence):
        fitted.predict(wrong)


def test_x_and_y_have_the_same_length(classifier, regressor, texts):
    for estimator in (classifier, regressor):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            estimator.fit(texts, [1, 2])


# What y may be


@pytest.mark.parametrize(
    "classes",
    [["no", "yes"], [3, 10], [False, True], [1.0, 2.0], [-1, 1]],
    ids=["texts", "whole numbers", "truth values", "floats", "negative numbers"],
)
@pytest.mark.parametrize("held", [list, pd.Series])
def test_labels_keep_their_type(classes, held, bert, texts):
    y = held([classes[number % 2] for number in range(len(texts))])
    classifier = TextClassifier(bert, **FAST).fit(texts, y)
    assert classifier.classes_.tolist() == classes
    assert classifier.classes_.dtype == np.unique(y).dtype
    assert classifier.predict(texts).dtype == classifier.classes_.dtype
    assert set(classifier.predict(texts).tolist()) <= set(classes)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (pd.Series([2, 1, 2], dtype="Int64"), np.array([1, 2])),
        (pd.Series([True, False, True], dtype="boolean"), np.array([False, True])),
        (pd.Series(["b", "a", "b"], dtype="category"), np.array(["a", "b"], dtype=object)),
        (pd.Series(["b", "a", "b"], dtype="string"), np.array(["a", "b"], dtype=object)),
    ],
    ids=["Int64", "boolean", "category", "string"],
)
def test_types_of_pandas_are_read_as_those_of_numpy(y, classes):
    found = read_labels(y).classes
    assert found.dtype == classes.dtype
    assert found.tolist() == classes.tolist()


def test_labels_are_in_the_order_of_numbers(bert, texts):
    y = [(10, 9, 100)[number % 3] for number in range(len(texts))]
    classifier = TextClassifier(bert, **FAST).fit(texts, y)
    assert classifier.classes_.tolist() == [9, 10, 100]
    assert classifier.predictor_.label_names == ("9", "10", "100")
    logs = classifier.decision_function(texts)
    np.testing.assert_allclose(np.exp(logs), classifier.predict_proba(texts))


def test_a_table_of_zeros_and_ones_is_several_labels(bert, texts, labels):
    medical = np.array(labels) == "yes"
    y = pd.DataFrame({"medical": medical, "money": ~medical, "long": medical}).astype(int)
    classifier = TextClassifier(bert, **LEARNS).fit(texts, y)
    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.predictor_.label_names == ("medical", "money", "long")
    assert classifier.predict(texts).tolist() == y.to_numpy().tolist()
    assert classifier.score(texts, y) == 1.0
    probabilities = classifier.predict_proba(texts)
    assert probabilities.shape == (16, 3)
    assert ((classifier.decision_function(texts) > 0) == (probabilities > 0.5)).all()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (None, r"the target y is None"),
        (["a"] * 3, r"y has one class only, \['a'\]; a classifier needs at least two"),
        ([0.5, 1.0, 2.0], r"Unknown label type: continuous\. y has 0\.5.* TextRegressor"),
        ([0.0, 1.0, np.nan], r"Input y contains NaN or None: row 3 has no label"),
        (["a", None, "b"], r"Input y contains NaN or None: row 2"),
        (np.array(["a", 1, "b"], dtype=object), r"labels of the types \['int', 'str'\]"),
        (["a", "a ", "b"], r"y has the labels \['a', 'a '\], which are one label, 'a'"),
        (["", "a", "b"], r"y has an empty label"),
        ([[0, 2], [1, 1], [1, 0]], r"y has the shape \(3, 2\) and other values than 0 and 1"),
    ],
)
def test_what_are_no_labels_is_refused(wrong, sentence, classifier):
    with pytest.raises(ValueError, match=sentence):
        classifier.fit(["a", "b", "c"], wrong)
    assert not hasattr(classifier, "classes_")


def test_a_column_of_labels_is_taken_with_a_warning(bert, texts, labels):
    with pytest.warns(DataConversionWarning):
        classifier = TextClassifier(bert, **FAST).fit(texts, np.array(labels)[:, None])
    assert classifier.classes_.tolist() == ["no", "yes"]


def test_a_regressor_learns_numbers(bert, texts, labels):
    y = [5.0 if label == "yes" else -5.0 for label in labels]
    regressor = TextRegressor(bert, **{**LEARNS, "epochs": 30}).fit(texts, y)
    assert regressor.predict(texts).shape == (16,)
    assert regressor.score(texts, y) > 0.5
    assert not hasattr(regressor, "predict_proba")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (None, r"the target y is None"),
        (["a", "b", "c"], r"y holds no numbers \(.*TextClassifier learns labels"),
        ([1.0, np.nan, 2.0], r"Input y contains NaN"),
        ([1.0, 1.0, 1.0], r"the same number"),
        (pd.to_datetime(["2020", "2021", "2022"]), r"y is of the type datetime64"),
        ([[1.0, 2.0]] * 3, r"1d array"),
    ],
)
def test_what_are_no_numbers_is_refused(wrong, sentence, regressor):
    with pytest.raises(ValueError, match=sentence):
        regressor.fit(["a", "b", "c"], wrong)


# Settings


def test_settings_reach_the_training(bert, texts, labels):
    classifier = TextClassifier(
        bert,
        rank=np.int64(3),
        targets="all-linear",
        method="rslora",
        epochs=np.int64(2),
        batch_size=5,
        learning_rate=np.float64(2e-3),
        max_length=12,
        class_weight={"yes": 2.0, "no": 1.0},
        seed=7,
    ).fit(texts, labels)
    predictor = classifier.predictor_
    settings = predictor.model.peft_config["default"]
    assert (settings.r, settings.use_rslora) == (3, True)
    assert (predictor.task.max_length, predictor.task.class_weight["yes"]) == (12, 2.0)
    assert [entry["step"] for entry in classifier.history_] == [8]  # 2 epochs of 4 steps


def test_the_defaults_are_those_of_the_package(bert, texts, labels):
    classifier = TextClassifier(bert).fit(texts, labels)
    assert classifier.predictor_.model.peft_config["default"].r == 16
    assert classifier.predictor_.task.max_length == 512
    assert classifier.history_[-1]["step"] == 40  # at most 40 epochs for a table as small


@pytest.mark.parametrize("estimator", [TextClassifier, TextRegressor])
def test_a_setting_with_the_name_of_another_library_is_named(estimator):
    sentence = rf"^{estimator.__name__} has no argument lr=; it is called learning_rate= here\.$"
    with pytest.raises(TypeError, match=sentence):
        estimator("demo", lr=1e-3)
    with pytest.raises(TypeError, match="has no argument random_state=; it is called seed= here"):
        estimator(random_state=0)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"epochs": 0}, "epochs=0: expected a whole number of at least 1"),
        ({"rank": 0}, "rank=0"),
        ({"max_length": 2}, "max_length=2: expected at least 8 tokens"),
        ({"class_weight": "often"}, "class_weight='often': expected 'balanced'"),
        ({"base": "no/such/folder/"}, "no folder no/such/folder/"),
    ],
)
def test_a_wrong_setting_is_refused_when_it_is_fitted(setting, sentence, classifier, texts, labels):
    classifier.set_params(**setting)
    with pytest.raises(ValueError, match=sentence):
        classifier.fit(texts, labels)


def test_the_same_seed_gives_the_same_answers(bert, texts, labels):
    first, second = (TextClassifier(bert, **FAST, seed=3).fit(texts, labels) for _ in range(2))
    other = TextClassifier(bert, **FAST, seed=4).fit(texts, labels)
    np.testing.assert_array_equal(first.predict_proba(texts), second.predict_proba(texts))
    assert not np.array_equal(first.predict_proba(texts), other.predict_proba(texts))


# Weights of rows


def test_rows_with_more_weight_count_more(bert, texts, labels):
    wrong = ["no" if label == "yes" else "yes" for label in labels]
    both, y = [*texts, *texts], [*labels, *wrong]
    classifier = TextClassifier(bert, **LEARNS)
    classifier.fit(both, y, sample_weight=[0.0] * 16 + [1.0] * 16)
    # Without the weights each text has both labels as often.
    assert classifier.score(texts, wrong) >= 0.75
    regressor = TextRegressor(bert, **LEARNS)
    regressor.fit(both, [1.0] * 16 + [9.0] * 16, sample_weight=[1.0] * 16 + [0.01] * 16)
    assert regressor.predict(texts).mean() < 3


def test_equal_weights_are_as_none(classifier, texts, labels):
    plain = clone(classifier).fit(texts, labels).predict_proba(texts)
    weights = pd.Series([2.5] * 16, index=range(5, 21))
    equal = clone(classifier).fit(texts, labels, sample_weight=weights).predict_proba(texts)
    np.testing.assert_array_equal(plain, equal)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0, -1.0, 1.0], r"sample_weight of row 2 is -1\.0, expected a weight of at least 0"),
        ([1.0, 1.0, np.nan], r"sample_weight of row 3 is nan"),
        ([0, 0, 0], r"sample_weight is zero for every row"),
        ([1.0, 2.0], r"sample_weight has the shape \(2,\), expected \(3,\)"),
        (["a", "b", "c"], r"sample_weight holds no numbers"),
    ],
)
def test_what_are_no_weights_is_refused(weights, sentence, classifier, regressor):
    for estimator, y in ((classifier, ["a", "b", "a"]), (regressor, [1.0, 2.0, 3.0])):
        with pytest.raises(ValueError, match=sentence):
            estimator.fit(["one", "two", "three"], y, sample_weight=weights)
    with pytest.raises(ValueError, match=r"above zero have one class only, \['a'\]"):
        classifier.fit(["one", "two", "three"], ["a", "b", "a"], sample_weight=[1, 0, 2])


# Folders and pickles


def test_no_temporary_folder_is_left(bert, texts, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    classifier = TextClassifier(bert, **FAST).fit(texts, labels)
    pickle.loads(pickle.dumps(classifier)).predict(texts)
    with pytest.raises(ValueError, match="epochs"):
        clone(classifier).set_params(epochs=0).fit(texts, labels)
    assert list(tmp_path.iterdir()) == []


def test_output_dir_keeps_the_adapter_folder(bert, texts, labels, tmp_path):
    folder = tmp_path / "runs" / "kept"
    classifier = TextClassifier(bert, **FAST, output_dir=folder).fit(texts, labels)
    expected = classifier.predict_proba(texts)
    saved = classifier.save(tmp_path / "copy")
    for directory in (folder, saved):
        answers = load_predictor(directory).predict(texts)
        found = [list(answer.probabilities.values()) for answer in answers]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert {file.name for file in saved.iterdir()} == {file.name for file in folder.iterdir()}


def test_a_pickle_holds_the_adapter_and_not_the_base(fitted, bert, texts):
    expected = fitted.predict_proba(texts)
    pickled = pickle.dumps(fitted)
    assert len(pickled) < LARGEST_PICKLE
    assert Path(bert, "model.safetensors").stat().st_size > 2 * LARGEST_PICKLE
    loaded = pickle.loads(pickled)
    check_is_fitted(loaded)
    np.testing.assert_allclose(loaded.predict_proba(texts), expected, atol=1e-6)
    assert loaded.history_ == fitted.history_


def test_joblib_dumps_and_loads_an_estimator(regressor, texts):
    regressor.fit(texts, range(16))
    file = io.BytesIO()
    joblib.dump(regressor, file)
    file.seek(0)
    loaded = joblib.load(file)
    np.testing.assert_allclose(loaded.predict(texts), regressor.predict(texts), atol=1e-5)


def test_a_loaded_estimator_can_be_shown_where_its_base_is(bert, texts, labels, tmp_path):
    there = tmp_path / "there"
    there.symlink_to(bert)
    classifier = TextClassifier(there, **FAST).fit(texts, labels)
    loaded = pickle.loads(pickle.dumps(classifier))
    there.unlink()
    with pytest.raises(ValueError, match="cannot be loaded without its base"):
        loaded.predict(texts)
    loaded.set_params(base=bert)
    np.testing.assert_allclose(loaded.predict_proba(texts), classifier.predict_proba(texts))


def test_what_was_not_fitted_says_so(classifier, regressor, texts, tmp_path):
    for estimator in (classifier, regressor):
        with pytest.raises(NotFittedError):
            estimator.predict(texts)
        with pytest.raises(NotFittedError):
            estimator.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# Bars


def test_no_bar_is_shown_unless_it_is_asked_for(bert, texts, labels, capsys):
    TextClassifier(bert, **FAST).fit(texts, labels)
    assert capsys.readouterr().err == ""
    TextClassifier(bert, **FAST, verbose=True).fit(texts, labels)
    assert "row" in capsys.readouterr().err


# Inside scikit-learn


def test_an_estimator_is_cloned_without_what_it_has_learnt(fitted, bert):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert copied.base == bert
    with pytest.raises(NotFittedError):
        check_is_fitted(copied)
    assert repr(copied).startswith("TextClassifier(base=")


def test_a_pipeline_hands_its_texts_on(bert, texts, labels):
    learner = TextClassifier(bert, **LEARNS)
    pipeline = make_pipeline(FunctionTransformer(shout), learner).fit(texts, labels)
    assert pipeline.score(texts, labels) == 1.0


@pytest.mark.parametrize("held", [list, pd.Series])
def test_a_search_tries_settings_over_folds(held, bert, texts, labels):
    search = GridSearchCV(TextClassifier(bert, **FAST), {"rank": [1, 2]}, cv=2)
    search.fit(held(texts), held(labels))
    assert len(search.cv_results_["mean_test_score"]) == 2
    assert search.best_estimator_.rank == search.best_params_["rank"]
    assert search.predict(held(texts)).shape == (16,)


def test_scores_that_need_probabilities_are_found(bert, texts, labels):
    classifier = TextClassifier(bert, **FAST)
    by_decision = cross_val_score(classifier, texts, labels, cv=2, scoring="roc_auc")
    by_probability = cross_val_score(
        classifier,
        texts,
        labels,
        cv=2,
        scoring=make_scorer(roc_auc_score, response_method="predict_proba"),
    )
    np.testing.assert_allclose(by_decision, by_probability)


@pytest.mark.slow
def test_folds_run_in_processes_of_their_own(bert, texts, labels):
    classifier = TextClassifier(bert, **FAST)
    arguments = {"cv": 2, "method": "predict_proba"}
    alone = cross_val_predict(classifier, texts, labels, **arguments)
    apart = cross_val_predict(classifier, texts, labels, n_jobs=2, **arguments)
    np.testing.assert_allclose(apart, alone, atol=1e-5)


# scikit-learn's own checks


@pytest.mark.parametrize("estimator", [TextClassifier(), TextRegressor()])
def test_scikit_learn_accepts_the_estimators_as_they_are(estimator):
    with pytest.warns(SkipTestWarning, match="requires input"):  # it has checks for numbers only
        results = check_estimator(estimator)
    assert {result["status"] for result in results} == {"passed"}


def as_texts(X):
    return [" ".join(f"{number:.2g}" for number in row) for row in np.asarray(X, dtype=float)]


class _ReadsNumbers:
    """Reads a matrix of numbers as texts, since all checks of scikit-learn give such a matrix."""

    def _texts(self, X, **settings):
        return as_texts(validate_data(self, X, **settings))

    def fit(self, X, y, sample_weight=None):
        return super().fit(self._texts(X), y, sample_weight)

    def predict(self, X):
        check_is_fitted(self)
        return super().predict(self._texts(X, reset=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        kind = tags.classifier_tags or tags.regressor_tags
        kind.poor_score = True  # a tiny base with random weights is no good with digits
        return tags


class NumberClassifier(_ReadsNumbers, TextClassifier):
    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(self._texts(X, reset=False))


class NumberRegressor(_ReadsNumbers, TextRegressor):
    pass


SUBSETS = ("check_methods_subset_invariance",)
# It allows 1e-7, as float64 rounds. A base computes in float32, and in batches of other shapes.
ROUNDING = pytest.mark.xfail(reason="float32 rounds by 1e-5 where a batch has another shape")
REPEATED = ("check_sample_weight_equivalence_on_dense_data",)
# It repeats rows instead of weighting them. Then there are more rows, more steps, in another order.
STEPS = pytest.mark.xfail(reason="repeated rows are more steps, as for SGDClassifier")


def scikit_learns_checks():
    """scikit-learn's checks of an estimator; two are expected to fail."""
    for estimator in (NumberClassifier(**FAST), NumberRegressor(**FAST)):
        for _, check in estimator_checks_generator(estimator):
            # The same texts are made of numbers of any type, wherever they are in memory.
            if not {"readonly_memmap", "X_dtype"} & set(check.keywords):
                name = f"{type(estimator).__name__}-{check.func.__name__}"
                marks = ROUNDING if check.func.__name__ in SUBSETS else ()
                if check.func.__name__ in REPEATED:
                    marks = STEPS
                yield pytest.param(estimator, check, id=name, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "check"), list(scikit_learns_checks()))
def test_scikit_learns_checks_pass(estimator, check, bert):
    check(clone(estimator).set_params(base=bert))

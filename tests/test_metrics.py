"""Scores against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from peftcls import metrics
from peftcls.metrics import (
    interval,
    interval_of_difference,
    interval_of_share,
    keyword_scores,
    label_loss,
    label_scores,
    label_set_scores,
)


def close(found: dict[str, float], **expected: float) -> bool:
    return all(found[name] == pytest.approx(value) for name, value in expected.items())


def test_label_scores_are_those_worked_out_by_hand():
    # a: tp 2, fp 1, fn 0, F1 4/5; b: tp 1, fp 0, fn 1, F1 2/3; c: tp 1, F1 1.
    found = label_scores(["a", "a", "b", "b", "c"], ["a", "a", "b", "a", "c"])
    assert found == pytest.approx({"accuracy": 4 / 5, "f1_macro": (4 / 5 + 2 / 3 + 1) / 3})


def test_a_label_that_is_only_predicted_lowers_macro_f1():
    assert label_scores(["a", "a"], ["a", "b"]) == pytest.approx(
        {"accuracy": 0.5, "f1_macro": (2 / 3 + 0) / 2}
    )


def test_a_right_and_a_wrong_row_alone_score_one_and_zero():
    assert label_scores(["a"], ["a"]) == {"accuracy": 1.0, "f1_macro": 1.0}
    assert label_scores(["a"], ["b"]) == {"accuracy": 0.0, "f1_macro": 0.0}


def test_the_loss_is_the_mean_negative_log_likelihood_in_nats():
    found = label_loss(["a", "b"], [{"a": 0.5, "b": 0.5}, {"b": 0.25, "a": 0.75}], ["b", "a"])
    assert found == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_the_loss_of_probabilities_that_round_to_a_little_less_than_one_is_right_too():
    assert label_loss(["a"], [{"a": 0.5 - 1e-7, "b": 0.5 - 1e-7}], ["a", "b"]) == pytest.approx(
        math.log(2)
    )


def test_label_set_scores_are_those_worked_out_by_hand():
    gold = [["a", "b"], ["b"], [], ["c"]]
    predicted = [["b", "a"], ["a"], [], ["b", "c"]]
    # a: tp 1, fp 1, fn 0, F1 2/3; b: tp 1, fp 1, fn 1, F1 1/2; c: tp 1, F1 1.
    # Together tp 3, fp 2, fn 1, F1 6/9.
    assert label_set_scores(gold, predicted, ["a", "b", "c"]) == pytest.approx(
        {"f1_macro": (2 / 3 + 1 / 2 + 1) / 3, "f1_micro": 6 / 9, "accuracy": 2 / 4}
    )


def test_a_label_that_never_occurs_counts_as_zero_in_macro_f1():
    assert close(
        label_set_scores([["a"]], [["a"]], ["a", "b"]), f1_macro=0.5, f1_micro=1.0, accuracy=1.0
    )


def test_no_label_in_any_row_scores_zero_without_a_warning():
    assert label_set_scores([[], []], [[], []], ["a", "b"]) == {
        "f1_macro": 0.0,
        "f1_micro": 0.0,
        "accuracy": 1.0,
    }


def test_a_single_label_is_scored_as_a_label_and_not_its_absence_too():
    # a: tp 1, fp 1, fn 0, F1 2/3.
    assert label_set_scores([["a"], []], [["a"], ["a"]], ["a"]) == pytest.approx(
        {"f1_macro": 2 / 3, "f1_micro": 2 / 3, "accuracy": 0.5}
    )


def test_keyword_scores_are_means_over_rows_worked_out_by_hand():
    found = keyword_scores(
        [["drug", "patient"], ["bank"]], [["drug", "price", "rate"], ["bank"]], ["", ""]
    )
    # Row 1: precision 1/3, recall 1/2, F1 2/5; row 2: all 1.
    assert close(found, precision=(1 / 3 + 1) / 2, recall=(1 / 2 + 1) / 2, f1=(2 / 5 + 1) / 2)


@pytest.mark.parametrize(
    "predicted",
    [
        ["patient", "drug"],
        ["DRUG", "Patient"],
        ["drug", "Drug", "patient", "drug"],
        ["  drug ", "patient"],
    ],
)
def test_order_case_space_and_repetition_of_keywords_do_not_count(predicted):
    found = keyword_scores([["Drug", "patient", "PATIENT"]], [predicted], ["a Drug for a patient"])
    assert all(value == 1.0 for value in found.values())


def test_punctuation_of_a_keyword_does_not_count_but_signs_that_name_do():
    gold = ["COVID-19.", "reverse (docking)", "C#", "C"]
    predicted = ["covid 19", "Reverse docking", "c#", "c++"]
    found = keyword_scores([gold], [predicted], ["COVID 19: reverse docking in C"])
    assert found["f1"] == 0.75
    assert found["recall_present"] == 2 / 3


def test_white_space_inside_a_keyword_does_not_count():
    assert (
        keyword_scores([["machine  learning"]], [["machine\nlearning"]], ["on machine learning"])[
            "f1"
        ]
        == 1.0
    )


@pytest.mark.parametrize(
    ("gold", "predicted"), [(["drug"], []), ([], ["drug"]), ([], []), (["drug"], ["price"])]
)
def test_nothing_in_common_scores_zero_without_an_error(gold, predicted):
    assert close(
        keyword_scores([gold], [predicted], ["text"]),
        precision=0.0,
        recall=0.0,
        f1=0.0,
        f1_at_5=0.0,
        f1_at_10=0.0,
    )


def test_the_first_five_and_ten_keywords_are_scored_apart():
    gold = [f"k{n}" for n in range(8)]
    predicted = ["k0", "x1", "k1", "x2", "x3", "k2", "k3", "x4", "x5", "x6", "k4", "k5"]
    found = keyword_scores([gold], [predicted], [""])
    # 5: 2 of 5 and 2 of 8; 10: 4 of 10 and 4 of 8; 12: 6 of 12 and 6 of 8.
    assert close(
        found,
        f1_at_5=4 / 13,
        precision_at_5=2 / 5,
        recall_at_5=2 / 8,
        f1_at_10=8 / 18,
        precision_at_10=4 / 10,
        recall_at_10=4 / 8,
        f1=12 / 20,
        precision=6 / 12,
        recall=6 / 8,
    )


def test_a_repeated_keyword_takes_one_of_the_five_places_alone():
    found = keyword_scores([["a", "b"]], [["a", "A", "a", "x", "y", "z", "b"]], [""])
    assert close(found, precision_at_5=2 / 5, recall_at_5=1.0)  # a, x, y, z, b


def test_present_and_absent_keywords_are_told_apart_by_the_text():
    texts = ["The Drug was given to a patient", "prices fell"]
    found = keyword_scores(
        [["drug", "patient", "medicine"], ["economy"]], [["drug", "medicine"], ["prices"]], texts
    )
    assert close(found, recall_present=1 / 2, recall_absent=(1 + 0) / 2)


def test_a_keyword_that_is_broken_over_two_lines_of_the_text_is_present():
    found = keyword_scores(
        [["machine learning"]], [["machine learning"]], ["On machine\nlearning  methods."]
    )
    assert found["recall_present"] == 1.0
    assert "recall_absent" not in found


def test_tables_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        keyword_scores([["a"]], [["a"], ["b"]], ["a"])


def accuracy(gold: list, predicted: list) -> float:
    return label_scores(gold, predicted)["accuracy"]


def test_the_interval_covers_the_score_and_is_the_same_every_time():
    random = np.random.default_rng(0)
    gold = random.choice(["a", "b"], 200).tolist()
    predicted = [
        g if right else "a" for g, right in zip(gold, random.random(200) < 0.7, strict=True)
    ]
    low, high = interval(accuracy, gold, predicted, resamples=100)
    assert 0 < low < accuracy(gold, predicted) < high < 1
    assert (low, high) == interval(accuracy, gold, predicted, resamples=100)


def test_the_interval_of_a_long_table_is_drawn_in_parts_and_is_the_same(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = interval(lambda column: float(np.mean(column)), values, resamples=100)
    monkeypatch.setattr(metrics, "MAX_DRAWN_ROWS", 150)
    assert interval(lambda column: float(np.mean(column)), values, resamples=100) == whole


def test_the_interval_of_a_share_is_about_as_wide_as_theory_says():
    values = [1.0] * 80 + [0.0] * 20
    low, high = interval(lambda column: float(np.mean(column)), values)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 100), rel=0.15)


def test_rows_are_resampled_together():
    assert interval(
        lambda a, b: float(np.mean([x == y for x, y in zip(a, b, strict=True)])),
        list(range(30)),
        list(range(30)),
    ) == (1.0, 1.0)


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_a_score_that_never_varies_has_an_interval_of_no_width(rows):
    assert interval(accuracy, ["a"] * rows, ["a"] * rows, resamples=100) == (1.0, 1.0)


@pytest.mark.parametrize("rows", [2, 20, 300])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_that_are_all_alike_have_the_exact_interval_of_a_binomial_share(rows, share):
    exact = stats.binomtest(round(share * rows), rows).proportion_ci(method="exact")
    assert interval_of_share((share, share), rows) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("bounds", [(0.4, 0.6), (0.5, 0.5), (0.0, 0.2)])
def test_other_intervals_stay(bounds):
    assert interval_of_share(bounds, 30) == bounds


def test_no_rows_tell_nothing_of_a_share():
    assert interval_of_share((0.0, 0.0), 0) == (0.0, 1.0)


@pytest.mark.parametrize("difference", [-1.0, 0.5, 1.0])
def test_a_difference_that_is_the_same_on_few_rows_has_room(difference):
    low, high = interval_of_difference((difference, difference), 1)
    assert -1 <= low <= difference <= high <= 1
    assert high - low == pytest.approx(2 * 0.975)
    wide = (difference - 0.5, difference)
    assert interval_of_difference(wide, 1) == wide


def test_systems_that_do_not_differ_have_no_room():
    assert interval_of_difference((0.0, 0.0), 1) == (0.0, 0.0)

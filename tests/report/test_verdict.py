"""The verdict on a run is decided by the paired interval, and says what to do."""

import pytest

from peftcls.report.verdict import (
    TITLES,
    around_the_other,
    next_step,
    rows_needed,
    tell_verdict,
    verdict_of,
)


@pytest.mark.parametrize(
    ("low", "high", "rows", "verdict"),
    [
        (0.01, 0.09, 100, "ahead"),
        (-0.09, -0.01, 100, "behind"),
        (-0.02, 0.03, 900, "level"),
        (-0.02, 0.08, 100, "unclear"),
        (0.1, 0.6, 12, "unclear"),
        (0.0, 0.0, 12, "unclear"),
    ],
)
def test_the_interval_and_the_number_of_rows_decide(low, high, rows, verdict):
    assert verdict_of(low, high, rows) == verdict


@pytest.mark.parametrize("verdict", ["ahead", "level", "behind", "unclear"])
def test_each_verdict_has_a_sentence_with_its_numbers_and_a_next_step(verdict):
    headline = {
        "verdict": verdict,
        "against": "TF-IDF and logistic regression",
        "difference": 0.012,
        "from": -0.02,
        "to": 0.044,
    }
    told = tell_verdict(headline, "accuracy", 120)
    assert told.startswith(f"{TITLES[verdict]}: ")
    assert "TF-IDF" in told
    assert "+1.2 in Accuracy, 95 % interval −2.0 to +4.4" in told
    advice = next_step(headline, 120)
    expected = {
        "ahead": "Use it",
        "level": "Use TF-IDF and logistic regression",
        "behind": "Use TF-IDF and logistic regression for now. Try another base",
        "unclear": "Give more test rows: about 240",
    }
    assert advice.startswith(expected[verdict])


@pytest.mark.parametrize(
    ("verdict", "words", "advice"),
    [
        ("nothing", "no better than majority, which does not read the texts", "Read some rows"),
        ("seen", "30 of 120 test rows have a text that was trained on", "Give test rows whose"),
    ],
)
def test_what_no_interval_tells_has_a_sentence_and_a_next_step(verdict, words, advice):
    headline = {"verdict": verdict, "against": "TF-IDF", "blind": "majority", "seen": 30}
    headline |= {"difference": 0.0, "from": -0.1, "to": 0.1}
    told = tell_verdict(headline, "accuracy", 120)
    assert told.startswith(f"{TITLES[verdict]}: ")
    assert words in told
    assert next_step(headline, 120).startswith(advice)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.347, 0.788, "ahead of TF-IDF on these 19 rows, which are few, "),
        (-0.788, -0.347, "behind TF-IDF on these 19 rows, which are few, "),
        (-0.1, 0.3, "19 test rows are too few to tell it from TF-IDF."),
    ],
)
def test_an_interval_without_zero_is_not_called_no_difference(low, high, words):
    headline = {"verdict": verdict_of(low, high, 19), "against": "TF-IDF"}
    headline |= {"difference": (low + high) / 2, "from": low, "to": high}
    before, behind = around_the_other(headline, 19)
    assert ("no difference" in before) == (low < 0 < high)
    assert words in tell_verdict(headline, "accuracy", 19)
    assert next_step(headline, 19).startswith("Give more test rows: at least 20")
    assert bool(behind) == (low > 0 or high < 0)


def test_the_rows_that_are_needed_go_with_the_square_of_the_width():
    assert rows_needed(-0.06, 0.06, 1000) == 4000
    assert rows_needed(0.0, 0.0, 12) == 100

"""Evaluations against tables worked out by hand, intervals, and comparisons of two systems."""

import numpy as np
import pytest

from peftcls import (
    Answer,
    Classification,
    Instruction,
    Regression,
    compare_answers,
    evaluate_answers,
)
from peftcls.evaluation import NO_ANSWER, _f1_bounds

LABELS = ("a", "b", "c")
TASK = Classification(labels=LABELS)
SETS = Classification(labels=LABELS, multi_label=True)


def rows_of(labels):
    return [{"text": "x", "label": label} for label in labels]


def answers_of(labels, sure=0.8):
    """Answers with one label each; None is an abstention whose likeliest label is the first one."""
    rest = (1 - sure) / (len(LABELS) - 1)
    return [
        Answer(
            label=label,
            probabilities={name: sure if name == (label or "a") else rest for name in LABELS},
        )
        for label in labels
    ]


def sets_of(sets):
    return [
        Answer(
            labels=tuple(names),
            probabilities={name: 0.9 if name in names else 0.2 for name in LABELS},
        )
        for names in sets
    ]


def test_the_tables_of_labels_are_those_worked_out_by_hand():
    # a: tp 1, fp 1, fn 2; b: tp 1, fp 2, fn 1; c: tp 1, fp 0, fn 0.
    found = evaluate_answers(TASK, answers_of("abbbac"), rows_of("aaabbc"), resamples=30)
    assert found.rows == 6
    assert found.confusion.to_dict("split") == {
        "index": list(LABELS),
        "columns": list(LABELS),
        "data": [[1, 2, 0], [1, 1, 0], [0, 0, 1]],
    }
    assert found.labels.index.tolist() == list(LABELS)
    assert found.labels["precision"].tolist() == pytest.approx([1 / 2, 1 / 3, 1])
    assert found.labels["recall"].tolist() == pytest.approx([1 / 3, 1 / 2, 1])
    assert found.labels["f1"].tolist() == pytest.approx([2 / 5, 2 / 5, 1])
    assert found.labels["rows"].tolist() == [3, 2, 1]
    assert found.scores == TASK.score(answers_of("abbbac"), rows_of("aaabbc"))
    assert found.scores["accuracy"] == pytest.approx(3 / 6)


def test_abstentions_are_a_column_of_their_own_and_never_right():
    given = ["a", None, "b", None]
    found = evaluate_answers(TASK, answers_of(given) * 10, rows_of("aabb") * 10, resamples=30)
    assert found.confusion.columns.tolist() == [*LABELS, NO_ANSWER]
    assert found.confusion.index.tolist() == list(LABELS)
    assert found.confusion.loc["a"].tolist() == [10, 0, 0, 10]
    assert found.labels["recall"].tolist() == pytest.approx([0.5, 0.5, 0])
    assert found.labels["precision"].tolist() == pytest.approx([1, 1, 0])
    assert (
        found.scores["coverage"],
        found.scores["accuracy"],
        found.scores["accuracy_answered"],
    ) == (0.5, 0.5, 1.0)


def test_one_abstention_among_few_rows_has_its_interval():
    found = evaluate_answers(TASK, answers_of([None, *"aabbab"]), rows_of("aaabbab"), resamples=40)
    low, high = found.intervals["coverage"]
    assert low < found.scores["coverage"] == pytest.approx(6 / 7)
    assert high == 1
    compared = compare_answers(
        TASK,
        answers_of([None, *"aabbab"]),
        answers_of("aaabbab"),
        rows_of("aaabbab"),
        score="accuracy",
        resamples=30,
    )
    assert compared.difference == pytest.approx(-1 / 7)


def test_a_system_without_abstentions_covers_every_row_beside_one_with_some():
    rows = rows_of("ab" * 10)
    found = compare_answers(
        TASK,
        answers_of("ab" * 10),
        answers_of(["a", None] * 10),
        rows,
        score="coverage",
        resamples=30,
    )
    assert (found.first, found.second) == (1.0, 0.5)


def test_keywords_that_are_rarely_present_have_an_interval():
    task = Instruction(separator=";", template="{input}: ", input="text", output="label")
    rows = [
        {"text": "the drug", "label": "drug; bank"},
        {"text": "the drug", "label": "drug"},
        {"text": "x", "label": "bank"},
    ]
    found = evaluate_answers(task, [Answer(text="drug", labels=("drug",))] * 3, rows, resamples=40)
    assert set(found.intervals) == set(found.scores)
    assert found.labels is None


def test_label_sets_have_a_table_and_no_confusion():
    # a: tp 2, fp 1, fn 0; b: tp 1, fp 0, fn 2; c never.
    given, right = [["a"], ["a", "b"], ["a"], []], [["a", "b"], ["a", "b"], ["b"], []]
    found = evaluate_answers(SETS, sets_of(given), rows_of(right), resamples=30)
    assert found.confusion is None
    assert found.labels["precision"].tolist() == pytest.approx([2 / 3, 1, 0])
    assert found.labels["recall"].tolist() == pytest.approx([1, 1 / 3, 0])
    assert found.labels["f1"].tolist() == pytest.approx([0.8, 0.5, 0])
    assert found.labels["rows"].tolist() == [2, 3, 0]
    assert found.scores == SETS.score(sets_of(given), rows_of(right))


def test_a_single_yes_or_no_label_has_a_table_of_one_line():
    task = Classification(labels=("a",), multi_label=True)
    answers = [Answer(labels=("a",), probabilities={"a": 0.7})] * 4
    found = evaluate_answers(task, answers, rows_of([["a"], ["a"], ["a"], []]), resamples=30)
    assert found.labels["precision"].tolist() == [0.75]
    assert found.labels["rows"].tolist() == [3]


def test_intervals_hold_the_scores_and_are_the_same_every_time():
    given, right = answers_of("abcab" * 8), rows_of("abccc" * 8)
    found = evaluate_answers(TASK, given, right, resamples=60)
    for name, value in found.scores.items():
        low, high = found.intervals[name]
        assert low <= value + 1e-9, name
        assert value <= high + 1e-9, name
    low, high = found.intervals["accuracy"]
    assert 0.1 < high - low < 0.4  # 4 standard errors of 24 of 40 are 0.31
    assert evaluate_answers(TASK, given, right, resamples=60).intervals == found.intervals
    assert (found.labels["f1 from"] <= found.labels["f1"]).all()
    assert (found.labels["f1"] <= found.labels["f1 to"]).all()


def test_numbers_are_evaluated_without_tables():
    rows = [{"text": "x", "score": str(n)} for n in range(12)]
    found = evaluate_answers(
        Regression(), [Answer(value=float(n % 7)) for n in range(12)], rows, resamples=30
    )
    assert set(found.intervals) == {"pearson", "spearman", "rmse"}
    assert found.labels is found.confusion is None
    assert str(found).startswith("12 rows; an interval of fewer than 20 means little\npearson ")


def test_an_evaluation_reads_as_a_text():
    shown = str(evaluate_answers(TASK, answers_of("ab" * 4), rows_of("aa" * 4), resamples=30))
    assert shown.startswith(
        "8 rows; an interval of fewer than 20 means little\n"
        "accuracy             0.5000   95 % interval "
    )
    # As in the report: the right label down, the answered one across.
    assert "\nanswered  a  b  c\nright            \na         4" in shown
    assert "precision" in shown


# Comparisons


def test_identical_systems_are_not_told_apart():
    answers = answers_of("abcab" * 4)
    found = compare_answers(TASK, answers, answers, rows_of("abccc" * 4), resamples=60)
    assert (found.score, found.difference, found.interval, found.resamples_won) == (
        "f1_macro",
        0.0,
        (0.0, 0.0),
        0.5,
    )
    assert str(found).endswith(
        "+0.0000, 95 % interval +0.0000 to +0.0000 (paired); the rows do not tell them apart."
    )


def test_a_system_that_is_better_on_many_rows_is_told_from_the_other():
    rows = rows_of("abc" * 20)
    good, bad = answers_of("abc" * 18 + "bca" * 2), answers_of("abc" * 8 + "bca" * 12)
    found = compare_answers(TASK, good, bad, rows, score="accuracy", resamples=60)
    assert found.first == pytest.approx(0.9)
    assert found.second == pytest.approx(0.4)
    assert found.difference == pytest.approx(0.5)
    assert 0 < found.interval[0] < 0.5 < found.interval[1]
    assert found.resamples_won == 1
    assert str(found).endswith("the first is better.")
    turned = compare_answers(TASK, bad, good, rows, score="accuracy", resamples=60)
    assert turned.difference == -found.difference
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]), abs=0.05)
    assert str(turned).endswith("the second is better.")


def test_the_difficulty_of_a_row_cancels_out_in_a_paired_interval():
    right = rows_of("ab" * 50)
    first = answers_of(
        "ab" * 25 + "ba" * 25
    )  # the same hard rows for both, and three more for the second
    second = answers_of("ba" + "bb" + "ab" * 23 + "ba" * 25)
    paired = compare_answers(TASK, first, second, right, score="accuracy", resamples=60)
    alone = evaluate_answers(TASK, first, right, resamples=60).intervals["accuracy"]
    assert paired.interval[1] - paired.interval[0] < (alone[1] - alone[0]) / 2


@pytest.mark.parametrize(("first", "second"), [(4, 5), (5, 4)])
def test_more_or_fewer_answers_than_rows_are_refused(first, second):
    with pytest.raises(
        ValueError, match=r"^there are 4 answers and 5 rows, expected one answer a row\.$"
    ):
        compare_answers(TASK, answers_of("a" * first), answers_of("a" * second), rows_of("abcab"))
    with pytest.raises(
        ValueError, match=r"^there are 4 answers and 5 rows, expected one answer a row\.$"
    ):
        evaluate_answers(TASK, answers_of("abca"), rows_of("abcab"))


def test_an_unknown_score_is_refused_with_the_known_ones():
    names = r"\['accuracy', 'accuracy_answered', 'coverage', 'ece', 'f1_macro', 'loss'\]"
    with pytest.raises(ValueError, match=rf"^score='auc': Classification has {names}\.$"):
        compare_answers(TASK, answers_of("ab"), answers_of("ab"), rows_of("ab"), score="auc")


def test_many_labels_are_scored_in_moments_and_as_one_by_one():
    """Each resample is a matrix product: the time does not grow with labels times rows."""
    names = [f"intent {n:03d}" for n in range(300)]
    rows = [{"text": f"row {n}", "label": names[n % 300]} for n in range(600)]
    task = Classification(labels=tuple(names))
    answers = [
        Answer(label=names[(n + n % 2) % 300], probabilities=dict.fromkeys(names, 1 / 300))
        for n in range(600)
    ]
    evaluation = evaluate_answers(task, answers, rows, resamples=200)
    few = [n for n in range(600) if n % 300 < 4]
    alone = task.score([answers[n] for n in few], [rows[n] for n in few])
    assert task.scorer(answers, rows)(few) == pytest.approx(alone)
    line = evaluation.labels.loc[names[2]]
    assert (line["precision"], line["recall"], line["rows"]) == (0.5, 1.0, 2)
    assert line["f1"] == pytest.approx(2 / 3)
    assert line["f1 from"] <= line["f1"] <= line["f1 to"]


def test_a_notebook_shows_tables_with_names_that_are_escaped():
    task = Classification(labels=("<b>a</b>", "c"))
    answers = [
        Answer(label=name, probabilities={"<b>a</b>": 0.5, "c": 0.5}) for name in task.labels
    ]
    found = evaluate_answers(task, answers, rows_of(task.labels), resamples=30)
    page = found._repr_html_()
    assert page.count("<table") == 3
    assert "&lt;b&gt;a&lt;/b&gt;" in page
    assert "<b>" not in page
    assert repr(found) == str(found)
    compared = compare_answers(task, answers, answers, rows_of(task.labels), resamples=30)
    assert repr(compared) == str(compared)


def test_a_rare_label_that_is_always_right_is_never_counted_as_wrong():
    truth = np.array([[1, 0, 0]] * 8 + [[0, 1, 0]])
    low, high = _f1_bounds(truth, truth, 200)
    assert low.tolist() == [1, 1, 0]
    assert high.tolist() == [1, 1, 0]


def test_twenty_right_rows_do_not_say_that_all_are_right():
    found = evaluate_answers(TASK, answers_of("ab" * 10), rows_of("ab" * 10), resamples=30)
    assert found.intervals["accuracy"] == (0.025 ** (1 / 20), 1)
    assert found.labels["f1 from"].tolist() == pytest.approx([0.025 ** (1 / 10)] * 2 + [0])
    # No row has the third label.
    assert found.labels["f1 to"].tolist() == [1, 1, 1]

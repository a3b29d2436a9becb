"""Metrics of the user's own: what they read, how they are named, and what a bad one says."""

import functools

import evaluate
import numpy as np
import pytest
import torchmetrics
from datasets import Features, Value
from sklearn import metrics as sk

from peftcls import (
    Answer,
    Classification,
    ExtractiveQA,
    Instruction,
    Regression,
    TrainConfig,
    compare_answers,
    evaluate_answers,
)
from peftcls.cli.shared_options import METRICS
from peftcls.tasks.metric_columns import NO_LABEL
from peftcls.tasks.named_metrics import NAMED_METRICS
from peftcls.tasks.own_metrics import OwnMetrics, score_answers

TASK = Classification(labels=("a", "b"))
SETS = Classification(labels=("a", "b", "c"), multi_label=True)
GOLD = [*"aabbabbaabababaabbab"]
GIVEN = [*"abbbaabbaababaabbbab"]


def rows_of(labels):
    return [{"text": "x", "label": label} for label in labels]


def answers_of(labels):
    """Answers of unequal certainty; None is an abstention."""
    answers = []
    for number, label in enumerate(labels):
        sure = 0.55 + 0.02 * number
        second = sure if label == "b" else 1 - sure
        answers.append(Answer(label=label, probabilities={"a": 1 - second, "b": second}))
    return answers


def kappa(predictions, references):
    return sk.cohen_kappa_score(references, predictions)


def scores_with(metrics, task=TASK, given=None, rows=None):
    answers = answers_of(GIVEN) if given is None else given
    return score_answers(task, answers, rows_of(GOLD) if rows is None else rows, metrics)


class Modules:
    """What evaluate would load from a hub, as classes."""

    class Accuracy(evaluate.Metric):
        def _info(self):
            integers = Features({"predictions": Value("int32"), "references": Value("int32")})
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="", features=integers
            )

        def _compute(self, predictions, references):
            return {"accuracy": float(np.mean(np.array(predictions) == np.array(references)))}

    class Both(Accuracy):
        def _compute(self, predictions, references):
            right = float(np.mean(np.array(predictions) == np.array(references)))
            return {"right": right, "wrong": 1 - right, "version": "2"}

    class Words(evaluate.Metric):
        def _info(self):
            texts = Features({"predictions": Value("string"), "references": Value("string")})
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="", features=texts
            )

        def _compute(self, predictions, references):
            assert all(isinstance(text, str) for text in [*predictions, *references])
            return {"same": float(predictions == references)}

    class Auc(evaluate.Metric):
        def _info(self):
            scores = Features({"prediction_scores": Value("float"), "references": Value("int32")})
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="", features=scores
            )

        def _compute(self, prediction_scores, references):
            return {"auc": float(sk.roc_auc_score(references, prediction_scores))}


@pytest.fixture
def module(tmp_path):
    return lambda kind, **options: getattr(Modules, kind)(cache_dir=str(tmp_path), **options)


class Share:
    """As a metric of torchmetrics: it counts over calls, and keeps its own state."""

    higher_is_better = True

    def __init__(self):
        self.right = self.count = 0

    def reset(self):
        self.right = self.count = 0

    def update(self, predictions, target):
        self.right += (predictions == target).sum()
        self.count += len(target)

    def compute(self):
        return self.right / self.count


def test_an_object_of_torchmetrics_is_a_score():
    found = scores_with({"kappa": torchmetrics.CohenKappa(task="binary")})
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(GOLD, GIVEN))


def test_a_function_is_a_score_with_an_interval_beside_those_of_the_task():
    rows = rows_of(GOLD)
    found = evaluate_answers(TASK, answers_of(GIVEN), rows, metrics={"kappa": kappa}, resamples=200)
    assert found.scores["kappa"] == pytest.approx(sk.cohen_kappa_score(GOLD, GIVEN))
    low, high = found.intervals["kappa"]
    assert low < found.scores["kappa"] < high
    assert {name: found.scores[name] for name in TASK.score_names} == TASK.score(
        answers_of(GIVEN), rows
    )
    assert "kappa" in str(found)


def test_the_interval_of_an_own_accuracy_is_that_of_the_built_in_one():
    def right(predictions, references):
        return (predictions == references).mean()

    found = evaluate_answers(
        TASK, answers_of(GIVEN), rows_of(GOLD), metrics={"right": right}, resamples=100
    )
    assert found.intervals["right"] == pytest.approx(found.intervals["accuracy"])


def test_a_function_may_return_several_numbers_and_read_probabilities():
    def both(predictions, references, probabilities):
        assert probabilities.shape == (len(GOLD), 2)
        return {"mean": probabilities[:, 1].mean(), "rows": len(references)}

    scores = scores_with({"own": both})
    assert scores["own_rows"] == len(GOLD)
    assert 0 < scores["own_mean"] < 1


def test_functions_of_scikit_learn_get_truth_and_prediction_by_their_names():
    recall = functools.partial(sk.recall_score, pos_label="b")
    scores = scores_with(
        {"recall": recall, "precision": functools.partial(sk.precision_score, pos_label="b")}
    )
    assert scores["recall"] == pytest.approx(sk.recall_score(GOLD, GIVEN, pos_label="b"))
    assert scores["precision"] == pytest.approx(sk.precision_score(GOLD, GIVEN, pos_label="b"))
    assert scores["recall"] != scores["precision"]


def test_modules_of_evaluate_get_what_their_features_say(module):
    scores = scores_with({"share": module("Accuracy"), "same": module("Words")})
    assert scores["share"] == scores["accuracy"]
    assert scores["same"] == 0
    assert scores_with({"own": module("Both")})["own_wrong"] == pytest.approx(
        1 - scores["accuracy"]
    )
    assert scores_with(module("Auc"))["auc"] == pytest.approx(
        scores_with(["roc_auc_score"])["roc_auc_score"]
    )


def test_combined_modules_are_one_metric_or_several(module):
    combined = evaluate.combine({"one": module("Accuracy"), "two": module("Both")})
    scores = scores_with(combined)
    assert scores["one"] == scores["two_right"] == scores["accuracy"]
    assert scores_with({"own": combined})["own_accuracy"] == scores["accuracy"]


def test_an_object_with_update_and_compute_keeps_its_own_state():
    share = Share()
    share.right, share.count = 1, 1
    assert scores_with({"share": share})["share"] == pytest.approx(scores_with(None)["accuracy"])
    assert share.count == 1


def test_a_score_that_a_resample_lacks_counts_with_its_value_on_all_rows():
    rows = rows_of(["a"] * 19 + ["b"])
    answers = answers_of(["a"] * 19 + ["b"])
    found = evaluate_answers(TASK, answers, rows, metrics="roc_auc_score", resamples=50)
    assert found.scores["roc_auc_score"] == 1
    assert found.intervals["roc_auc_score"] == (1, 1)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"bad": lambda p, r: 1 / 0}, "the metric 'bad' failed on 20 rows with ZeroDivisionError"),
        ({"bad": lambda p, r: float("nan")}, "the metric 'bad' gave nan"),
        ({"bad": lambda p, r: "high"}, "the metric 'bad' returned 'high', expected a number"),
        ({"bad": lambda p, r: True}, "the metric 'bad' returned True"),
        ({"bad": lambda p, r: {"list": [1]}}, "of which none is a number"),
        ({"accuracy": kappa}, "there is one of this name already"),
        ({"f": lambda prediction: 1}, "'f' takes 1 arguments"),
        ({"f": sk.roc_auc_score}, "has no argument y_pred"),
        ({"f": 3}, "'f' is int; expected a function"),
        ({1: kappa}, "the name 1"),
        ({"f": type("BinaryAUROC", (Share,), {})()}, "'f' is BinaryAUROC, which reads probabili"),
        ([kappa, kappa], "two metrics called 'kappa'"),
        (lambda p, r: 1, "a function without a name"),
        (["cohen"], "there is no metric 'cohen'"),
        ("r2_score", "'r2_score' failed on 20 rows with ValueError: it is for the answers"),
    ],
)
def test_a_metric_that_fails_is_one_sentence_that_names_it(metrics, message):
    with pytest.raises(ValueError, match=message.replace("(", "[(]")) as raised:
        evaluate_answers(TASK, answers_of(GIVEN), rows_of(GOLD), metrics=metrics)
    assert "\n" not in str(raised.value)


def test_answers_without_probabilities_refuse_a_metric_that_reads_them_or_leave_it_out():
    bare = [Answer(label=label) for label in GIVEN]
    own = OwnMetrics(["roc_auc_score", "matthews_corrcoef"])
    with pytest.raises(ValueError, match="'roc_auc_score' reads probabilities"):
        score_answers(TASK, bare, rows_of(GOLD), own)
    assert own.for_answers(bare).names == ("matthews_corrcoef",)
    assert own.for_answers(answers_of(GIVEN)).names == own.names


def test_an_abstention_is_a_text_and_a_number_of_its_own():
    seen = {}

    def remember(predictions, references):
        seen["given"] = predictions.tolist()
        return 0.0

    class Numbers(Share):
        def update(self, predictions, target):
            seen["numbers"] = predictions.tolist()
            super().update(predictions, target)

    scores_with({"f": remember, "g": Numbers()}, given=answers_of(["a", None]), rows=rows_of("ab"))
    assert seen == {"given": ["a", "(no answer)"], "numbers": [0, NO_LABEL]}


def test_every_kind_of_answer_gives_its_own_columns():
    def columns_of(task, answers, rows):
        seen = []

        def remember(predictions, references):
            seen.append((predictions.tolist(), references.tolist()))
            return 0.0

        score_answers(task, answers, rows, {"f": remember})
        return seen[0]

    sets = [Answer(labels=("a", "c"), probabilities={"a": 1.0, "b": 0.0, "c": 1.0})]
    assert columns_of(SETS, sets, rows_of([["a", "b"]])) == ([[1, 0, 1]], [[1, 1, 0]])
    number = Regression(mean=0.0, deviation=1.0)
    assert columns_of(number, [Answer(value=2.5)], [{"text": "x", "score": "3"}]) == ([2.5], [3.0])
    words = Instruction(separator=";")
    row = {"instruction": "i", "input": "x", "output": "k; l"}
    assert columns_of(words, [Answer(labels=("k",), text="k")], [row]) == ([["k"]], [["k", "l"]])
    row = {"question": "q", "context": "x", "answers": {"text": ["x"], "answer_start": [0]}}
    assert columns_of(ExtractiveQA(), [Answer(text="x")], [row]) == (["x"], [["x"]])


def test_named_metrics_are_those_of_scikit_learn():
    names = ["matthews_corrcoef", "balanced_accuracy_score", "roc_auc_score", "f1_weighted"]
    scores = scores_with(names)
    second = [answer.probabilities["b"] for answer in answers_of(GIVEN)]
    truth = np.array(GOLD) == "b"
    assert [scores[name] for name in names] == pytest.approx(
        [
            sk.matthews_corrcoef(GOLD, GIVEN),
            sk.balanced_accuracy_score(GOLD, GIVEN),
            sk.roc_auc_score(truth, second),
            sk.f1_score(GOLD, GIVEN, average="weighted"),
        ]
    )
    assert sorted(NAMED_METRICS) == list(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_every_named_metric_scores_the_answers_that_it_is_for(name):
    three = Classification(labels=("a", "b", "c"))
    probabilities = {"a": 0.5, "b": 0.3, "c": 0.2}
    metric = NAMED_METRICS[name]
    if metric.label:
        given = [Answer(label=label, probabilities=probabilities) for label in "abcc"]
        assert np.isfinite(scores_with([name], three, given, rows_of("abca"))[name])
    if metric.label_set:
        given = [Answer(labels=("a", "c"), probabilities=probabilities)] * 2
        rows = rows_of([["a", "b"], ["c"]])
        assert np.isfinite(scores_with([name], SETS, given, rows)[name])
    if metric.number:
        task = Regression(mean=0.0, deviation=1.0)
        rows = [{"text": "x", "score": number} for number in (1.0, 2.0)]
        given = [Answer(value=1.5), Answer(value=1.75)]
        assert np.isfinite(scores_with([name], task, given, rows)[name])


def test_a_comparison_by_an_error_says_that_the_lower_one_is_better():
    task = Regression(mean=0.0, deviation=1.0)
    rows = [{"text": "x", "score": float(number)} for number in range(30)]
    near = [Answer(value=row["score"] + 0.1) for row in rows]
    far = [Answer(value=row["score"] + 3 + row["score"] % 2) for row in rows]
    found = compare_answers(
        task,
        near,
        far,
        rows,
        score="mean_absolute_error",
        metrics=["mean_absolute_error"],
        resamples=50,
    )
    assert found.resamples_won == 1
    assert "the first is better" in str(found)
    assert "the second is better" in str(
        compare_answers(task, far, near, rows, score="rmse", resamples=50)
    )


def test_whether_a_lower_value_is_better_is_said_by_the_metric_or_its_name():
    def mae(predictions, references):
        return 0.0

    mae.higher_is_better = False
    own = OwnMetrics({"mae": mae, "kappa": kappa, "mean_error": kappa, "share": Share()})
    assert [own.lower_is_better(name) for name in (*own.names, "loss", "ece")] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]


def test_settings_name_a_metric_that_is_none():
    with pytest.raises(ValueError, match="TrainConfig: metrics: 'f' is int"):
        TrainConfig("runs/x", metrics={"f": 3})
    assert TrainConfig("runs/x", metrics=["r2_score"]).to_json()["metrics"] == ["r2_score"]
    assert "metrics" not in TrainConfig("runs/x").to_json()

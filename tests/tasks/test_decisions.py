"""From probabilities to decisions: temperature, thresholds and abstention, fitted on new rows."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import peftcls
from peftcls import Answer, Classification, Decisions, Instruction, TrainConfig, Trainer
from peftcls.tasks.decisions import MAX_TEMPERATURE, MIN_TEMPERATURE
from peftcls.training.calibration import tell_calibration

LABELS = ("a", "b", "c")
HEATED = 4.0  # the made answers are this many times too sure
logit_tables = st.lists(
    st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=6
).map(lambda rows: torch.tensor(rows, dtype=torch.float64))
temperatures = st.floats(0.1, 10)


def answers_of(task, logits):
    """The answers of a task to these logits."""
    several = getattr(task, "multi_label", False)
    table = task.decisions.any_of(logits) if several else task.decisions.one_of(logits)
    return [task._answer(dict(zip(task.labels, row, strict=True))) for row in table.tolist()]


def made_set(rows, *, seed, heat=HEATED):
    """Logits of three labels, `heat` times the truth the labels are drawn from, and the labels."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(rows, 3)) * 1.5
    shares = np.exp(truth) / np.exp(truth).sum(1, keepdims=True)
    labels = [LABELS[random.choice(3, p=share)] for share in shares]
    return torch.tensor(truth * heat), [{"text": "x", "label": label} for label in labels]


def made_sets(rows, *, seed):
    """As `made_set` for label sets; some labels are rarer, and the logits know nothing of it."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(rows, 3)) * 1.5
    present = random.random((rows, 3)) < 1 / (1 + np.exp(-(truth - np.array([3.0, 0.0, 4.0]))))
    return torch.tensor(truth), [
        {"text": "x", "label": [name for name, yes in zip(LABELS, row, strict=True) if yes]}
        for row in present
    ]


# Temperature


def test_the_temperature_divides_logits_in_an_example_worked_out_by_hand():
    warm = Decisions(temperature=2.0)
    assert warm.one_of(torch.tensor([[2 * math.log(3), 0.0]])).tolist() == [
        pytest.approx([0.75, 0.25])
    ]
    assert warm.one_of(torch.tensor([[0.9, 0.1]]).log()).tolist() == [pytest.approx([0.75, 0.25])]
    assert warm.any_of(torch.tensor([[2 * math.log(3), 0.0]])).tolist() == [
        pytest.approx([0.75, 0.5])
    ]


@given(logit_tables, temperatures)
def test_dividing_log_probabilities_is_dividing_logits(logits, temperature):
    warm = Decisions(temperature=temperature)
    expected = (logits / temperature).softmax(1)
    assert torch.allclose(warm.one_of(logits), expected)
    assert torch.allclose(warm.one_of(logits.log_softmax(1)), expected)
    # The same label is the most probable one, but for logits that differ by rounding only.
    plain = Decisions().one_of(logits)
    chosen = warm.one_of(logits).argmax(1, keepdim=True)
    assert torch.allclose(plain.gather(1, chosen).squeeze(1), plain.amax(1), rtol=0, atol=1e-12)
    assert torch.allclose(warm.any_of(logits), torch.sigmoid(logits / temperature))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
def test_a_heads_probabilities_are_those_of_divided_log_probabilities(loss, bert):
    plain = Classification(labels=LABELS, loss=loss, max_length=32)
    warm = dataclasses.replace(plain, decisions=Decisions(temperature=0.2))
    model, tokenizer = peftcls.load_base(bert, plain)
    model.classifier.weight.data *= 10
    text = ["the patient recovered"]
    (before,), (after,) = (
        peftcls.Predictor(model, task, tokenizer).predict(text) for task in (plain, warm)
    )
    powers = [p**5 for p in before.probabilities.values()]
    assert list(after.probabilities.values()) == pytest.approx(
        [power / sum(powers) for power in powers]
    )
    assert max(powers) / sum(powers) > max(before.probabilities.values()) + 0.01


def test_fitting_undoes_what_made_the_answers_too_sure():
    task = Classification(labels=LABELS)
    logits, rows = made_set(2000, seed=0)
    fitted = task.calibrated(answers_of(task, logits), rows)
    held, held_rows = made_set(2000, seed=1)
    before, after = (t.score(answers_of(t, held), held_rows) for t in (task, fitted))
    assert fitted.decisions.temperature == pytest.approx(HEATED, rel=0.1)
    assert after["loss"] < before["loss"] - 0.3
    assert after["ece"] < 0.05
    assert before["ece"] > 0.15
    assert (after["accuracy"], after["f1_macro"]) == (before["accuracy"], before["f1_macro"])


@given(st.integers(0, 10**6), st.floats(0.3, 6), st.booleans())
@settings(max_examples=25, deadline=None)
def test_fitting_again_changes_nothing(seed, heat, several):
    task = Classification(labels=LABELS, multi_label=several)
    logits, rows = made_sets(60, seed=seed) if several else made_set(60, seed=seed, heat=heat)
    once = task.calibrated(answers_of(task, logits), rows)
    twice = once.calibrated(answers_of(once, logits), rows)
    assert twice.decisions.temperature == pytest.approx(once.decisions.temperature, rel=1e-3)
    assert (twice.decisions.thresholds or {}) == pytest.approx(
        once.decisions.thresholds or {}, rel=1e-2
    )


@pytest.mark.parametrize("right", [True, False])
def test_answers_without_an_error_or_without_a_hit_get_a_temperature_in_its_range(right):
    task = Classification(labels=LABELS)
    logits = torch.eye(3, dtype=torch.float64).repeat(4, 1) * 3
    rows = [{"text": "x", "label": LABELS[(n + (0 if right else 1)) % 3]} for n in range(12)]
    fitted = task.calibrated(answers_of(task, logits), rows).decisions.temperature
    assert MIN_TEMPERATURE <= fitted <= MAX_TEMPERATURE * (1 + 1e-6)
    assert (fitted < 1) == right


def test_certain_answers_that_are_often_wrong_get_the_hottest_temperature():
    answers = [Answer(label="a", probabilities={"a": 1.0, "b": 0.0, "c": 0.0})] * 9
    rows = [{"text": "x", "label": label} for label in "aaaaaabbc"]
    fitted = Classification(labels=LABELS).calibrated(answers, rows)
    assert fitted.decisions.temperature == pytest.approx(MAX_TEMPERATURE, rel=1e-3)


# Thresholds


def test_fitted_thresholds_beat_one_half_on_rows_that_they_were_not_fitted_on():
    task = Classification(labels=LABELS, multi_label=True)
    logits, rows = made_sets(2000, seed=0)
    fitted = task.calibrated(answers_of(task, logits), rows)
    held, held_rows = made_sets(2000, seed=1)
    before, after = (t.score(answers_of(t, held), held_rows) for t in (task, fitted))
    assert after["f1_macro"] > before["f1_macro"] + 0.05
    thresholds = fitted.decisions.thresholds
    assert thresholds["c"] > thresholds["a"] > thresholds["b"], (
        "the rarer, the higher: the logits know nothing of it"
    )


def test_a_label_with_too_few_rows_keeps_one_half():
    task = Classification(labels=LABELS, multi_label=True)
    rows = [{"text": "x", "label": ["a"] * (n < 4) + ["b"] * (n % 2)} for n in range(40)]
    answers = [
        Answer(labels=(), probabilities={"a": 0.9 - n / 100, "b": 0.3 + n % 2 / 10, "c": 0.1})
        for n in range(40)
    ]
    fitted = task.calibrated(answers, rows).decisions
    assert (fitted.thresholds["a"], fitted.thresholds["c"]) == (0.5, 0.5)
    assert fitted.thresholds["b"] != 0.5


def test_the_label_that_is_largest_in_units_of_its_threshold_is_given():
    decisions = Decisions(thresholds={"a": 0.6, "b": 0.2})
    assert decisions.choose({"a": 0.6, "b": 0.25, "c": 0.15}) == "b"
    assert decisions.choose({"a": 0.7, "b": 0.2, "c": 0.1}) == "a"
    assert decisions.select({"a": 0.59, "b": 0.2, "c": 0.5}) == ("b", "c")
    assert (
        Decisions(thresholds={"b": 0.2}, abstain_below=0.3).choose({"a": 0.5, "b": 0.25, "c": 0.25})
        is None
    )


# Abstention


@given(st.integers(0, 10**6), st.floats(0.5, 0.95))
@settings(max_examples=40, deadline=None)
def test_the_answered_rows_reach_the_accuracy_that_was_asked_for(seed, wanted):
    task = Classification(labels=LABELS)
    logits, rows = made_set(80, seed=seed)
    try:
        fitted = task.calibrated(answers_of(task, logits), rows, min_accuracy=wanted)
    except ValueError as error:
        assert str(error).startswith(f"min_accuracy={wanted}: the 80 rows make ")
        return
    answers = answers_of(fitted, logits)
    right = [
        a.label == row["label"] for a, row in zip(answers, rows, strict=True) if a.label is not None
    ]
    assert right
    assert (sum(right) + 1) / (len(right) + 2) >= wanted
    scores = fitted.score(answers, rows)
    assert scores.get("coverage", 1.0) == len(right) / 80


def test_the_accuracy_is_reached_with_thresholds_too():
    thresholds = Decisions(
        thresholds={"a": 0.05, "b": 0.9, "c": 0.9}
    )  # as for a label that must not be missed
    task = Classification(labels=LABELS, decisions=thresholds)
    logits, rows = made_set(400, seed=0)
    fitted = task.calibrated(answers_of(task, logits), rows, min_accuracy=0.6)
    scores = fitted.score(answers_of(fitted, logits), rows)
    assert fitted.decisions.thresholds == thresholds.thresholds
    assert scores.get("accuracy_answered", scores["accuracy"]) >= 0.6


def test_an_accuracy_that_cannot_be_reached_is_told_with_the_best_there_is():
    task = Classification(labels=LABELS)
    answers = [Answer(label="a", probabilities={"a": 0.8, "b": 0.1, "c": 0.1})] * 3 + [
        Answer(label="a", probabilities={"a": 0.6, "b": 0.3, "c": 0.1})
    ]
    rows = [{"text": "x", "label": label} for label in "abba"]
    sentence = (
        r"^min_accuracy=0\.9: the 4 rows make 0\.500 likely at most, however few are answered; "
        r"ask for less, or give more rows\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        task.calibrated(answers, rows, min_accuracy=0.9)


@pytest.mark.parametrize(
    ("several", "gold", "told"),
    [
        (False, ["a"] * 3, r": all rows have the label \['a'\]\."),
        (False, ["a"], r": all rows have the label \['a'\]\."),
        (False, [], r" without rows\."),
        (True, [["b", "a"], ["a", "b"]], r": all rows have the labels \['a', 'b'\]\."),
        (True, [], r" without rows\."),
    ],
)
def test_rows_of_the_same_labels_fit_nothing(several, gold, told):
    answers = [
        Answer(label="a", labels=("a",), probabilities={"a": 0.8, "b": 0.1, "c": 0.1})
    ] * len(gold)
    with pytest.raises(
        ValueError,
        match=f"^Cannot calibrate{told} Use rows with at least two labels",
    ):
        Classification(labels=LABELS, multi_label=several).calibrated(
            answers, [{"text": "x", "label": label} for label in gold]
        )


def test_a_bar_for_label_sets_is_refused():
    task = Classification(labels=LABELS, multi_label=True)
    logits, rows = made_sets(50, seed=0)
    with pytest.raises(ValueError, match="min_accuracy"):
        task.calibrated(answers_of(task, logits), rows, min_accuracy=0.9)
    with pytest.raises(ValueError, match="abstain_below"):
        Classification(labels=LABELS, multi_label=True, decisions=Decisions(abstain_below=0.5))


# Settings and storage


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": 0}, r"^temperature=0: expected a number above 0\.$"),
        ({"temperature": float("nan")}, r"^temperature=nan: expected a number above 0\.$"),
        ({"temperature": float("inf")}, r"^temperature=inf: expected a number above 0\.$"),
        (
            {"thresholds": {"a": 1.5}},
            r"^the threshold 1\.5 for 'a': expected a probability between 0 and 1\.$",
        ),
        (
            {"thresholds": {"a": 0}},
            r"^the threshold 0 for 'a': expected a probability between 0 and 1\.$",
        ),
        (
            {"abstain_below": -0.1},
            r"^the threshold -0\.1 for 'abstain_below': expected a probability between 0 and 1\.$",
        ),
    ],
)
def test_decisions_that_cannot_be_are_told(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Decisions(**fields)


@pytest.mark.parametrize("task", [Classification, Instruction])
def test_a_threshold_for_a_label_that_there_is_not_is_told(task):
    with pytest.raises(
        ValueError, match=r"^thresholds name the label 'd', expected some of \['a', 'b', 'c'\]\.$"
    ):
        task(labels=LABELS, decisions=Decisions(thresholds={"d": 0.3}))


def test_decisions_of_another_version_are_told():
    with pytest.raises(ValueError, match="written by another version of peftcls"):
        Classification.from_json(
            {
                "name": "Classification",
                "labels": ["a", "b"],
                "decisions": {"temperature": 1.0, "mood": 2},
            }
        )


READ = {
    "template": "Text: {input}\nAnswer: ",
    "input": "text",
    "output": "label",
    "max_length": 64,
    "max_new_tokens": 8,
}
TASKS = {
    "head": Classification(labels=("no", "yes"), max_length=32),
    "instruction": Instruction(labels=("no", "yes"), **READ),
    "free": Instruction(**READ),
}


def trainer_of(kind, base, folder, rows):
    model, tokenizer = peftcls.load_base(base, TASKS[kind])
    trainer = Trainer(
        peftcls.attach_lora(model, TASKS[kind], rank=4),
        TASKS[kind],
        tokenizer,
        TrainConfig(folder, epochs=8, batch_size=4, learning_rate=1e-2),
    )
    trainer.fit(rows)
    return trainer


@pytest.mark.parametrize("kind", ["head", "instruction"])
def test_a_calibrated_folder_decides_as_the_trainer_does(
    kind, request, tmp_path, text_rows, caplog
):
    trainer = trainer_of(
        kind, request.getfixturevalue("bert" if kind == "head" else "llama"), tmp_path, text_rows
    )
    other = {
        "yes": "no",
        "no": "yes",
    }  # of every fourth row, so that the trainer is too sure of itself
    valid = [
        {**row, "label": other[row["label"]] if n % 4 == 0 else row["label"]}
        for n, row in enumerate(text_rows)
    ]
    plain = trainer.predict(valid)
    before, after = trainer.calibrate(valid, min_accuracy=0.5)
    assert (
        "16 rows to calibrate on, expected at least 20; what is fitted to so few may not suit "
        "other rows." in caplog.text
    )
    decisions = trainer.task.decisions
    assert before == trainer.task.score(plain, valid)
    assert after["loss"] < before["loss"]
    assert decisions.temperature != 1
    assert decisions.abstain_below is not None
    kept, loaded = trainer.predict(valid), peftcls.load_predictor(tmp_path)
    again = loaded.predict(valid)
    assert loaded.task == trainer.task
    assert json.loads((tmp_path / "peftcls.json").read_text())["task"][
        "decisions"
    ] == dataclasses.asdict(decisions)
    assert [a.label for a in again] == [a.label for a in kept]
    for old, one, other in zip(plain, kept, again, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-6)
        powers = {name: p ** (1 / decisions.temperature) for name, p in old.probabilities.items()}
        assert one.probabilities == pytest.approx(
            {name: p / sum(powers.values()) for name, p in powers.items()}, rel=1e-4
        )
        best = max(one.probabilities, key=one.probabilities.get)
        assert one.label == (best if one.probabilities[best] >= decisions.abstain_below else None)

    trainer.calibrate(valid, min_accuracy=0.5)
    assert trainer.task.decisions.temperature == pytest.approx(decisions.temperature, rel=1e-3)


def test_the_temperature_is_told_and_so_is_caution(bert, tmp_path, text_rows, caplog):
    trainer = trainer_of("head", bert, tmp_path, text_rows)
    with caplog.at_level("INFO", logger="peftcls"):
        before, after = trainer.calibrate(text_rows)
    temperature = trainer.task.decisions.temperature
    told = f"calibrated on {len(text_rows)} rows: temperature {temperature:.2f}, loss "
    assert f"{told}{before['loss']:.3f} before and {after['loss']:.3f} after" in caplog.text
    assert ("They have too few wrong" in caplog.text) == (after["loss"] > before["loss"])
    caplog.clear()
    worse = {"loss": 0.5}
    assert tell_calibration(trainer.task, {"loss": 0.25}, worse, 20) is worse
    caution = "loss 0.250 before and 0.500 after. They have too few wrong answers to fit a"
    assert caution in caplog.text


def test_free_answers_have_nothing_to_calibrate(llama, tmp_path, text_rows):
    trainer = trainer_of("free", llama, tmp_path, text_rows)
    with pytest.raises(
        ValueError,
        match=r"^Instruction gives no probabilities of labels here, "
        r"so there is nothing to calibrate\.$",
    ):
        trainer.calibrate(text_rows)
    assert trainer.task == peftcls.load_predictor(tmp_path).task == TASKS["free"]

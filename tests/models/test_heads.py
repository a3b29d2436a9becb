"""What a classification head learns from: weights, shares, smoothing, focus, rare labels."""

import json
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

import peftcls
from peftcls import Classification, RowError
from peftcls.data.reading import as_dataset
from peftcls.engine.head_logits import class_logits
from peftcls.tasks.encoding import encode_table
from peftcls.tasks.labels import label_shares
from peftcls.training.data_order import step_rows, steps_per_epoch

LABELS = ("ham", "junk", "spam")
ROWS = [
    {"text": "the patient recovered", "label": "ham"},
    {"text": "free prize, call now!", "label": "spam"},
    {"text": "stock prices fell after the bank raised rates", "label": "junk"},
    {"text": "see you at lunch", "label": "ham"},
]


@pytest.fixture(scope="module")
def parts(bert):
    model, tokenizer = peftcls.load_base(bert, Classification(labels=LABELS))
    model.double().classifier.weight.data *= 40  # logits that differ
    return model, tokenizer


def learnt_from(parts, rows, **task_settings):
    """The loss of the rows, the logits in NumPy, and the features."""
    model, tokenizer = parts
    task = Classification(labels=LABELS, **task_settings).learn(rows)
    features = [task.encode(row, tokenizer, with_target=True) for row in rows]
    batch = task.collate(features, tokenizer)
    with torch.no_grad():
        return (
            float(task.loss_sum(model, batch)),
            class_logits(model, batch, None).numpy(),
            features,
        )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def places(rows):
    return [LABELS.index(row["label"]) for row in rows]


# Weights of labels


def test_the_weight_of_a_label_is_that_of_its_rows_loss(parts):
    found, logits, features = learnt_from(parts, ROWS, class_weight={"ham": 0.5, "spam": 4})
    losses = -log_softmax(logits)[range(4), places(ROWS)]
    assert [feature["weight"] for feature in features] == [0.5, 4, 1, 0.5]
    assert found == pytest.approx(float(losses @ [0.5, 4, 1, 0.5]), rel=1e-6)


def test_a_soft_target_has_the_weights_of_its_labels_in_their_shares(parts):
    rows = [
        {"text": "see you at lunch", "label": {"ham": 3, "spam": 1}},
        {"text": "yes no", "label": {"junk": 2}},
    ]
    _, _, features = learnt_from(parts, rows, class_weight={"ham": 2.0, "spam": 8})
    assert [feature["weight"] for feature in features] == pytest.approx([0.75 * 2 + 0.25 * 8, 1])


@given(
    st.lists(st.sampled_from(LABELS), min_size=3, max_size=40).filter(
        lambda names: len(set(names)) == len(LABELS)
    )
)
def test_balanced_weights_are_those_of_scikit_learn(names):
    learnt = Classification(class_weight="balanced").learn(
        [{"text": "x", "label": name} for name in names]
    )
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=names)
    assert learnt.class_weight == pytest.approx(dict(zip(LABELS, expected, strict=True)))


@pytest.mark.parametrize(
    ("task_settings", "sentence"),
    [
        (
            {"class_weight": {"eggs": 1.0}},
            r"class_weight names the label 'eggs', expected some of \['ham', 'junk', 'spam'\]\.",
        ),
        (
            {"class_weight": "rare"},
            r"class_weight='rare': expected 'balanced' or a weight for each label\.",
        ),
        ({"sampling": "rare"}, r"sampling='rare': expected 'balanced' or None\."),
        (
            {"sampling": "balanced", "class_weight": "balanced"},
            r"sampling='balanced' with class_weight: either makes rare labels count for "
            r"more, both would do it twice\.",
        ),
        (
            {"sampling": "balanced", "multi_label": True},
            r"sampling='balanced' with multi_label=True: a row with several labels cannot be "
            r"drawn for one of them\.",
        ),
        ({"long_text": "cut"}, r"long_text='cut': expected 'truncate' or 'windows'\."),
    ],
)
def test_settings_of_a_head_that_cannot_be_are_told(task_settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Classification(labels=LABELS, **task_settings)


# Targets


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
def test_a_share_of_one_is_the_label_itself(parts, loss):
    hard, _, features = learnt_from(parts, ROWS, loss=loss)
    soft, _, again = learnt_from(
        parts, [{**row, "label": {row["label"]: 1}} for row in ROWS], loss=loss
    )
    assert again == features
    assert soft == hard


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), st.floats(1e-3, 1e3))
def test_votes_become_shares_of_one(votes, unit):
    found = label_shares(
        {name: count * unit for name, count in zip(LABELS, votes, strict=True)}, several=False
    )
    assert found == pytest.approx(
        {name: count / sum(votes) for name, count in zip(LABELS, votes, strict=True)}
    )


def test_the_cross_entropy_of_shares_is_the_mean_of_their_labels_losses(parts):
    rows = [{"text": "see you at lunch", "label": {"ham": 3, "spam": 1}}]
    found, logits, _ = learnt_from(parts, rows)
    assert found == pytest.approx(float(-log_softmax(logits)[0] @ [0.75, 0, 0.25]), rel=1e-6)


def test_the_shares_of_several_labels_stand_for_themselves():
    assert label_shares({"ham": 0.5, "spam": 0.25, "junk": None}, several=True) == {
        "ham": 0.5,
        "spam": 0.25,
    }
    task = Classification(multi_label=True, labels=LABELS)
    assert task.gold_of({"label": {"ham": 0.5, "spam": 0.25}}) == ("ham",)


@pytest.mark.parametrize(
    ("multi", "share", "bound"),
    [
        (False, -1.0, ""),
        (False, float("nan"), ""),
        (False, float("inf"), ""),
        (True, 1.5, " and at most 1"),
        (True, -0.5, " and at most 1"),
    ],
)
def test_a_share_that_cannot_be_is_told_with_its_row(multi, share, bound):
    rows = as_dataset(
        [{"text": "a", "label": {"ham": 1.0}}, {"text": "b", "label": {"ham": 0.5, "spam": share}}]
    )
    task = Classification(labels=LABELS, multi_label=multi)
    sentence = (
        rf"^row 2 of rows has the share {share} for the label 'spam', "
        rf"expected a number of at least 0{bound} in column 'label'\.$"
    )
    with pytest.raises(RowError, match=sentence):
        peftcls.check_rows(task, rows)
    with pytest.raises(RowError, match=r"row 2 of rows has the share"):
        Classification(multi_label=multi).learn(rows)


def test_votes_that_are_all_zero_are_no_label():
    with pytest.raises(
        RowError,
        match=r"^row 1 of rows has no label in column 'label'; fill it in or leave the row out\.$",
    ):
        peftcls.check_rows(
            Classification(labels=LABELS),
            as_dataset([{"text": "a", "label": {"ham": 0, "spam": 0}}]),
        )


def test_smoothing_spreads_its_share_over_all_labels(parts):
    found, logits, _ = learnt_from(parts, ROWS, label_smoothing=0.3)
    target = np.eye(3)[places(ROWS)] * 0.7 + 0.1
    assert found == pytest.approx(float(-(target * log_softmax(logits)).sum()), rel=1e-6)


def test_the_focal_loss_is_the_formula_of_its_paper(parts):
    found, logits, _ = learnt_from(parts, ROWS, loss="focal")
    p = np.exp(log_softmax(logits)[range(4), places(ROWS)])
    assert found == pytest.approx(float((-((1 - p) ** 2) * np.log(p)).sum()), rel=1e-6)
    easy, _, _ = learnt_from(parts, ROWS)
    assert found < easy


def test_yes_or_no_questions_are_asked_once_a_label(parts):
    found, logits, _ = learnt_from(parts, ROWS, loss="bce")
    yes, target = 1 / (1 + np.exp(-logits)), np.eye(3)[places(ROWS)]
    assert found == pytest.approx(
        float(-(target * np.log(yes) + (1 - target) * np.log(1 - yes)).mean(1).sum()), rel=1e-6
    )


# Balanced sampling


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(0, 2**32),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_each_stratum_is_drawn_equally_often_and_its_rows_too(strata, batch_size, seed, epoch):
    steps = steps_per_epoch(len(strata), batch_size)
    found = [
        step_rows(len(strata), batch_size, seed, epoch * steps + step, strata)
        for step in range(steps)
    ]
    drawn = Counter(chain(*found))
    assert drawn.total() == len(strata)
    assert all(len(step) == batch_size for step in found[:-1])
    of_stratum = {
        kind: sum(drawn[row] for row, own in enumerate(strata) if own == kind)
        for kind in set(strata)
    }
    assert max(of_stratum.values()) - min(of_stratum.values()) <= 1
    for kind in of_stratum:
        counts = [drawn[row] for row, own in enumerate(strata) if own == kind]
        assert max(counts) - min(counts) <= 1


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 2**32), st.integers(0, 30)
)
@settings(max_examples=50, deadline=None)
def test_what_is_drawn_depends_on_seed_and_epoch_alone(strata, seed, step):
    first = step_rows(len(strata), 7, seed, step, strata)
    np.random.default_rng(0).permutation(9)
    for other in range(step, -1, -1):
        step_rows(len(strata), 7, seed, other, strata)
    assert first == step_rows(len(strata), 7, seed, step, np.array(strata))


def test_epochs_and_seeds_draw_differently():
    strata = [0] * 20 + [1] * 4
    assert (
        len(
            {
                tuple(step_rows(24, 24, seed, epoch, strata))
                for seed in range(3)
                for epoch in range(3)
            }
        )
        == 9
    )


def test_rows_are_drawn_for_the_label_with_most_votes(bert):
    rows = as_dataset(
        [
            {"text": "a b", "label": {"ham": 3, "spam": 1}},
            {"text": "b", "label": {"spam": 2.0}},
            {"text": "c", "label": {"ham": 1.0}},
        ]
    )
    task = Classification(sampling="balanced").learn(rows)
    table = encode_table(task, rows, peftcls.load_base(bert, task)[1], "base")
    assert table.strata is not None
    assert [task.labels[i] for i in table.strata] == ["ham", "spam", "ham"]


def test_a_task_with_shares_comes_back_from_json():
    task = Classification(
        labels=LABELS, class_weight={"ham": 1 / 3}, long_text="windows", sampling=None
    )
    assert Classification.from_json(json.loads(json.dumps(task.to_json()))) == task

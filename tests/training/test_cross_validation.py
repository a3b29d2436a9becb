"""Cross-validation: a row is answered by a fold not trained on it, and the model is unchanged."""

from collections import Counter

import pytest
import torch
import transformers
from conftest import SIZES, save_base, word_piece_tokenizer
from safetensors.torch import load_file
from tokenizers import models

import peftcls
from peftcls import Classification, Regression, TrainConfig, cross_validate
from peftcls.data.reading import as_dataset
from peftcls.models.trainable import trained_parameters
from peftcls.training.cross_validation import assign_rows

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
EASY = [
    {"text": f"{text} {word}", "label": label}
    for word in ("yes", "no", "maybe")
    for texts, label in ((MEDICAL, "med"), (OTHER, "other"))
    for text in texts
]
FLIPPED = 5  # the index of the row of EASY that gets a wrong label


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A base with a fixed vocabulary.

    A trained one differs from run to run, and with it what a model learns in so few steps.
    """
    words = [word for row in EASY for word in row["text"].split()]
    pieces = [
        f"{mark}{letter}"
        for mark in ("", "##")
        for letter in "abcdefghijklmnopqrstuvwxyz0123456789,!:."
    ]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *pieces,
        *sorted(set(words) - set(pieces)),
    ]
    tokenizer = word_piece_tokenizer()
    tokenizer.backend_tokenizer.model = models.WordPiece(
        {word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"
    )
    config = transformers.BertConfig(vocab_size=400, **SIZES)
    return save_base(tmp_path_factory.mktemp("bert"), transformers.BertModel, config, tokenizer)


def load_with_adapter(base, task, method="lora"):
    model, tokenizer = peftcls.load_base(base, task)
    return peftcls.attach_lora(model, task, rank=4, targets="all-linear", method=method), tokenizer


def config(folder, **changes):
    return TrainConfig(folder, **{"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, **changes})


@pytest.fixture(scope="module")
def validated(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    rows = [{**row, "label": "med"} if n == FLIPPED else row for n, row in enumerate(EASY)]
    assert rows != EASY
    task = Classification(max_length=32).learn(rows)
    model, tokenizer = load_with_adapter(bert, task)
    trained_texts = []
    fit = peftcls.Trainer.fit

    def fit_and_note(trainer, prepared, **settings):
        trained_texts.append(list(prepared.train_rows["text"]))
        return fit(trainer, prepared, **settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(peftcls.Trainer, "fit", fit_and_note)
        start = {name: p.detach().clone() for name, p in trained_parameters(model).items()}
        found = cross_validate(model, task, tokenizer, config(folder), rows, folds=4)
    return found, rows, folder, trained_texts, (model, start)


@pytest.mark.slow
def test_every_row_is_answered_once_by_the_fold_not_trained_on_it(validated):
    found, rows, folder, trained_texts, _ = validated
    assert len(found.answers) == len(found.fold_of) == len(rows)
    assert Counter(found.fold_of) == {0: 6, 1: 6, 2: 6, 3: 6}
    assert repr(found).startswith("24 rows in 4 folds\n")
    for fold, texts in enumerate(trained_texts):
        folds_of_rows = zip(rows, found.fold_of, strict=True)
        held = {row["text"] for row, fold_of_row in folds_of_rows if fold_of_row == fold}
        assert held.isdisjoint(texts)
        assert held | set(texts) == {row["text"] for row in rows}
        predictor = peftcls.load_predictor(folder / f"fold-{fold}")
        for number, answer in enumerate(predictor.predict([row["text"] for row in rows])):
            if found.fold_of[number] == fold:
                assert answer.probabilities == pytest.approx(
                    found.answers[number].probabilities, abs=1e-6
                )
    assert sorted(path.name for path in folder.iterdir()) == [f"fold-{fold}" for fold in range(4)]


def test_the_answers_of_the_probe_are_those_before_a_fold_learns(bert, tmp_path):
    task = Classification(max_length=32).learn(EASY)
    model, tokenizer = load_with_adapter(bert, task)
    still = config(tmp_path, epochs=1, learning_rate=1e-12, weight_decay=0.0)
    found = cross_validate(model, task, tokenizer, still, EASY, folds=3)
    assert found.probe_answers is not None
    # A head begins smaller than the probe, with the same answers.
    of_probe = [answer.label for answer in found.probe_answers]
    assert [answer.label for answer in found.answers] == of_probe
    assert len(set(of_probe)) == 2


def test_folds_that_begin_at_random_have_no_probe(bert, tmp_path):
    task = Classification(max_length=32).learn(EASY)
    model, tokenizer = load_with_adapter(bert, task)
    random = config(tmp_path, epochs=1, head_init="random")
    assert cross_validate(model, task, tokenizer, random, EASY, folds=2).probe_answers is None


def test_labels_are_spread_evenly_over_the_folds(validated):
    found, rows, *_ = validated
    for label in ("med", "other"):
        counts = Counter(
            fold for fold, row in zip(found.fold_of, rows, strict=True) if row["label"] == label
        )
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_model_is_unchanged(validated):
    *_, (model, start) = validated
    assert all(torch.equal(p, start[name]) for name, p in trained_parameters(model).items())


def test_a_fold_does_not_depend_on_the_folds_before_it(validated, bert, tmp_path):
    found, rows, folder, *_ = validated
    task = Classification(max_length=32).learn(rows)
    model, tokenizer = load_with_adapter(bert, task)
    peftcls.Trainer(model, task, tokenizer, config(tmp_path)).fit(
        [r for r, fold in zip(rows, found.fold_of, strict=True) if fold != 3]
    )
    alone, last, first = (
        load_file(path / "adapter_model.safetensors")
        for path in (tmp_path, folder / "fold-3", folder / "fold-0")
    )
    assert all(torch.equal(alone[name], last[name]) for name in alone)
    assert not any(torch.equal(first[name], last[name]) for name in last if "lora_B" in name)


def test_scores_are_those_of_the_answers(validated):
    found, rows, *_ = validated
    task = Classification(labels=("med", "other"))
    assert found.scores == task.score(found.answers, rows)
    assert len(found.fold_scores) == 4
    for fold, scores in enumerate(found.fold_scores):
        own = [n for n, of in enumerate(found.fold_of) if of == fold]
        assert scores == task.score([found.answers[n] for n in own], [rows[n] for n in own])
    assert found.scores["accuracy"] > 0.7


def test_a_wrong_label_is_among_the_first_doubts(validated):
    found, rows, *_ = validated
    assert FLIPPED + 1 in [doubt.row for doubt in found.doubts[:4]]
    assert sorted(doubt.row for doubt in found.doubts) == list(range(1, len(rows) + 1))
    assert [doubt.probability for doubt in found.doubts] == sorted(
        doubt.probability for doubt in found.doubts
    )
    for doubt in found.doubts:
        assert doubt.label == rows[doubt.row - 1]["label"]
        answer = found.answers[doubt.row - 1]
        assert (doubt.given, doubt.probability) == (answer.label, answer.probabilities[doubt.label])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pissa", "adalora"])
def test_the_same_folds_twice_give_the_same_answers(method, bert, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_with_adapter(bert, task, method)
    every = {name: p.detach().clone() for name, p in model.named_parameters()}
    one, other = (
        cross_validate(
            model, task, tokenizer, config(tmp_path / name, epochs=3), text_rows, folds=2
        )
        for name in "ab"
    )
    assert one == other
    assert all(torch.equal(p, every[name]) for name, p in model.named_parameters())
    another = cross_validate(
        model, task, tokenizer, config(tmp_path / "c", epochs=2, seed=1), text_rows, folds=2
    )
    assert another.fold_of != one.fold_of


def test_numbers_are_cross_validated_without_doubts(bert, tmp_path):
    rows = [{"text": row["text"], "score": len(row["text"])} for row in EASY]
    task = Regression(max_length=32).learn(rows)
    model, tokenizer = load_with_adapter(bert, task)
    found = cross_validate(model, task, tokenizer, config(tmp_path, epochs=1), rows, folds=2)
    assert found.doubts == []
    assert set(found.scores) == set(task.score_names)
    assert Counter(found.fold_of) == {0: 12, 1: 12}


def test_the_weights_are_put_back_after_a_failure_too(bert, tmp_path, text_rows, monkeypatch):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_with_adapter(bert, task)
    start = {name: p.detach().clone() for name, p in trained_parameters(model).items()}

    def failing(trainer, rows):
        raise OSError("no space left")

    monkeypatch.setattr(peftcls.Trainer, "predict", failing)
    with pytest.raises(OSError, match="no space"):
        cross_validate(model, task, tokenizer, config(tmp_path, epochs=1), text_rows, folds=2)
    assert all(torch.equal(p, start[name]) for name, p in trained_parameters(model).items())


@pytest.mark.parametrize("folds", [0, 1, 17])
def test_impossible_numbers_of_folds_are_refused(folds, bert, tmp_path, text_rows):
    task = Classification(max_length=32).learn(text_rows)
    model, tokenizer = load_with_adapter(bert, task)
    with pytest.raises(
        ValueError,
        match=rf"^folds={folds}: expected a whole number of at least 2 and at most the 16 rows\.$",
    ):
        cross_validate(model, task, tokenizer, config(tmp_path), text_rows, folds=folds)
    assert not any(tmp_path.iterdir())


def test_rows_that_cannot_be_trained_on_without_a_fold_are_refused_before_any_training(
    bert, tmp_path
):
    rows = [{"text": text, "label": ["med"] if text == MEDICAL[0] else []} for text in MEDICAL]
    task = Classification(labels=("med", "other"), multi_label=True)
    model, tokenizer = peftcls.load_base(bert, task)
    model = peftcls.attach_lora(model, task, rank=2)
    config = TrainConfig(tmp_path, epochs=1, batch_size=4)
    with pytest.raises(
        peftcls.RowError, match=r"^without the rows of fold \d, rows has only the label \[\]"
    ):
        cross_validate(model, task, tokenizer, config, rows, folds=4)
    assert not list(tmp_path.iterdir())


def held_together(rows, key, held_out):
    """Whether the rows of each value are held out by one fold."""
    fold_of = {row: fold for fold, held in enumerate(held_out) for row in held}
    folds = {}
    for number, row in enumerate(rows):
        folds.setdefault(row[key], set()).add(fold_of[number])
    return all(len(each) == 1 for each in folds.values())


@pytest.mark.parametrize("task", [Classification(), Regression(), Classification(multi_label=True)])
def test_rows_of_a_group_and_of_a_text_are_held_out_together(task):
    rows = [
        {**row, "customer": n % 7, "score": n % 5, "text": row["text"] if n > 2 else "the same"}
        for n, row in enumerate(EASY)
    ]
    table = as_dataset(rows)
    held_out = assign_rows(task.learn(rows), table, 3, 0, "customer")
    assert held_together(rows, "customer", held_out)
    assert held_together(rows, "text", held_out)
    assert sorted(row for held in held_out for row in held) == list(range(24))
    # Twelve rows belong together by the text that three customers have in common.
    assert sorted(map(len, held_out)) == [6, 6, 12]
    by_text = assign_rows(task.learn(rows), table, 3, 0)
    assert held_together(rows, "text", by_text)
    assert not held_together(rows, "customer", by_text)


def test_folds_that_groups_do_not_allow_are_refused():
    task = Classification().learn(EASY)
    rows = [{**row, "customer": n % 3} for n, row in enumerate(EASY)]
    with pytest.raises(ValueError, match=r"^folds=4: the rows have only 3 groups by column 'cust"):
        assign_rows(task, as_dataset(rows), 4, 0, "customer")
    rows = [
        {**row, "customer": "one" if row["label"] == "med" else str(n)}
        for n, row in enumerate(EASY)
    ]
    with pytest.raises(ValueError, match=r"^all rows with the label 'med' are held out together"):
        assign_rows(task, as_dataset(rows), 3, 0, "customer")
    with pytest.raises(peftcls.RowError, match=r"no column 'custmer'; .* Did you mean 'customer'"):
        assign_rows(task, as_dataset(rows), 3, 0, "custmer")

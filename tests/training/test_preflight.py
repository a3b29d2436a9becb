"""A trainer takes the task that its model was loaded for, and refuses another one at once."""

import pytest

from peftcls import (
    Classification,
    ExtractiveQA,
    Regression,
    TrainConfig,
    Trainer,
    load_base,
    train_only,
)

LOADED = Classification(labels=("no", "yes"), max_length=16)


@pytest.fixture(scope="module")
def loaded(bert):
    model, tokenizer = load_base(bert, LOADED)
    return train_only(model, LOADED, "head"), tokenizer


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Classification(labels=("yes", "no")), r"its id2label is .*'no'.* give the same task to"),
        (Classification(labels=("a", "b", "c")), "loaded for another task: its id2label is"),
        (Classification(labels=("no", "yes"), multi_label=True), "its problem_type is 'single"),
        (Regression(mean=0.0, deviation=1.0), "loaded for another task: its num_labels is 2"),
        (ExtractiveQA(), "the kind SEQ_CLS, and this task is a ExtractiveQA"),
        (Classification(), r"the label names are not known yet: use task = task.learn\(rows\)"),
        (Regression(), "mean and deviation of the numbers are not known yet"),
    ],
)
def test_a_task_that_the_model_was_not_loaded_for_is_refused(task, sentence, loaded, tmp_path):
    model, tokenizer = loaded
    with pytest.raises(ValueError, match=sentence):
        Trainer(model, task, tokenizer, TrainConfig(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_same_task_with_other_lengths_is_taken(loaded, tmp_path):
    model, tokenizer = loaded
    task = Classification(labels=("no", "yes"), max_length=8, label_smoothing=0.1)
    Trainer(model, task, tokenizer, TrainConfig(tmp_path / "run"))

"""Arguments with the names of other libraries: a sentence says what they are called here."""

import pytest

import peftcls
from peftcls import TrainConfig, attach_lora, load_base
from peftcls.argument_names import explanation, names_arguments


@pytest.mark.parametrize(
    ("function", "settings", "sentence"),
    [
        (attach_lora, {"r": 8}, "attach_lora has no argument r=; it is called rank= here."),
        (attach_lora, {"lora_alpha": 8}, "it is called alpha= here."),
        (attach_lora, {"drpout": 0.1}, "it is called dropout= here."),
        (load_base, {"load_in_4bit": True}, "it is quantize='4bit' here."),
        (TrainConfig, {"lr": 1e-3}, "TrainConfig has no argument lr=; it is called learning_rate="),
        (TrainConfig, {"num_train_epochs": 3}, "it is called epochs= here."),
        (TrainConfig, {"max_steps": 3}, "it is called epochs= here; the length of a run is set"),
        (TrainConfig, {"lora_alpha": 3}, "TrainConfig has no argument lora_alpha=; give alpha= to"),
        (TrainConfig, {"max_seq_length": 3}, "; give max_length= to the task, such as Classific"),
        (
            TrainConfig,
            {"bf16": True},
            "TrainConfig has no argument bf16=; give dtype= to load_base",
        ),
        (
            load_base,
            {"max_steps": 3},
            "load_base has no argument max_steps=: the length of a run is",
        ),
        (TrainConfig, {"gradient_clipping": 3}, "it is called max_grad_norm= here."),
        (TrainConfig, {"fp16_opt_level": "O1"}, "has no argument fp16_opt_level=; it has ['outpu"),
    ],
)
def test_an_argument_that_does_not_exist_is_named_as_it_is_here(function, settings, sentence):
    with pytest.raises(TypeError) as caught:
        function("runs/a", **settings)
    assert sentence in str(caught.value)


def test_settings_that_exist_pass_by_name_and_by_place():
    assert TrainConfig("runs/a", 2, learning_rate=1e-4).epochs == 2

    @names_arguments
    def add(first: int, *, second: int = 1) -> int:
        """Add two numbers."""
        return first + second

    assert add(1, second=3) == 4
    assert add.__doc__ == "Add two numbers."


def test_a_name_from_elsewhere_counts_only_where_the_setting_exists():
    assert explanation("LR", ["learning_rate", "rank"], str.upper) == (
        "; it is called LEARNING_RATE here"
    )
    assert explanation("lr", ["rank"], str.upper) is None


@pytest.mark.parametrize(
    ("task", "settings", "meant"),
    [
        (peftcls.Classification, {"txt": "body"}, "text"),
        (peftcls.Classification, {"text_column": "body"}, "text"),
        (peftcls.Regression, {"max_len": 8}, "max_length"),
        (peftcls.Instruction, {"templat": "{input}"}, "template"),
        (peftcls.ExtractiveQA, {"strid": 8}, "stride"),
    ],
)
def test_tasks_name_their_settings(task, settings, meant):
    with pytest.raises(TypeError, match=rf"it is called {meant}= here"):
        task(**settings)


def test_parts_in_another_order_are_told_by_what_they_are(bert, text_rows, tmp_path):
    task = peftcls.Classification(max_length=16).learn(text_rows)
    model, tokenizer = load_base(bert, task)
    config = TrainConfig(tmp_path / "run")
    sentence = (
        r"Trainer\(model, task, tokenizer, config\): model is a Classification, expected a model "
        r"from attach_lora or train_only; task is a BertForSequenceClassification, expected a task"
    )
    with pytest.raises(ValueError, match=sentence):
        peftcls.Trainer(task, model, tokenizer, config)
    with pytest.raises(ValueError, match="tokenizer is a Classification, expected the tokenizer"):
        peftcls.Trainer(attach_lora(model, task), tokenizer, task, config)
    with pytest.raises(ValueError, match="config is the class TrainConfig, expected a TrainConfig"):
        peftcls.Trainer(model, task, tokenizer, TrainConfig)
    with pytest.raises(ValueError, match=r"attach_lora\(model, task\): model is a Classification"):
        attach_lora(task, model)
    with pytest.raises(ValueError, match=r"attach_adapter\(model, task\): task is a Tokenizers"):
        peftcls.attach_adapter(model, tokenizer, tmp_path)

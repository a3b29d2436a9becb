"""An encoder's linear head on the mean of its tokens: by its task, or by the base's own folder."""

import shutil

import pytest
import torch
from conftest import SIZES, save_base, word_piece_tokenizer
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

import peftcls
from peftcls.engine.model_state import base_facts, unwrapped

TEXTS = ["the patient recovered", "stock prices fell after lunch", "yes"]
ENCODERS = {
    "roberta": (RobertaModel, RobertaConfig(vocab_size=400, **SIZES)),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(vocab_size=400, dim=128, n_layers=2, n_heads=4, hidden_dim=256),
    ),
    "deberta": (DebertaV2Model, DebertaV2Config(vocab_size=400, **SIZES)),
}


@pytest.fixture(scope="module", params=["bert", *ENCODERS])
def encoder(request, bert, tmp_path_factory):
    if request.param == "bert":
        return bert
    model_class, config = ENCODERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return save_base(folder, model_class, config, word_piece_tokenizer())


def trained(base, folder, rows, **settings):
    """Train an adapter for a moment; return its trainer."""
    task = peftcls.Classification(max_length=32, **settings).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4, targets="all-linear")
    config = peftcls.TrainConfig(folder, epochs=1, batch_size=8, learning_rate=1e-3)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(rows)
    return trainer


def test_the_head_reads_the_mean_of_the_real_tokens(encoder, text_rows, tmp_path):
    task = peftcls.Classification(max_length=32, pooling="mean").learn(text_rows)
    model, tokenizer = peftcls.load_base(encoder, task, dtype=torch.float32)
    assert base_facts(model).pooling == "mean"
    head = model.get_submodule(base_facts(model).heads[0])
    for text in TEXTS:
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt")
            states = model.base_model(**inputs).last_hidden_state
            expected = head(states.mean(1)).softmax(1)[0]
        (answer,) = peftcls.Predictor(model, task, tokenizer).predict([text])
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    together = peftcls.Predictor(model, task, tokenizer).predict(TEXTS)
    alone = [peftcls.Predictor(model, task, tokenizer).predict([text])[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_every_trained_tensor_learns_and_the_folder_answers_the_same(encoder, text_rows, tmp_path):
    trainer = trained(encoder, tmp_path / "out", text_rows, pooling="mean")
    assert not [name for name in trainer.parameters if "pooler" in name]
    moved = [p for name, p in trainer.parameters.items() if "lora_B" in name]
    assert all(float(p.detach().abs().max()) > 0 for p in moved)
    loaded = peftcls.load_predictor(tmp_path / "out")
    answers = trainer.predict(text_rows)
    for one, other in zip(loaded.predict(text_rows), answers, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_base_that_was_trained_on_means_is_read_so_unless_the_task_says_otherwise(sentence_bert):
    for pooling, expected in ((None, "mean"), ("mean", "mean"), ("cls", None)):
        task = peftcls.Classification(labels=("a", "b"), pooling=pooling)
        model, _ = peftcls.load_base(sentence_bert, task)
        assert base_facts(model).pooling == expected
    questions, _ = peftcls.load_base(sentence_bert, peftcls.ExtractiveQA())
    assert base_facts(questions).pooling is None


@pytest.mark.parametrize("content", ["{", "[]", '{"pooling_mode_cls_token": true}', "\x00"])
def test_a_folder_that_does_not_say_so_is_read_by_its_own_head(sentence_bert, content):
    (sentence_bert / "1_Pooling" / "config.json").write_text(content)
    model, _ = peftcls.load_base(sentence_bert, peftcls.Classification(labels=("a", "b")))
    assert base_facts(model).pooling is None


def test_a_folder_keeps_its_pooling_whatever_its_base_says_later(
    sentence_bert, text_rows, tmp_path
):
    trainer = trained(sentence_bert, tmp_path / "mean", text_rows)
    answers = trainer.predict(text_rows)
    shutil.rmtree(sentence_bert / "1_Pooling")
    loaded = peftcls.load_predictor(tmp_path / "mean")
    assert base_facts(loaded.model).pooling == "mean"
    for one, other in zip(loaded.predict(text_rows), answers, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_folders_on_one_base_read_the_mean_too(sentence_bert, text_rows, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    answers = [trained(sentence_bert, folder, text_rows).predict(text_rows) for folder in folders]
    many = peftcls.load_predictor(folders).predict_all(text_rows)
    for folder, expected in zip(folders, answers, strict=True):
        for one, other in zip(many[folder.name], expected, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    trained(sentence_bert, tmp_path / "third", text_rows, pooling="cls")
    with pytest.raises(ValueError, match="the head of one reads the mean of all tokens"):
        peftcls.load_predictor([folders[0], tmp_path / "third"])


def test_it_cannot_be_merged_and_says_how_it_could(sentence_bert, text_rows, tmp_path):
    trained(sentence_bert, tmp_path / "mean", text_rows)
    with pytest.raises(ValueError, match=r"mean of all tokens.*trained with pooling='cls'"):
        peftcls.merge_adapter(tmp_path / "mean", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    trained(sentence_bert, tmp_path / "cls", text_rows, pooling="cls")
    peftcls.merge_adapter(tmp_path / "cls", tmp_path / "merged")


def test_training_continues_from_it(sentence_bert, text_rows, tmp_path):
    trained(sentence_bert, tmp_path / "mean", text_rows)
    model, task, _ = peftcls.learn_on(tmp_path / "mean", text_rows)
    assert base_facts(model).pooling == "mean"
    assert task.labels == ("no", "yes")
    assert unwrapped(model).config.num_labels == 2


def test_the_card_of_the_folder_does_not_offer_plain_peft(sentence_bert, text_rows, tmp_path):
    trained(sentence_bert, tmp_path / "mean", text_rows)
    card = (tmp_path / "mean" / "README.md").read_text(encoding="utf-8")
    assert "Plain PEFT cannot use it: the head reads the mean of all tokens" in card
    assert "PeftModel" not in card
    trained(sentence_bert, tmp_path / "cls", text_rows, pooling="cls")
    assert "PeftModel" in (tmp_path / "cls" / "README.md").read_text(encoding="utf-8")

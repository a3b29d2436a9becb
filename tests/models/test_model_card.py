"""The model card: in the hub's own form, from the folder alone, the same in every run."""

import re

import pytest
import torch
from huggingface_hub import ModelCard

import peftcls
from peftcls.engine.head_logits import class_logits
from peftcls.models.adapter_folder import save_adapter

TEXTS = ["the patient was given a new drug and recovered", "stock prices fell", "yes"]
TASK = peftcls.Classification(labels=("no", "yes"), max_length=64)
TASKS = {
    "text-classification": TASK,
    "question-answering": peftcls.ExtractiveQA(unanswerable=True, max_length=64),
    "text-generation": peftcls.Instruction(template="{input}: ", max_length=64, max_new_tokens=4),
}


def saved(base, folder, task=TASK, part=None):
    model, tokenizer = peftcls.load_base(base, task)
    model = (
        peftcls.train_only(model, task, part) if part else peftcls.attach_lora(model, task, rank=2)
    )
    return save_adapter(folder, model, task, tokenizer).directory


@pytest.mark.parametrize("pipeline", TASKS)
def test_a_card_is_in_the_form_of_the_hub(llama, tmp_path, pipeline):
    path = peftcls.write_card(saved(llama, tmp_path / "a", TASKS[pipeline]))
    assert path == tmp_path / "a" / "README.md"
    card = ModelCard.load(path)
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == pipeline
    assert card.data.tags == ["peftcls", "peft", "lora"]
    assert "load_predictor(" in card.text
    assert "PeftModel.from_pretrained(model" in card.text


def test_a_card_holds_no_path_of_this_machine(bert, tmp_path):
    text = peftcls.write_card(saved(bert, tmp_path / "a")).read_text()
    assert str(tmp_path) not in text
    assert bert not in text
    assert ModelCard(text).data.base_model is None, "a folder is nothing that the hub could link to"


def test_a_card_without_scores_says_so_and_one_with_scores_shows_their_intervals(
    bert, tmp_path, text_rows
):
    folder = saved(bert, tmp_path / "a")
    assert "None are stored with this folder." in peftcls.write_card(folder).read_text()
    scores = peftcls.evaluate_answers(
        TASK, peftcls.load_predictor(folder).predict(text_rows), text_rows, resamples=20
    )
    card = ModelCard.load(
        peftcls.write_card(folder, scores=scores, about={"test rows": "16 made up"})
    )
    (accuracy,) = [result for result in card.data.eval_results if result.metric_name == "accuracy"]
    assert accuracy.metric_value == round(scores.scores["accuracy"], 4)
    assert accuracy.dataset_name == "16 made up"
    low, high = scores.intervals["accuracy"]
    assert f"| accuracy | {scores.scores['accuracy']:.4f} | {low:.4f} to {high:.4f} |" in card.text
    assert "On 16 test rows (16 made up):" in card.text


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT asks by the old name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [None, "head"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_the_code_in_a_card_gives_the_same_logits_and_label_names(
    name, part, dtype, tmp_path, request
):
    base, folder = request.getfixturevalue(name), tmp_path / "a"
    model, tokenizer = peftcls.load_base(base, TASK, dtype=dtype)
    model = (
        peftcls.train_only(model, TASK, part) if part else peftcls.attach_lora(model, TASK, rank=2)
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    text = peftcls.write_card(save_adapter(folder, model, TASK, tokenizer)).read_text()
    own, plain = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said: list[dict] = [{}, {}]
    for block, names in zip((own, plain), said, strict=True):
        exec(
            block.replace("path/to/this/folder", str(folder)).replace("path/to/the/base", base),
            names,
        )
    found, predictor = said[1]["model"].eval(), said[0]["predictor"]
    batch = said[1]["tokenizer"](TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = found(**batch).logits
        expected = class_logits(predictor.model, dict(batch), None)
    assert expected.std() > 0.01
    near = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(logits.float(), expected, atol=near, rtol=0)
    assert found.config.id2label == dict(enumerate(predictor.label_names)) == {0: "no", 1: "yes"}
    assert found.config.label2id == {"no": 0, "yes": 1}
    assert ("narrowed to bfloat16" in text) == (dtype == torch.bfloat16)


def test_a_card_tells_limits_in_plain_words(bert, llama, tmp_path):
    unsure = peftcls.Classification(
        labels=("no", "yes"), max_length=64, decisions=peftcls.Decisions(1.5, abstain_below=0.8)
    )
    text = peftcls.write_card(saved(bert, tmp_path / "a", unsure)).read_text()
    assert (
        "a text that belongs to none of them gets one of them, "
        "or none where the model is too unsure."
    ) in text
    assert "- decisions: temperature 1.5; no label below the probability 0.8" in text
    assert "calibrated" not in text
    assert "It reads at most 64 tokens at once" in text


def test_a_readme_that_is_no_card_of_ours_is_left_alone(bert, tmp_path):
    folder = saved(bert, tmp_path / "a")
    (folder / "README.md").write_text("# My project\n\n- peftcls\n")
    assert peftcls.write_card(folder).read_text() == "# My project\n\n- peftcls\n"


def test_a_card_may_be_edited_without_damage_to_the_folder(bert, tmp_path, text_rows):
    folder = saved(bert, tmp_path / "a")
    card = peftcls.write_card(folder)
    card.write_text(card.read_text() + "\nLicence: ours.\n")
    assert len(peftcls.load_predictor(folder).predict(text_rows)) == 16


def test_a_folder_that_was_learnt_on_names_where_it_comes_from(bert, tmp_path, text_rows):
    first = saved(bert, tmp_path / "first")
    model, task, tokenizer = peftcls.learn_on(first, text_rows)
    text = peftcls.write_card(save_adapter(tmp_path / "second", model, task, tokenizer)).read_text()
    assert re.search(r"## Continued from\n\n1\. `first` \([0-9a-f]{12}\)\n", text)

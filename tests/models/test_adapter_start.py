"""An adapter that PEFT alone has written is the start of a training; what it cannot be is said."""

import json
import logging
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import peftcls
from peftcls.cli import main
from peftcls.models.adapter_folder import save_adapter

WEIGHTS = "adapter_model.safetensors"
pytestmark = [
    # What PEFT says when it is used alone.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]
ROWS = [{"text": f"text {n} of the lake", "label": ("yes", "no")[n % 2]} for n in range(12)]
LABELS = peftcls.Classification(max_length=32).learn(ROWS)
NAMES = {"bert": ["query", "value"], "llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}
KINDS = {
    "lora": lambda names, **more: LoraConfig(r=4, target_modules=names, **more),
    "rslora": lambda names, **more: LoraConfig(
        r=4, lora_alpha=7, use_rslora=True, target_modules=names, **more
    ),
    "dora": lambda names, **more: LoraConfig(r=2, use_dora=True, target_modules=names, **more),
    "ranks": lambda names, **more: LoraConfig(
        r=4, rank_pattern={names[0]: 2}, alpha_pattern={names[0]: 3}, target_modules=names, **more
    ),
    "ia3": lambda names, **more: IA3Config(target_modules=names, feedforward_modules=[], **more),
}


def write_folder(base, folder, kind="lora", auto=AutoModelForSequenceClassification, **more):
    """What PEFT alone writes after some training: no tensor is zero."""
    name = next(name for name in NAMES if name in str(base))
    plain = get_peft_model(auto.from_pretrained(base), KINDS[kind](NAMES[name], **more))
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if "lora" in key or "ia3" in key:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    plain.save_pretrained(folder)
    return plain.eval()


def started(base, folder, task=LABELS, **more):
    model, tokenizer = peftcls.load_base(base, task, dtype=torch.float32)
    return peftcls.attach_adapter(model, task, folder, **more), tokenizer


def states(model, tokenizer):
    """What leaves the last layer of a backbone."""
    batch = tokenizer([row["text"] for row in ROWS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_computes_what_pefts_does_and_learns_on(request, name, kind, tmp_path):
    base = request.getfixturevalue(name)
    plain = write_folder(base, tmp_path / "plain", kind, task_type="SEQ_CLS")
    model, tokenizer = started(base, tmp_path / "plain")
    plain.config.pad_token_id = tokenizer.pad_token_id
    ours = states(model, tokenizer)
    assert float((ours - states(plain, tokenizer)).abs().max()) < 1e-5
    unadapted, _ = peftcls.load_base(base, LABELS, dtype=torch.float32)
    assert float((ours - states(unadapted, tokenizer)).abs().max()) > 1e-3

    before = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    config = peftcls.TrainConfig(tmp_path / "run", epochs=1, learning_rate=1e-2)
    peftcls.Trainer(model, LABELS, tokenizer, config).fit(ROWS)
    after = load_file(tmp_path / "run" / "adapter_model.safetensors")
    adapter = {key for key in before if "lora" in key or "ia3" in key}
    assert adapter <= set(after)
    assert all(after[key].shape == before[key].shape for key in adapter)
    assert any(not torch.equal(after[key], before[key]) for key in adapter)
    answers = peftcls.load_predictor(tmp_path / "run").predict([row["text"] for row in ROWS])
    assert {answer.label for answer in answers} <= {"yes", "no"}


@pytest.mark.parametrize(
    ("name", "auto"), [("llama", AutoModelForCausalLM), ("bert", AutoModel), ("gpt2", AutoModel)]
)
def test_an_adapter_of_another_kind_of_model_is_a_start(request, name, auto, tmp_path):
    base = request.getfixturevalue(name)
    plain = write_folder(base, tmp_path / "plain", auto=auto)
    model, tokenizer = started(base, tmp_path / "plain")
    found, expected = states(model, tokenizer), states(plain, tokenizer)
    assert float((found - expected).abs().max()) < 1e-5


def test_a_closed_set_of_labels_has_its_own_rows_beside_the_start(llama, tmp_path):
    write_folder(llama, tmp_path / "plain", auto=AutoModelForCausalLM, task_type="CAUSAL_LM")
    rows = [{"instruction": "which?", "input": row["text"], "output": row["label"]} for row in ROWS]
    task = peftcls.Instruction(labels=("no", "yes"), max_length=64, max_new_tokens=8)
    model, tokenizer = started(llama, tmp_path / "plain", task)
    config = peftcls.TrainConfig(tmp_path / "run", epochs=1)
    peftcls.Trainer(model, task, tokenizer, config).fit(rows)
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == {"lm_head": 2}
    assert settings["r"] == 4


def test_the_head_of_the_folder_is_left_out(bert, tmp_path):
    plain = write_folder(bert, tmp_path / "plain", task_type="SEQ_CLS")
    with torch.no_grad():
        plain.get_base_model().classifier.modules_to_save["default"].weight.fill_(9.0)
    plain.save_pretrained(tmp_path / "plain")
    model, _ = started(bert, tmp_path / "plain")
    heads = [p for name, p in model.named_parameters() if "classifier" in name]
    assert heads
    assert all(float(head.detach().abs().max()) < 1 for head in heads)


def test_a_pooler_is_left_out_where_the_head_reads_the_mean(bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    plain = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    plain.save_pretrained(tmp_path / "plain")
    assert any("pooler" in name for name in load_file(tmp_path / "plain" / WEIGHTS))
    mean = peftcls.Classification(max_length=32, pooling="mean").learn(ROWS)
    found, _ = started(bert, tmp_path / "plain", mean)
    names = [name for name, _ in found.named_parameters() if "lora" in name]
    assert names
    assert not any("pooler" in name for name in names)
    with_pooler, _ = started(bert, tmp_path / "plain")
    assert any("pooler" in name and "lora" in name for name, _ in with_pooler.named_parameters())


def test_the_command_trains_from_it(bert, tmp_path, capsys):
    write_folder(bert, tmp_path / "plain")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3))
    command = ["train", str(file), "--model", bert, "--out", str(tmp_path / "run")]
    start = ["--start", str(tmp_path / "plain")]
    assert main([*command, *start, "--epochs", "1", "--dropout", "0.1"]) == 0
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert settings["lora_dropout"] == 0.1
    assert settings["r"] == 4
    capsys.readouterr()
    assert main(["show", str(tmp_path / "run")]) == 0
    assert "continued  from plain (" in capsys.readouterr().out
    assert "`plain`" in (tmp_path / "run" / "README.md").read_text()
    model, task, tokenizer = peftcls.learn_on(tmp_path / "run", ROWS)
    save_adapter(tmp_path / "later", model, task, tokenizer)
    manifest = json.loads((tmp_path / "later" / "peftcls.json").read_text())
    assert manifest["started_from"]["folder"] == "plain"
    weights = (tmp_path / "plain" / "adapter_model.safetensors").read_bytes()
    assert main([*command[:-1], str(tmp_path / "plain"), *start]) == 1
    assert "holds an adapter that another program wrote" in capsys.readouterr().err
    assert (tmp_path / "plain" / "adapter_model.safetensors").read_bytes() == weights
    assert main([*command, "--overwrite", "--start", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    without_model = [*command[:2], *command[4:], "--overwrite", *start, "--epochs", "1"]
    assert main(without_model) == 0
    assert f"the base is {bert}, as --start names it" in capsys.readouterr().out
    change_settings(base_model_name_or_path=None)(tmp_path / "plain")
    assert main(without_model) == 1
    assert "does not name its base; give it as --model" in capsys.readouterr().err
    for option in (["--rank", "4"], ["--part", "head"], ["--search", "2"]):
        assert main([*command, "--overwrite", *start, *option]) == 1
        assert option[0] in capsys.readouterr().err


def test_another_base_is_noticed(bert, tmp_path, caplog):
    write_folder(bert, tmp_path / "plain")
    file = tmp_path / "plain" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": "some/other-base"}
    file.write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING, logger="peftcls"):
        started(bert, tmp_path / "plain")
    assert "was trained on 'some/other-base'" in caplog.text
    caplog.clear()
    for base in (bert, "hub/" + Path(bert).name):
        file.write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        with caplog.at_level(logging.WARNING, logger="peftcls"):
            started(bert, tmp_path / "plain")
    assert "was trained on" not in caplog.text


def change_settings(**changes):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def change_tensors(change):
    def write(folder):
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file(change(tensors), file, metadata={"format": "pt"})

    return write


def without_one(tensors):
    return dict(list(tensors.items())[1:])


def another_shape(tensors):
    name = next(name for name in tensors if "lora_A" in name)
    return tensors | {name: torch.ones(4, 5)}


EMPTY = torch.empty(0, 200_000_000)


def with_a_huge_rank(folder):
    change_settings(r=100_000_000)(folder)
    change_tensors(lambda tensors: tensors | {"base_model.model.score.weight": EMPTY})(folder)


WRONG = {
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors",
    ),
    "no settings": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "has no adapter_config.json",
    ),
    "damaged settings": (
        lambda folder: (folder / "adapter_config.json").write_text("[1"),
        "adapter_config.json",
    ),
    "damaged weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x08" * 40),
        "safetensors",
    ),
    "ours": (
        lambda folder: (folder / "peftcls.json").write_text("{}"),
        "continue it with learn_on",
    ),
    "pissa": (change_settings(init_lora_weights="pissa"), "changes the weights of the base"),
    "a prompt": (change_settings(peft_type="PROMPT_TUNING"), "peft_type 'PROMPT_TUNING'"),
    "adalora": (change_settings(peft_type="ADALORA"), "AdaLoRA, with pruned ranks"),
    "two at once": (change_settings(use_dora=True, use_rslora=True), "DoRA and rsLoRA at once"),
    "biases": (change_settings(bias="all"), "merge_and_unload"),
    "a rank": (change_settings(r=4000), "r=4000"),
    "no rank at all": (change_settings(r=0), "r=0"),
    "another rank": (change_settings(r=3), "does not fit the base or its settings"),
    "half a rank": (change_settings(r=4.5), "r=4.5"),
    "a rank without room": (change_settings(r=100), "does not fit the base or its settings"),
    "an empty tensor that is huge": (with_a_huge_rank, "r=100000000"),
    "a setting of another kind": (change_settings(loftq_config={"x": 1}), "loftq_config"),
    "one is missing": (change_tensors(without_one), "does not fit the base"),
    "another shape": (change_tensors(another_shape), "does not fit the base"),
    "a head alone": (
        change_tensors(lambda _: {"base_model.model.classifier.bias": torch.ones(9)}),
        "holds no matrix",
    ),
    "not finite": (
        change_tensors(lambda tensors: {name: t * float("nan") for name, t in tensors.items()}),
        "not finite",
    ),
    "embeddings": (
        change_tensors(
            lambda tensors: tensors | {"base_model.model.bert.x.weight": torch.ones(2, 2)}
        ),
        "base_model.model.bert.x.weight",
    ),
    "another base": (
        change_tensors(
            lambda tensors: {name.replace("layer", "blocks"): t for name, t in tensors.items()}
        ),
        "has no such linear layer",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_can_be_no_start_is_refused(wrong, bert, tmp_path):
    write_folder(bert, tmp_path / "plain")
    spoil, sentence = WRONG[wrong]
    spoil(tmp_path / "plain")
    model, tokenizer = peftcls.load_base(bert, LABELS, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"\w") as error:
        peftcls.attach_adapter(model, LABELS, tmp_path / "plain")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    # The base is as it was, so that an adapter can still be put on it.
    states(peftcls.attach_lora(model, LABELS), tokenizer)


def test_settings_that_are_missing_are_those_of_peft(bert, tmp_path):
    plain = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(bert),
        LoraConfig(r=8, lora_alpha=8, target_modules=["query"]),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
    plain.save_pretrained(tmp_path / "plain")
    file = tmp_path / "plain" / "adapter_config.json"
    settings = json.loads(file.read_text())
    del settings["r"], settings["lora_alpha"]
    file.write_text(json.dumps(settings))
    model, tokenizer = started(bert, tmp_path / "plain")
    difference = states(model, tokenizer) - states(plain.eval(), tokenizer)
    assert float(difference.abs().max()) < 1e-5


def test_a_model_has_one_adapter(bert, tmp_path):
    write_folder(bert, tmp_path / "plain")
    model, _ = started(bert, tmp_path / "plain")
    with pytest.raises(ValueError, match="has an adapter already"):
        peftcls.attach_adapter(model, LABELS, tmp_path / "plain")

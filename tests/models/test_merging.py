"""A merged folder is a plain model: the same logits and label names, nothing of peftcls needed."""

import dataclasses
import warnings

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

import peftcls
from peftcls.engine.head_logits import class_logits
from peftcls.models.adapter_folder import load_adapter, save_adapter

TEXTS = [
    "the patient was given a new drug and recovered",
    "stock prices fell",
    "yes",
    "radio waves from a galaxy far away",
]
LABELS = peftcls.Classification(labels=("no", "maybe", "yes"), max_length=64)


def saved(base: str, folder, task, *, part=None, quantize=None, **adapter):
    """A folder whose adapter and head are far from the base, as training would leave them."""
    model, tokenizer = peftcls.load_base(base, task, quantize=quantize)
    model = (
        peftcls.train_only(model, task, part)
        if part
        else peftcls.attach_lora(model, task, rank=4, **adapter)
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return save_adapter(folder, model, task, tokenizer).directory


def plain_logits(folder, texts, auto=transformers.AutoModelForSequenceClassification):
    model, tokenizer = (
        auto.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits


def own_logits(folder, texts):
    predictor = peftcls.load_predictor(folder)
    task = predictor.task
    features = [
        task.encode(row, predictor.tokenizer, with_target=False) for row in task.rows_of(texts)
    ]
    with torch.no_grad():
        return class_logits(
            predictor.model, task.collate(features, predictor.tokenizer), task.pooling
        )


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "dora", "targets": "all-linear"}, {"method": "ia3"}, {"part": "last_block"}],
    ids=["lora", "dora", "ia3", "last block"],
)
def test_a_merged_head_answers_in_plain_transformers_as_the_adapter_does(
    base, settings, tmp_path, request
):
    folder = saved(request.getfixturevalue(base), tmp_path / "adapter", LABELS, **settings)
    assert peftcls.merge_adapter(folder, tmp_path / "merged") == tmp_path / "merged"
    expected = own_logits(folder, TEXTS)
    assert expected.std() > 0.01, "an adapter that says the same of everything proves nothing"
    torch.testing.assert_close(
        plain_logits(tmp_path / "merged", TEXTS), expected, atol=1e-4, rtol=0
    )
    alone = torch.cat([plain_logits(tmp_path / "merged", [text]) for text in TEXTS])
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize("base", ["bert", "llama", "gpt2"])
def test_a_merged_folder_works_in_a_pipeline_with_its_label_names(base, several, tmp_path, request):
    task = dataclasses.replace(LABELS, multi_label=True, loss="bce") if several else LABELS
    folder = saved(request.getfixturevalue(base), tmp_path / "adapter", task)
    peftcls.merge_adapter(folder, tmp_path / "merged")
    said = transformers.pipeline("text-classification", str(tmp_path / "merged"), top_k=None)(
        TEXTS, batch_size=len(TEXTS)
    )
    for row, answer in zip(said, peftcls.load_predictor(folder).predict(TEXTS), strict=True):
        assert {
            one["label"]: pytest.approx(one["score"], abs=1e-4) for one in row
        } == answer.probabilities
    config = transformers.AutoConfig.from_pretrained(tmp_path / "merged")
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert config.problem_type == f"{'multi' if several else 'single'}_label_classification"


def test_a_merged_pair_is_read_as_a_pair(bert, tmp_path):
    folder = saved(bert, tmp_path / "adapter", dataclasses.replace(LABELS, text=("a", "b")))
    peftcls.merge_adapter(folder, tmp_path / "merged")
    said = transformers.pipeline("text-classification", str(tmp_path / "merged"), top_k=None)(
        {"text": TEXTS[0], "text_pair": TEXTS[1]}
    )
    (answer,) = peftcls.load_predictor(folder).predict([(TEXTS[0], TEXTS[1])])
    assert {
        one["label"]: pytest.approx(one["score"], abs=1e-4) for one in said
    } == answer.probabilities


def test_the_tokenizer_cuts_where_the_task_does(bert, tmp_path):
    peftcls.merge_adapter(
        saved(bert, tmp_path / "adapter", dataclasses.replace(LABELS, max_length=12)),
        tmp_path / "merged",
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(tokenizer("yes " * 50, truncation=True)["input_ids"]) == 12


def test_a_merged_language_model_generates_what_the_adapter_does(llama, tmp_path):
    task = peftcls.Instruction(template="Say: {input}\nAnswer: ", max_length=64, max_new_tokens=6)
    folder = saved(llama, tmp_path / "adapter", task)
    with pytest.warns(
        UserWarning,
        match=r"trained, without white space at its end: 'Say: \{input\}\\nAnswer:'\.$",
    ):
        peftcls.merge_adapter(folder, tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    (answer,) = peftcls.load_predictor(folder).predict(["stock prices fell"])
    prompt = tokenizer("Say: stock prices fell\nAnswer:", return_tensors="pt")
    new = model.generate(**prompt, max_new_tokens=6, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ]
    assert tokenizer.decode(new, skip_special_tokens=True).strip() == answer.text


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_a_merged_reader_of_answers_gives_the_logits_of_their_ends(base, tmp_path, request):
    task = peftcls.ExtractiveQA(max_length=64, stride=16, unanswerable=False)
    with pytest.warns(UserWarning, match="windows and the choice of the best span are left to you"):
        peftcls.merge_adapter(
            saved(request.getfixturevalue(base), tmp_path / "adapter", task), tmp_path / "merged"
        )
    found = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged")(
        torch.tensor([[5, 6, 7]])
    )
    assert found.start_logits.shape == found.end_logits.shape == (1, 3)


def test_a_merged_regression_says_how_its_output_is_read(bert, tmp_path):
    folder = saved(
        bert, tmp_path / "adapter", peftcls.Regression(mean=3.0, deviation=2.0, max_length=64)
    )
    with pytest.warns(UserWarning, match=r"the number is 2\.0 x output \+ 3\.0\.$"):
        peftcls.merge_adapter(folder, tmp_path / "merged")
    expected = [answer.value for answer in peftcls.load_predictor(folder).predict(TEXTS)]
    assert (2 * plain_logits(tmp_path / "merged", TEXTS)[:, 0] + 3).tolist() == pytest.approx(
        expected, abs=1e-3
    )
    assert "2.0 x output + 3.0" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"pooling": "mean"},
            "its head reads 'mean' of the tokens (pooling='mean'), "
            "and that of transformers would read the last one",
        ),
        (
            {"causal": False},
            "its tokens see the whole text (causal=False), "
            "and those of transformers would see only what precedes them",
        ),
    ],
)
def test_what_a_plain_decoder_cannot_say_is_refused_and_nothing_is_written(
    llama, tmp_path, settings, sentence
):
    folder = saved(llama, tmp_path / "adapter", dataclasses.replace(LABELS, **settings))
    with pytest.raises(ValueError, match="cannot be merged") as refused:
        peftcls.merge_adapter(folder, tmp_path / "merged")
    assert str(refused.value) == (
        f"{folder} cannot be merged: {sentence}; "
        "keep the adapter folder and load it with load_predictor."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_tokenizer_that_ends_every_text_with_its_padding_token_is_refused(tmp_path, llama):
    base = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_pretrained(llama).save_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    inner = tokenizer.backend_tokenizer
    inner.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|endoftext|>"
    ).save_pretrained(base)
    folder = saved(str(base), tmp_path / "adapter", LABELS)
    with pytest.raises(
        ValueError,
        match="plain transformers computes other logits from the merged model: probe 1 differs by",
    ):
        peftcls.merge_adapter(folder, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"], (
        "nothing half-written is left"
    )


def test_what_transformers_leaves_out_is_said(llama, tmp_path):
    task = dataclasses.replace(
        LABELS, text=("a", "b"), long_text="windows", decisions=peftcls.Decisions(abstain_below=0.9)
    )
    with pytest.warns(UserWarning, match=".") as told:
        peftcls.merge_adapter(saved(llama, tmp_path / "adapter", task), tmp_path / "merged")
    assert [str(one.message) for one in told] == [
        "A text of more than 64 tokens is cut (with truncation=True), not read in windows.",
        (
            "This tokenizer sets nothing between two texts; "
            "begin the second one with a new line, as in training."
        ),
        (
            "Temperature, thresholds and abstention, which were fitted, are not applied; "
            "the likeliest label is given."
        ),
    ]


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("base", ["bert", "llama"])
def test_a_quantized_base_is_merged_in_full(base, quantize, tmp_path, request):
    base = request.getfixturevalue(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = saved(base, tmp_path / "adapter", LABELS, quantize=quantize)
    with pytest.warns(
        UserWarning,
        match=f"^The adapter was trained on a base in {quantize}, "
        "and is merged into the same base in full",
    ):
        peftcls.merge_adapter(folder, tmp_path / "merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert getattr(model.config, "quantization_config", None) is None
    full, task, tokenizer = load_adapter(folder, quantize="none")
    features = [task.encode({"text": text}, tokenizer, with_target=False) for text in TEXTS]
    with torch.no_grad():
        expected = class_logits(full.float(), task.collate(features, tokenizer), None)
    torch.testing.assert_close(
        plain_logits(tmp_path / "merged", TEXTS), expected, atol=1e-4, rtol=0
    )


def test_a_folder_that_holds_something_is_never_merged_into(bert, tmp_path):
    folder = saved(bert, tmp_path / "adapter", LABELS)
    with pytest.raises(
        ValueError,
        match=r"adapter holds something already, "
        r"expected a new or an empty folder; choose another\.$",
    ):
        peftcls.merge_adapter(folder, folder)
    (tmp_path / "empty").mkdir()
    peftcls.merge_adapter(folder, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "empty"]


@pytest.mark.slow
def test_a_decoder_and_its_card_tell_of_the_padding_token(gpt2, tmp_path, caplog):
    folder = saved(gpt2, tmp_path / "adapter", peftcls.Classification(labels=("no", "yes")))
    peftcls.merge_adapter(folder, tmp_path / "merged")
    assert "the padding token, up to the token before it" in caplog.text
    tokenizer = peftcls.load_predictor(folder).tokenizer
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8").split()
    assert f"a text that ends with {tokenizer.pad_token}, the padding token" in " ".join(card)

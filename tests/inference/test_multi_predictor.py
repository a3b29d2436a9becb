"""One base in memory, many adapters: rows of several tasks in one batch are answered as each folder alone answers them."""

import dataclasses
import warnings

import pytest
import torch
import transformers
from conftest import SIZES, save_base, word_piece_tokenizer

import peftcls
from peftcls import Classification, Decisions, ExtractiveQA, Instruction, RowError, load_predictor
from peftcls.inference.multi_adapter_layers import RoutedLinear, Routes, Update
from peftcls.inference.multi_predictor import ManyPredictor
from peftcls.models.adapter_folder import save_adapter
from peftcls.models.structure import QUANTIZED_LAYERS, linear_layers

TEXTS = [
    "the patient was given a new drug and recovered",
    "stock prices fell",
    "yes",
    "radio waves from a galaxy far away",
    "see you at lunch",
    "free prize, call now! free prize, call now! free prize",
    "the bank raised rates",
    "no",
]


def labels(count):
    return tuple(f"label {n}" for n in range(count))


TWO = Classification(labels=labels(2), max_length=64)
FIVE = Classification(labels=labels(5), max_length=64)
TWENTY = Classification(labels=labels(20), max_length=64)
SEVERAL = Classification(
    labels=labels(4),
    multi_label=True,
    max_length=64,
    decisions=Decisions(thresholds={"label 0": 0.3}),
)
NUMBER = peftcls.Regression(mean=3.0, deviation=2.0, max_length=64)
WINDOWS = Classification(labels=labels(3), max_length=8, long_text="windows")
UNSURE = Classification(
    labels=labels(3), max_length=64, decisions=Decisions(temperature=2.5, abstain_below=0.6)
)


def saved(base, folder, task, *, part=None, quantize=None, seed=1, dtype=None, **adapter):
    """A folder whose adapter and head are far from the base, as training would leave them."""
    model, tokenizer = peftcls.load_base(base, task, quantize=quantize, dtype=dtype)
    model = (
        peftcls.train_only(model, task, part)
        if part
        else peftcls.attach_lora(model, task, **{"rank": 4, **adapter})
    )
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return save_adapter(folder, model, task, tokenizer)


def folders_of(base, tmp_path, tasks, **settings):
    return [
        saved(base, tmp_path / name, task, seed=seed, **settings)
        for seed, (name, task) in enumerate(tasks.items())
    ]


def same(one, other, near=1e-5):
    assert (one.label, one.labels, one.text, one.start, one.end) == (
        other.label,
        other.labels,
        other.text,
        other.start,
        other.end,
    )
    assert (one.probabilities or {}) == pytest.approx(other.probabilities or {}, abs=near)
    assert (one.value is None) == (other.value is None)
    assert (one.value or 0.0) == pytest.approx(other.value or 0.0, abs=near)


def check_alike(folders, rows, *, mixes=True, near=1e-5, **loading):
    """Rows of all adapters in one batch, one a row and all of them, against each folder alone."""
    together = load_predictor(folders, **loading)
    names = [together.names[place % len(folders)] for place in range(len(rows))]
    alone = {folder.name: load_predictor(folder, **loading).predict(rows) for folder in folders}
    for place, answer in enumerate(together.predict(rows, names)):
        same(answer, alone[names[place]][place], near)
    every = together.predict_all(rows)
    assert list(every) == [folder.name for folder in folders]
    for name, answers in every.items():
        for one, other in zip(answers, alone[name], strict=True):
            same(one, other, near)
        assert len({str(answer) for answer in answers}) > 1, (
            "an adapter that says the same of everything proves nothing"
        )
    heads = any(
        task.new_head and not isinstance(task, ExtractiveQA) for task in together.tasks.values()
    )
    assert set(together._mixes.values()) == ({mixes} if heads else set()), (
        "the path that was asked for is the one that was taken"
    )
    return together


@pytest.mark.parametrize("base", ["bert", "llama", "gpt2"])
def test_adapters_of_2_5_and_20_labels_answer_in_one_batch_as_each_alone(base, tmp_path, request):
    tasks = {"two": TWO, "five": FIVE, "twenty": TWENTY}
    check_alike(folders_of(request.getfixturevalue(base), tmp_path, tasks), TEXTS)


def test_the_bundled_base_holds_three_adapters(tmp_path):
    check_alike(folders_of("demo", tmp_path, {"two": TWO, "five": FIVE, "twenty": TWENTY}), TEXTS)


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_numbers_windows_several_labels_and_fitted_decisions_keep_their_own_ways(
    base, tmp_path, request
):
    tasks = {"number": NUMBER, "several": SEVERAL, "windows": WINDOWS, "unsure": UNSURE}
    folders = folders_of(request.getfixturevalue(base), tmp_path, tasks)
    together = check_alike(folders, TEXTS)
    assert any(answer.label is None for answer in together.predict(TEXTS, "unsure"))


def test_ranks_targets_and_kinds_of_adapters_may_differ(bert, tmp_path):
    folders = [
        saved(bert, tmp_path / "a", TWO, rank=2, layers=[1]),
        saved(bert, tmp_path / "b", FIVE, targets="all-linear", seed=2),
        saved(bert, tmp_path / "c", TWENTY, method="rslora", alpha=3, targets=["query"], seed=3),
        saved(bert, tmp_path / "d", TWO, part="head", seed=4),
    ]
    check_alike(folders, TEXTS)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Roberta", {"max_position_embeddings": 258}),
        ("DistilBert", {"dim": 128, "n_heads": 4, "n_layers": 2, "hidden_dim": 256}),
        ("ModernBert", {"pad_token_id": 0, "num_hidden_layers": 3}),
    ],
)
def test_heads_of_several_layers_and_shapes_are_kept_apart(architecture, settings, tmp_path):
    kind, config = (
        getattr(transformers, f"{architecture}Model"),
        getattr(transformers, f"{architecture}Config"),
    )
    own = {} if architecture == "DistilBert" else SIZES
    base = save_base(
        tmp_path / "base",
        kind,
        config(vocab_size=400, **{**own, **settings}),
        word_piece_tokenizer(),
    )
    check_alike(folders_of(base, tmp_path, {"two": TWO, "five": FIVE, "number": NUMBER}), TEXTS)


def test_a_layer_that_reads_no_line_makes_adapters_answer_one_after_another(tmp_path):
    config = transformers.DebertaV2Config(
        vocab_size=400,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=32,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        **SIZES,
    )
    base = save_base(tmp_path / "base", transformers.DebertaV2Model, config, word_piece_tokenizer())
    check_alike(folders_of(base, tmp_path, {"two": TWO, "five": FIVE}), TEXTS, mixes=False)


def test_a_pair_and_a_text_share_a_batch_and_each_row_needs_the_columns_of_its_own_task(
    bert, tmp_path
):
    pair, single = dataclasses.replace(TWO, text=("a", "b")), FIVE
    folders = [
        saved(bert, tmp_path / "pair", pair),
        saved(bert, tmp_path / "single", single, seed=2),
    ]
    together = load_predictor(folders)
    rows = [{"a": TEXTS[0], "b": TEXTS[1]}, {"text": TEXTS[2]}, {"a": TEXTS[3], "b": TEXTS[4]}]
    found = together.predict(rows, ["pair", "single", "pair"])
    for place, (row, name) in enumerate(zip(rows, ["pair", "single", "pair"], strict=True)):
        same(found[place], load_predictor(tmp_path / name).predict([row])[0])
    bare = together.predict([(TEXTS[0], TEXTS[1]), TEXTS[2]], ["pair", "single"])
    same(bare[0], found[0])
    same(bare[1], found[1])
    with pytest.raises(
        RowError,
        match=r"^row 3 of rows has no column 'text'; it has \['a', 'b'\]\. Classification needs \['text'\]\.$",
    ):
        together.predict(rows, ["pair", "single", "single"])


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_questions_and_instructions_share_a_base_too(base, tmp_path, request):
    task = ExtractiveQA(max_length=64, stride=16)
    folders = folders_of(request.getfixturevalue(base), tmp_path, {"one": task, "other": task})
    check_alike(folders, [{"question": "who recovered?", "context": text} for text in TEXTS])
    if base == "llama":
        asked = Instruction(template="Say: {input}\nAnswer: ", max_length=64, max_new_tokens=6)
        chosen = dataclasses.replace(asked, labels=("yes", "no", "maybe"))
        check_alike(
            folders_of(request.getfixturevalue(base), tmp_path, {"free": asked, "chosen": chosen}),
            TEXTS,
        )


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantized_base_is_shared(bert, tmp_path, quantize):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = load_predictor(
            folders_of(bert, tmp_path, {"two": TWO, "five": FIVE}, quantize=quantize)
        )
        names = ["two", "five"] * 4
        found = together.predict(TEXTS, names)
        for place, name in enumerate(names):
            same(found[place], load_predictor(tmp_path / name).predict(TEXTS)[place], near=2e-2)
    assert sum(isinstance(module, QUANTIZED_LAYERS) for module in together.model.modules()) == len(
        linear_layers(together.model)
    )


def test_a_base_in_half_precision_is_shared(bert, tmp_path):
    folders = folders_of(bert, tmp_path, {"two": TWO, "five": FIVE}, dtype=torch.bfloat16)
    check_alike(folders, TEXTS, near=2e-2)


def test_the_base_is_held_once_and_nothing_of_it_is_copied(bert, tmp_path):
    together = load_predictor(
        folders_of(bert, tmp_path, {"two": TWO, "five": FIVE, "twenty": TWENTY})
    )
    alone = load_predictor(tmp_path / "two").model.get_base_model()
    held = sum(p.numel() for p in together.model.parameters())
    one = sum(
        p.numel()
        for name, p in alone.named_parameters()
        if ".lora_" not in name and ".modules_to_save." not in name
    )
    assert held == one + 128 * (2 + 5 + 20 - 2) + (5 + 20)  # the heads alone


def test_the_answers_do_not_depend_on_the_batch(bert, tmp_path):
    together = load_predictor(folders_of(bert, tmp_path, {"two": TWO, "five": FIVE}))
    rows, names = TEXTS * 4, (["two", "five"] * 16)
    whole = together.predict(rows, names)
    for batch_size in (1, 3):
        for one, other in zip(
            whole, together.predict(rows, names, batch_size=batch_size), strict=True
        ):
            same(one, other)
    assert together.predict([], []) == []
    assert isinstance(together, ManyPredictor)


def test_a_token_gets_the_update_of_its_own_adapter_and_of_no_other():
    routes, base = Routes(), torch.nn.Linear(3, 2, bias=False)
    ones = Update(torch.ones(1, 3), torch.ones(2, 1), 10.0)
    layer = RoutedLinear(
        base, routes, {0: ones, 2: Update(torch.ones(2, 3), torch.ones(2, 2), 100.0)}
    )
    inputs = torch.ones(4, 5, 3)
    with torch.inference_mode(), routes.mixed(torch.tensor([2, 1, 0, 0])):
        found = layer(inputs) - base(inputs)
    assert found[:, 0, 0].round().tolist() == [600.0, 0.0, 30.0, 30.0]
    with torch.inference_mode(), routes.only(1):
        assert torch.equal(layer(inputs), base(inputs))
    with (
        routes.mixed(torch.tensor([0, 1])),
        pytest.raises(ValueError, match=r"reads \(4, 5, 3\) where the batch has 2 lines"),
    ):
        layer(inputs)


# refusals


def test_what_cannot_share_a_base_is_told_with_both_names(bert, llama, tmp_path):
    one = saved(bert, tmp_path / "one", TWO)
    other = saved(llama, tmp_path / "other", TWO)
    with pytest.raises(
        ValueError,
        match=r"one and .*other cannot share a base: the weights are others, with the fingerprints",
    ):
        load_predictor([one, other])
    narrow = saved(bert, tmp_path / "narrow", TWO, dtype=torch.bfloat16)
    with pytest.raises(
        ValueError,
        match=r"one was trained on it in float32, the other in bfloat16; load them one by one\.$",
    ):
        load_predictor([one, narrow])
    asked = saved(bert, tmp_path / "asked", ExtractiveQA(max_length=64))
    with pytest.raises(
        ValueError,
        match=r"cannot share a base: Classification and ExtractiveQA have heads of different kinds; load them",
    ):
        load_predictor([one, asked])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eight = saved(bert, tmp_path / "eight", TWO, quantize="8bit")
    with pytest.raises(
        ValueError, match="one was trained on it in full precision, the other in 8bit"
    ):
        load_predictor([one, eight])
    (tmp_path / "again").mkdir()
    twin = saved(bert, tmp_path / "again" / "one", FIVE)
    with pytest.raises(
        ValueError,
        match=r"one and .*one have the same name, by which their rows would be told apart; rename one",
    ):
        load_predictor([one, twin])


@pytest.mark.parametrize("method", ["dora", "pissa", "ia3", "adalora"])
def test_an_adapter_that_is_no_plain_update_is_refused(bert, tmp_path, method):
    folders = [
        saved(bert, tmp_path / "one", TWO),
        saved(bert, tmp_path / "other", TWO, method=method),
    ]
    with pytest.raises(
        ValueError,
        match=rf"other cannot share its base: its adapter is of the method {method}, expected lora, lora\+, "
        r"rslora or a head; load it alone\.$",
    ):
        load_predictor(folders)


def test_a_folder_that_trained_the_base_itself_is_refused(bert, tmp_path):
    folders = [
        saved(bert, tmp_path / "one", TWO),
        saved(bert, tmp_path / "other", TWO, part="last_block"),
    ]
    with pytest.raises(
        ValueError,
        match=r"other cannot share its base: bert\.encoder\.layer\.1\..* of the base itself was trained",
    ):
        load_predictor(folders)


def test_names_are_checked(bert, tmp_path):
    together = load_predictor(folders_of(bert, tmp_path, {"spam": TWO, "topics": FIVE}))
    with pytest.raises(
        ValueError,
        match=r"^there is no adapter 'topic', expected one of \['spam', 'topics'\]; did you mean 'topics'\?$",
    ):
        together.predict(TEXTS, "topic")
    with pytest.raises(
        ValueError,
        match=r"^adapter has 2 names for 8 rows; give one name for all rows, or one a row\.$",
    ):
        together.predict(TEXTS, ["spam", "topics"])
    with pytest.raises(
        ValueError,
        match=r"^adapter=None: expected the name of the one that answers, or one a row, of \['spam', 'to",
    ):
        together.predict(TEXTS)
    with pytest.raises(RowError, match="found one str; put it into a list"):
        together.predict("a text", "spam")
    with pytest.raises(ValueError, match="there is no folder in the list"):
        load_predictor([])

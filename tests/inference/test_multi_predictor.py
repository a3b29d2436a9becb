"""Several adapters on one base: rows of several tasks share a batch, with unchanged answers."""

import dataclasses
import re
import warnings

import pytest
import torch
import transformers
from conftest import SIZES, save_base, word_piece_tokenizer
from saved_adapters import TEXTS, check_same_answer, saved

import peftcls
from peftcls import Classification, Decisions, ExtractiveQA, Instruction, RowError, load_predictor
from peftcls.inference.multi_adapter_layers import RoutedLinear, Routes, Update
from peftcls.inference.multi_predictor import ManyPredictor
from peftcls.models.structure import QUANTIZED_LAYERS, linear_layers


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


def folders_of(base, tmp_path, tasks, **settings):
    return [
        saved(base, tmp_path / name, task, seed=seed, **settings)
        for seed, (name, task) in enumerate(tasks.items())
    ]


def check_same_as_alone(folders, rows, *, mixes=True, tolerance=1e-5, **loading):
    """Compare rows in mixed batches, with one adapter a row or all, with each folder alone."""
    together = load_predictor(folders, **loading)
    names = [together.names[place % len(folders)] for place in range(len(rows))]
    alone = {folder.name: load_predictor(folder, **loading).predict(rows) for folder in folders}
    for place, answer in enumerate(together.predict(rows, names)):
        check_same_answer(answer, alone[names[place]][place], tolerance)
    by_adapter = together.predict_all(rows)
    assert list(by_adapter) == [folder.name for folder in folders]
    for name, answers in by_adapter.items():
        for found, expected in zip(answers, alone[name], strict=True):
            check_same_answer(found, expected, tolerance)
        assert len({str(answer) for answer in answers}) > 1, (
            "an adapter that says the same of everything proves nothing"
        )
    heads = any(
        task.new_head and not isinstance(task, ExtractiveQA) for task in together.tasks.values()
    )
    taken = set(together._can_mix.values())
    assert taken == ({mixes} if heads else set()), "the expected path was taken"
    return together


@pytest.mark.parametrize("base", ["bert", "llama", "gpt2"])
def test_adapters_of_2_5_and_20_labels_answer_in_one_batch_as_each_alone(base, tmp_path, request):
    tasks = {"two": TWO, "five": FIVE, "twenty": TWENTY}
    check_same_as_alone(folders_of(request.getfixturevalue(base), tmp_path, tasks), TEXTS)


def test_the_bundled_base_holds_three_adapters(tmp_path):
    check_same_as_alone(
        folders_of("demo", tmp_path, {"two": TWO, "five": FIVE, "twenty": TWENTY}), TEXTS
    )


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_numbers_windows_several_labels_and_fitted_decisions_share_a_batch(base, tmp_path, request):
    tasks = {"number": NUMBER, "several": SEVERAL, "windows": WINDOWS, "unsure": UNSURE}
    folders = folders_of(request.getfixturevalue(base), tmp_path, tasks)
    together = check_same_as_alone(folders, TEXTS)
    assert any(answer.label is None for answer in together.predict(TEXTS, "unsure"))


def test_ranks_targets_and_kinds_of_adapters_may_differ(bert, tmp_path):
    folders = [
        saved(bert, tmp_path / "a", TWO, rank=2, layers=[1]),
        saved(bert, tmp_path / "b", FIVE, targets="all-linear", seed=2),
        saved(bert, tmp_path / "c", TWENTY, method="rslora", alpha=3, targets=["query"], seed=3),
        saved(bert, tmp_path / "d", TWO, part="head", seed=4),
    ]
    check_same_as_alone(folders, TEXTS)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Roberta", {"max_position_embeddings": 258}),
        ("DistilBert", {"dim": 128, "n_heads": 4, "n_layers": 2, "hidden_dim": 256}),
        ("ModernBert", {"pad_token_id": 0, "num_hidden_layers": 3}),
    ],
)
def test_heads_of_several_layers_and_shapes_are_kept_apart(architecture, settings, tmp_path):
    model_class = getattr(transformers, f"{architecture}Model")
    config_class = getattr(transformers, f"{architecture}Config")
    sizes = {} if architecture == "DistilBert" else SIZES
    config = config_class(vocab_size=400, **{**sizes, **settings})
    base = save_base(tmp_path / "base", model_class, config, word_piece_tokenizer())
    check_same_as_alone(
        folders_of(base, tmp_path, {"two": TWO, "five": FIVE, "number": NUMBER}), TEXTS
    )


def test_a_layer_whose_inputs_are_no_sequences_makes_adapters_answer_one_after_another(tmp_path):
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
    check_same_as_alone(folders_of(base, tmp_path, {"two": TWO, "five": FIVE}), TEXTS, mixes=False)


def test_a_pair_and_a_text_share_a_batch_and_each_row_needs_the_columns_of_its_own_task(
    bert, tmp_path
):
    folders = [
        saved(bert, tmp_path / "pair", dataclasses.replace(TWO, text=("a", "b"))),
        saved(bert, tmp_path / "single", FIVE, seed=2),
    ]
    together = load_predictor(folders)
    rows = [{"a": TEXTS[0], "b": TEXTS[1]}, {"text": TEXTS[2]}, {"a": TEXTS[3], "b": TEXTS[4]}]
    names = ["pair", "single", "pair"]
    found = together.predict(rows, names)
    for answer, row, name in zip(found, rows, names, strict=True):
        check_same_answer(answer, load_predictor(tmp_path / name).predict([row])[0])
    bare = together.predict([(TEXTS[0], TEXTS[1]), TEXTS[2]], ["pair", "single"])
    check_same_answer(bare[0], found[0])
    check_same_answer(bare[1], found[1])
    with pytest.raises(
        RowError,
        match=r"^row 3 of rows has no column 'text'; it has \['a', 'b'\]\. "
        r"Classification needs \['text'\]\.$",
    ):
        together.predict(rows, ["pair", "single", "single"])


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_questions_and_instructions_share_a_base_too(base, tmp_path, request):
    task = ExtractiveQA(max_length=64, stride=16)
    folders = folders_of(request.getfixturevalue(base), tmp_path, {"one": task, "other": task})
    check_same_as_alone(
        folders, [{"question": "who recovered?", "context": text} for text in TEXTS]
    )
    if base == "llama":
        free = Instruction(template="Say: {input}\nAnswer: ", max_length=64, max_new_tokens=6)
        chosen = dataclasses.replace(free, labels=("yes", "no", "maybe"))
        tasks = {"free": free, "chosen": chosen}
        check_same_as_alone(folders_of(request.getfixturevalue(base), tmp_path, tasks), TEXTS)


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
            check_same_answer(
                found[place], load_predictor(tmp_path / name).predict(TEXTS)[place], tolerance=2e-2
            )
    assert sum(isinstance(module, QUANTIZED_LAYERS) for module in together.model.modules()) == len(
        linear_layers(together.model)
    )


def test_a_base_in_half_precision_is_shared(bert, tmp_path):
    folders = folders_of(bert, tmp_path, {"two": TWO, "five": FIVE}, dtype=torch.bfloat16)
    check_same_as_alone(folders, TEXTS, tolerance=2e-2)


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
    assert held == one + 128 * (2 + 5 + 20 - 2) + (5 + 20)  # only the heads


def test_the_answers_do_not_depend_on_the_batch(bert, tmp_path):
    together = load_predictor(folders_of(bert, tmp_path, {"two": TWO, "five": FIVE}))
    rows = TEXTS * 4
    names = ["two", "five"] * 16
    expected = together.predict(rows, names)
    for batch_size in (1, 3):
        found = together.predict(rows, names, batch_size=batch_size)
        for one, other in zip(found, expected, strict=True):
            check_same_answer(one, other)
    assert together.predict([], []) == []
    assert isinstance(together, ManyPredictor)


def test_a_token_gets_the_update_of_its_own_adapter_and_of_no_other():
    routes = Routes()
    base = torch.nn.Linear(3, 2, bias=False)
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
        pytest.raises(ValueError, match=r"reads \(4, 5, 3\) where the batch has 2 sequences"),
    ):
        layer(inputs)


# Errors


def refused(*words):
    """The error that holds these words, which may contain brackets and dots."""
    return pytest.raises(ValueError, match=".*".join(re.escape(part) for part in words))


def test_folders_with_different_bases_are_refused(bert, llama, tmp_path):
    one = saved(bert, tmp_path / "one", TWO)
    other = saved(llama, tmp_path / "other", TWO)
    with refused(
        f"{one} and {other} cannot share a base: their base weights differ, with the fingerprints ",
        "; load them one by one.",
    ):
        load_predictor([one, other])


def test_folders_of_different_precision_are_refused(bert, tmp_path):
    one = saved(bert, tmp_path / "one", TWO)
    half = saved(bert, tmp_path / "half", TWO, dtype=torch.bfloat16)
    with refused("one was trained on it in float32, the other in bfloat16; load them one by one."):
        load_predictor([one, half])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eight = saved(bert, tmp_path / "eight", TWO, quantize="8bit")
    with refused("one was trained on it in full precision, the other in 8bit"):
        load_predictor([one, eight])


def test_folders_with_different_heads_are_refused(bert, tmp_path):
    one = saved(bert, tmp_path / "one", TWO)
    questions = saved(bert, tmp_path / "questions", ExtractiveQA(max_length=64))
    with refused(
        "cannot share a base: Classification and ExtractiveQA have heads of different kinds; load"
    ):
        load_predictor([one, questions])


def test_folders_of_one_name_are_refused(bert, tmp_path):
    one = saved(bert, tmp_path / "one", TWO)
    (tmp_path / "again").mkdir()
    twin = saved(bert, tmp_path / "again" / "one", FIVE)
    with refused(
        f"{one} and {twin} have the same name, and an adapter is known by the name of its folder; "
        "rename one of the folders."
    ):
        load_predictor([one, twin])


@pytest.mark.parametrize("method", ["dora", "pissa", "ia3", "adalora"])
def test_an_adapter_that_is_no_plain_update_is_refused(bert, tmp_path, method):
    folders = [
        saved(bert, tmp_path / "one", TWO),
        saved(bert, tmp_path / "other", TWO, method=method),
    ]
    with refused(
        f"other cannot share its base: its adapter is of the method {method}, "
        "expected lora, lora+, rslora or a head; load it alone."
    ):
        load_predictor(folders)


def test_a_folder_that_trained_the_base_itself_is_refused(bert, tmp_path):
    folders = [
        saved(bert, tmp_path / "one", TWO),
        saved(bert, tmp_path / "other", TWO, part="last_block"),
    ]
    with refused(
        "other cannot share its base: bert.encoder.layer.1.", " of the base itself was trained"
    ):
        load_predictor(folders)


def test_names_are_checked(bert, tmp_path):
    together = load_predictor(folders_of(bert, tmp_path, {"spam": TWO, "topics": FIVE}))
    with refused(
        "there is no adapter 'topic', expected one of ['spam', 'topics']; did you mean 'topics'?"
    ):
        together.predict(TEXTS, "topic")
    with refused("adapter has 2 names for 8 rows; give one name for all rows, or one a row."):
        together.predict(TEXTS, ["spam", "topics"])
    with refused(
        "adapter=None: expected the name of one adapter, or one name a row, of ['spam', 'topics']"
    ):
        together.predict(TEXTS)
    with pytest.raises(RowError, match=r"expected texts, rows or a table .*found int"):
        together.predict(7, "spam")
    with refused("there is no folder in the list"):
        load_predictor([])

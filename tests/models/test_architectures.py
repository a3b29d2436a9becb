"""Every architecture: what is trained is saved and loaded, and nothing of the base is saved."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t
from architectures import ARCHITECTURES, CLS, DECODERS, ENCODERS, PIECES, SEP
from conftest import SIZES, byte_level_tokenizer, save_base, word_piece_tokenizer
from safetensors.torch import load_file
from tokenizers import processors

import peftcls
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_folder import save_adapter
from peftcls.models.trainable import trained_parameters

TEXTS = [
    "the patient recovered",
    "see you at lunch",
    "a galaxy far away emits radio waves, label one two three",
]
LABELS = ("maybe", "no", "yes")


WITHOUT_ATTENTION_LINEARS = ["xlnet"]  # its projections are bare parameters
KINDS = [
    (name, targets, multi)
    for name in ARCHITECTURES
    for targets in ("attention", "all-linear")
    for multi in (False, True)
    if name not in WITHOUT_ATTENTION_LINEARS or targets != "attention"
]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A folder, and what the model that was saved in it says."""

    base: str
    folder: Path
    heads: tuple[str, ...]
    trained: dict[str, torch.Tensor]
    answers: torch.Tensor


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny random base of an architecture, written once."""
    made: dict[str, str] = {}

    def base(name: str) -> str:
        if name not in made:
            tokenizer = byte_level_tokenizer() if name in DECODERS else word_piece_tokenizer()
            if name in ENCODERS:
                tokenizer.eos_token, tokenizer.bos_token = "[SEP]", "[CLS]"
            if (
                name == "xlnet"
            ):  # its texts stand at the right, and the token that the head reads is the last
                tokenizer.padding_side = "left"
                tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                    single="$A [SEP] [CLS]",
                    pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2",
                    special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
                )
            made[name] = save_base(tmp_path_factory.mktemp("base"), *ARCHITECTURES[name], tokenizer)
        return made[name]

    return base


@pytest.fixture(scope="module")
def train(
    base_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, bool], Trained]:
    """Put LoRA on a base, move all that is trained, and save it; each kind once."""
    made: dict[tuple[str, str, bool], Trained] = {}

    def trained(name: str, targets: Any, multi: bool) -> Trained:
        if (name, targets, multi) not in made:
            task = peftcls.Classification(labels=LABELS, multi_label=multi, max_length=64)
            model, tokenizer = peftcls.load_base(base_of(name), task)
            wrapped = peftcls.attach_lora(model, task, rank=4, targets=targets)
            move(wrapped)
            folder = save_adapter(
                tmp_path_factory.mktemp("adapter"), wrapped, task, tokenizer
            ).directory
            made[name, targets, multi] = Trained(
                base_of(name),
                folder,
                base_facts(wrapped).heads,
                trained_parameters(wrapped),
                probabilities(peftcls.Predictor(wrapped, task, tokenizer), TEXTS),
            )
        return made[name, targets, multi]

    return trained


def move(model: torch.nn.Module) -> None:
    """What training does to the trained parameters: none of them stays as it was drawn."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)


def probabilities(predictor: peftcls.Predictor, texts: list[str]) -> torch.Tensor:
    return torch.tensor(
        [list((answer.probabilities or {}).values()) for answer in predictor.predict(texts)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "targets", "multi"), KINDS)
def test_a_fresh_base_with_the_saved_folder_answers_the_same(name, targets, multi, train):
    made = train(name, targets, multi)
    loaded = probabilities(peftcls.load_predictor(made.folder), TEXTS)
    assert torch.allclose(made.answers, loaded, rtol=0, atol=1e-5)
    assert float((made.answers[0] - made.answers[2]).abs().max()) > 1e-4, (
        "the text makes no difference, so nothing was compared"
    )


@pytest.mark.parametrize(("name", "targets", "multi"), KINDS)
def test_the_head_is_trained_and_the_file_holds_what_is_trained_and_nothing_else(
    name, targets, multi, train
):
    made = train(name, targets, multi)
    saved = load_file(made.folder / "adapter_model.safetensors")
    heads = [n for n in made.trained if ".lora_" not in n]
    assert made.heads
    assert all(any(f".{head}.modules_to_save." in n for n in heads) for head in made.heads)
    named = {
        n.replace(".modules_to_save.default.", ".").replace(".default.", "."): p
        for n, p in made.trained.items()
    }
    assert named.keys() == saved.keys()
    assert all(torch.equal(named[n], saved[n]) for n in saved)

    base = load_file(Path(made.base) / "model.safetensors")
    assert not {n.removeprefix("base_model.model.") for n in saved} & {
        own for b in base for own in (b, f"{prefix(made)}.{b}")
    }


def prefix(made: Trained) -> str:
    """The name of the backbone in a model with a head."""
    return (
        next(n for n in made.trained if ".lora_" in n)
        .removeprefix("base_model.model.")
        .partition(".")[0]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT asks by the old name
@pytest.mark.parametrize(("name", "targets", "multi"), KINDS)
def test_plain_peft_loads_the_folder_and_answers_the_same(name, targets, multi, train):
    made = train(name, targets, multi)
    stock = t.AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=len(LABELS))
    plain = peft.PeftModel.from_pretrained(stock, made.folder).eval()
    saved, loaded = (
        load_file(made.folder / "adapter_model.safetensors"),
        peft.get_peft_model_state_dict(plain),
    )
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[n], saved[n]) for n in saved)

    encoded = t.AutoTokenizer.from_pretrained(made.folder)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        logits = plain(**encoded).logits
    found = logits.sigmoid() if multi else logits.softmax(1)
    assert torch.allclose(found[0], made.answers[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION_LINEARS)
def test_an_architecture_without_attention_linears_says_so_before_anything_is_changed(
    name, base_of
):
    task = peftcls.Classification(labels=LABELS)
    model, _ = peftcls.load_base(base_of(name), task)
    before = [n for n, _ in model.named_parameters()]
    with pytest.raises(
        ValueError,
        match=r"no module of XLNetForSequenceClassification fits targets='attention', layers=None; "
        r"try targets='all-linear'\.",
    ):
        peftcls.attach_lora(model, task, targets="attention")
    assert [n for n, _ in model.named_parameters()] == before
    assert not trained_parameters(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_neighbours_and_the_side_of_the_padding_change_no_answer(name, train):
    predictor = peftcls.load_predictor(train(name, "all-linear", False).folder)
    alone = torch.cat([probabilities(predictor, [text]) for text in TEXTS])
    for side in ("left", "right"):
        predictor.tokenizer.padding_side = side
        assert torch.allclose(alone, probabilities(predictor, TEXTS), rtol=0, atol=1e-5), side


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("bert saved as a masked LM", "bert.pooler.dense"),
        ("bert", "classifier"),
        ("deberta-v2", "pooler"),
        ("xlnet", "sequence_summary"),
        ("modernbert", "head"),
    ],
)
def test_what_the_base_has_no_weights_for_is_trained_with_the_head(name, new, train):
    assert new in train(name, "all-linear", False).heads


def test_a_base_with_a_head_for_other_labels_gets_a_new_one(base_of, tmp_path):
    other = t.AutoModelForSequenceClassification.from_pretrained(base_of("bert"), num_labels=5)
    other.save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    task = peftcls.Classification(labels=LABELS)
    model, tokenizer = peftcls.load_base(tmp_path, task)
    assert tuple(model.config.id2label.values()) == LABELS
    assert len(probabilities(peftcls.Predictor(model, task, tokenizer), TEXTS)[0]) == len(LABELS)


def test_a_base_whose_weights_do_not_fit_its_configuration_is_refused(base_of, tmp_path):
    t.AutoModel.from_pretrained(base_of("bert")).save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    t.BertConfig(**{**PIECES, **SIZES, "intermediate_size": 512}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"intermediate\.dense\.bias has another shape in its safetensors "
        r"than by its config\.json",
    ):
        peftcls.load_base(tmp_path, peftcls.Classification(labels=LABELS))

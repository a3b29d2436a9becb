"""Which token a head reads: neither neighbours nor padding may change an answer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import SIZES, byte_level_tokenizer, save_base, word_piece_tokenizer

import peftcls
from peftcls.engine.head_logits import class_logits, pool
from peftcls.models.adapter_folder import save_adapter
from peftcls.models.trainable import trained_parameters

TEXTS = [
    "the patient",
    "the patient was given a new drug and recovered",
    "a galaxy far away emits radio waves",
    "see you at lunch",
    "the end <|endoftext|> of a text inside a text",
]
LABELS = ("no", "yes")
END = {"vocab_size": 500, "bos_token_id": None, "eos_token_id": 0}
DECODERS = {
    "gpt2": (
        transformers.GPT2Model,
        transformers.GPT2Config(**END, n_embd=128, n_layer=2, n_head=4, n_positions=256),
    ),
    "llama": (transformers.LlamaModel, transformers.LlamaConfig(**END, **SIZES)),
    "opt": (
        transformers.OPTModel,
        transformers.OPTConfig(
            **END,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=256,
            word_embed_proj_dim=128,
            max_position_embeddings=256,
        ),
    ),
    "qwen2": (
        transformers.Qwen2Model,
        transformers.Qwen2Config(**END, **SIZES, num_key_value_heads=2),
    ),
    "bloom": (
        transformers.BloomModel,
        transformers.BloomConfig(**END, hidden_size=128, n_layer=2, n_head=4),
    ),
    "gpt_neo": (
        transformers.GPTNeoModel,
        transformers.GPTNeoConfig(
            **END,
            hidden_size=128,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
        ),
    ),
}
ENCODERS = {
    "bert": (transformers.BertModel, transformers.BertConfig(vocab_size=400, **SIZES)),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig(vocab_size=400, **SIZES)),
}
KEEPS_ITS_MASK = ["bloom", "gpt_neo"]
LIFTS_ITS_MASK = [name for name in DECODERS if name not in KEEPS_ITS_MASK]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A tiny random base; padding shares the id of the end of a text unless it gets its own."""
    made: dict[tuple[str, bool], str] = {}

    def base(name: str, *, own_padding: bool = False) -> str:
        if (name, own_padding) not in made:
            tokenizer = byte_level_tokenizer() if name in DECODERS else word_piece_tokenizer()
            if name in ENCODERS:
                tokenizer.eos_token = "[SEP]"
                tokenizer.pad_token = "[PAD]" if own_padding else "[SEP]"
            elif own_padding:
                tokenizer.add_special_tokens({"pad_token": "<pad>"})
            made[name, own_padding] = save_base(
                tmp_path_factory.mktemp(name), *(ENCODERS | DECODERS)[name], tokenizer
            )
        return made[name, own_padding]

    return base


def predictor_of(base: str, folder: Path, **settings) -> peftcls.Predictor:
    """A loaded predictor whose adapter and head are not as they were drawn."""
    task = peftcls.Classification(labels=LABELS, max_length=64, **settings)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4, targets="all-linear")
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    return peftcls.load_predictor(save_adapter(folder, model, task, tokenizer).directory)


def yes(predictor: peftcls.Predictor, rows: list) -> torch.Tensor:
    return torch.tensor([(answer.probabilities or {})["yes"] for answer in predictor.predict(rows)])


def same_alone_and_padded(predictor: peftcls.Predictor) -> None:
    alone = torch.cat([yes(predictor, [text]) for text in TEXTS])
    assert float(alone.max() - alone.min()) > 1e-3, (
        "the text makes no difference, so nothing was compared"
    )
    for side in ("right", "left"):
        predictor.tokenizer.padding_side = side
        assert torch.allclose(alone, yes(predictor, TEXTS), rtol=0, atol=1e-5), side


@pytest.mark.slow
@pytest.mark.parametrize("own_padding", [False, True])
@pytest.mark.parametrize(
    ("pooling", "causal"),
    [
        ("last", True),
        ("first", True),
        ("mean", True),
        ("last", False),
        ("first", False),
        ("mean", False),
    ],
)
@pytest.mark.parametrize("name", LIFTS_ITS_MASK)
def test_a_decoder_answers_the_same_alone_in_a_batch_left_and_right_padded(
    name, pooling, causal, own_padding, base_of, tmp_path
):
    predictor = predictor_of(
        base_of(name, own_padding=own_padding), tmp_path, pooling=pooling, causal=causal
    )
    assert (predictor.tokenizer.pad_token_id == predictor.tokenizer.eos_token_id) is not own_padding
    same_alone_and_padded(predictor)


@pytest.mark.parametrize("own_padding", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_answers_the_same_alone_in_a_batch_left_and_right_padded(
    name, own_padding, base_of, tmp_path
):
    predictor = predictor_of(base_of(name, own_padding=own_padding), tmp_path)
    assert (predictor.tokenizer.pad_token_id == predictor.tokenizer.eos_token_id) is not own_padding
    same_alone_and_padded(predictor)


@pytest.mark.parametrize("name", LIFTS_ITS_MASK)
def test_the_first_token_sees_the_end_of_the_text_where_the_causal_mask_is_lifted_and_only_there(
    name, base_of, tmp_path
):
    begin_alike = ["the patient recovered", "the bank raised rates"]
    bound = yes(predictor_of(base_of(name), tmp_path / "causal", pooling="first"), begin_alike)
    free = yes(
        predictor_of(base_of(name), tmp_path / "free", pooling="first", causal=False), begin_alike
    )
    assert float((bound[0] - bound[1]).abs()) < 1e-6
    assert float((free[0] - free[1]).abs()) > 1e-4


@pytest.mark.parametrize("name", KEEPS_ITS_MASK)
def test_a_decoder_that_keeps_its_causal_mask_says_so(name, base_of):
    with pytest.raises(
        ValueError,
        match=r"causal=False with \w+ForSequenceClassification: this architecture keeps its causal "
        r"mask; leave it out\.",
    ):
        peftcls.load_base(base_of(name), peftcls.Classification(labels=LABELS, causal=False))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_refuses_the_first_token_as_a_summary(name, base_of):
    with pytest.raises(
        ValueError,
        match=r"pooling='cls' with \w+: a decoder's first token has seen nothing; "
        r"use 'last' or 'mean'\.",
    ):
        peftcls.load_base(base_of(name), peftcls.Classification(labels=LABELS, pooling="cls"))


@pytest.mark.parametrize("settings", [{"pooling": "first"}, {"pooling": "last"}, {"causal": False}])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_refuses_the_settings_of_decoders(name, settings, base_of):
    with pytest.raises(
        ValueError, match=r"reads its own token \('cls'\) or the mean of all \('mean'\), and has no"
    ):
        peftcls.load_base(base_of(name), peftcls.Classification(labels=LABELS, **settings))


def test_cls_on_an_encoder_is_what_it_does_anyway(base_of, tmp_path):
    named = predictor_of(base_of("bert"), tmp_path / "named", pooling="cls")
    assert torch.equal(
        yes(named, TEXTS), yes(predictor_of(base_of("bert"), tmp_path / "unnamed"), TEXTS)
    )


def test_pooling_reads_real_tokens_alone():
    states = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert pool(states, mask, "first").flatten().tolist() == [0, 6]
    assert pool(states, mask, "last").flatten().tolist() == [2, 7]
    assert pool(states, mask, "mean").flatten().tolist() == [1, 6.5]


PAIR = {"text": ("question", "answer")}


def test_the_token_types_of_a_pair_reach_an_encoder(base_of, tmp_path):
    predictor = predictor_of(base_of("bert", own_padding=True), tmp_path, **PAIR)
    row = {"question": "yes no maybe", "answer": "the drug"}
    feature = predictor.task.encode(row, predictor.tokenizer, with_target=False)
    tokens = predictor.tokenizer.convert_ids_to_tokens(feature["input_ids"])
    second = tokens.index("[SEP]") + 1
    assert feature["token_type_ids"] == [0] * second + [1] * (len(tokens) - second)

    batch = predictor.task.collate([feature], predictor.tokenizer)
    told = class_logits(predictor.model, batch, None)
    untold = class_logits(
        predictor.model,
        {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])},
        None,
    )
    assert float((told - untold).abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_two_texts_of_a_pair_do_not_run_into_one_another_in_a_decoder(name, base_of, tmp_path):
    predictor = predictor_of(base_of(name), tmp_path, **PAIR)
    ids = [
        predictor.task.encode({"question": a, "answer": b}, predictor.tokenizer, with_target=False)[
            "input_ids"
        ]
        for a, b in (("new drug", "recovered"), ("new drugrecov", "ered"))
    ]
    assert predictor.tokenizer.decode(ids[0]) == "new drug\nrecovered"
    assert ids[0] != ids[1]


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "qwen2"])
def test_a_pair_and_its_reverse_are_two_questions(name, base_of, tmp_path):
    predictor = predictor_of(base_of(name), tmp_path, **PAIR)
    pairs = [("the patient recovered", "yes no maybe"), ("see you at lunch", "call now!")]
    forth, back = yes(predictor, pairs), yes(predictor, [(b, a) for a, b in pairs])
    assert float((forth - back).abs().min()) > 1e-5
    assert torch.allclose(
        forth, torch.cat([yes(predictor, [pair]) for pair in pairs]), rtol=0, atol=1e-5
    )

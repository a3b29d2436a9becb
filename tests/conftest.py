"""Tiny models and tokenizers, made here: nothing comes from a hub."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
)

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

torch.set_num_threads(1)  # models this small lose more to the waiting of threads than they gain
WORDS = [
    "the patient was given a new drug and recovered",
    "stock prices fell after the bank raised rates",
    "yes no maybe",
    "a galaxy far away emits radio waves",
    "Answer: 1 0 2",
    "free prize, call now!",
    "see you at lunch",
    "label one two three",
]
SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
}
GPT2_SIZES = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}


def byte_level_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """As GPT-2's: byte-level BPE, no padding token, no special tokens around a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder, bpe.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    bpe.train_from_iterator(
        WORDS * 3,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", model_max_length=256
    )


def word_piece_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """As BERT's: word pieces between [CLS] and [SEP], with token types."""
    wp = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wp.normalizer, wp.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    wp.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Not trained: the trainer gives other pieces each time, and every test would have another base.
    words = {
        word
        for text in WORDS
        for word, _ in wp.pre_tokenizer.pre_tokenize_str(wp.normalizer.normalize_str(text))
    }
    letters = {letter for word in words for letter in word}
    pieces = sorted({*words, *letters, *(f"##{letter}" for letter in letters)})
    wp.model = models.WordPiece(
        {piece: number for number, piece in enumerate([*special, *pieces])}, unk_token="[UNK]"
    )
    wp.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", wp.token_to_id("[CLS]")), ("[SEP]", wp.token_to_id("[SEP]"))],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=wp,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=256,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_base(
    folder: Path,
    model_class: type,
    config: Any,
    tokenizer: transformers.PreTrainedTokenizerFast,
    seed: int = 0,
) -> str:
    """Write a randomly initialised base model and its tokenizer, as a hub would hold them."""
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = transformers.BertConfig(vocab_size=400, **SIZES)
    return save_base(
        tmp_path_factory.mktemp("bert"), transformers.BertModel, config, word_piece_tokenizer()
    )


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = transformers.GPT2Config(vocab_size=500, bos_token_id=0, eos_token_id=0, **GPT2_SIZES)
    return save_base(
        tmp_path_factory.mktemp("gpt2"),
        transformers.GPT2LMHeadModel,
        config,
        byte_level_tokenizer(),
    )


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = transformers.LlamaConfig(
        vocab_size=500, bos_token_id=None, eos_token_id=0, tie_word_embeddings=True, **SIZES
    )
    return save_base(
        tmp_path_factory.mktemp("llama"),
        transformers.LlamaForCausalLM,
        config,
        byte_level_tokenizer(),
    )


@pytest.fixture
def text_rows() -> list[dict[str, str]]:
    """Sixteen rows of unequal lengths in two classes that the words tell apart."""
    medical = [
        "the patient recovered",
        "a new drug was given",
        "the drug and the patient",
        "a patient was given a new drug and recovered",
    ]
    other = [
        "stock prices fell",
        "the bank raised rates",
        "radio waves from a galaxy far away and away",
        "see you at lunch",
    ]
    return [
        {"text": f"{text} {n}", "label": label}
        for n in range(2)
        for texts, label in ((medical, "yes"), (other, "no"))
        for text in texts
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file and return its path."""

    def written(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


@pytest.fixture
def sentence_bert(bert: str, tmp_path: Path) -> Path:
    """A base that was trained on means, as its folder says in sentence-transformers' words."""
    folder = tmp_path / "sentence-bert"
    shutil.copytree(bert, folder)
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 128, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return folder

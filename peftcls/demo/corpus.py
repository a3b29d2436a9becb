"""Pretraining of the bundled base model: its documents, tokenizer, sequences and architecture.

A document is one line of a text file.
"""

import gzip
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
PAD = "<|pad|>"
# Similar to the pattern of GPT-4's tokenizer; numbers are split into pairs of digits.
WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
HELD_OUT_EVERY = 100
MIN_DOCUMENT_WORDS = 40
MAX_KEYWORDS = 5
MAX_TOKENS = 512


def read_documents(folder: Path) -> tuple[list[str], list[str]]:
    """The documents of all `*.txt.gz` files: those to train on, and those held out."""
    documents = []
    for file in sorted(folder.glob("*.txt.gz")):
        text = gzip.decompress(file.read_bytes()).decode()
        lines = [line.strip() for line in text.split("\n")]
        documents += [line for line in lines if line]
    train = [document for i, document in enumerate(documents) if i % HELD_OUT_EVERY]
    return train, documents[::HELD_OUT_EVERY]


def add_keywords(documents: list[str]) -> list[str]:
    """Append to each long document its own keywords: the terms of highest TF-IDF, in text order.

    To predict them, the last hidden state of a text has to represent what the text is about, which
    is what a classifier reads.
    """
    vectorizer = TfidfVectorizer(
        stop_words="english",
        ngram_range=(1, 2),
        min_df=3,
        max_df=0.02,
        sublinear_tf=True,
        token_pattern=r"(?u)\b[^\W\d]{4,}\b",
    )
    scores = vectorizer.fit_transform(documents)
    terms = vectorizer.get_feature_names_out()
    extended = []
    for document, row in zip(documents, scores, strict=True):
        if len(document.split()) >= MIN_DOCUMENT_WORDS and row.nnz >= MAX_KEYWORDS:
            keywords = _keywords(document, row, terms)
            document = f"{document}\nKeywords: {'; '.join(keywords)}"
        extended.append(document)
    return extended


def _keywords(document: str, row: Any, terms: Any) -> list[str]:
    """The best terms of a document, without those that are part of another good term.

    Args:
        document: the text.
        row: its TF-IDF scores, a sparse row.
        terms: the names of the row's columns.
    """
    lower = document.lower()
    descending = row.data.argsort()[::-1]
    best = [terms[i] for i in row.indices[descending[: 2 * MAX_KEYWORDS]]]
    chosen = []
    for term in best:
        is_part = any(term != other and term in other for other in best)
        if not is_part and term in lower:
            chosen.append(term)
    return sorted(chosen[:MAX_KEYWORDS], key=lower.index)


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with separate end and padding tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, model_max_length=MAX_TOKENS
    )


def pack(documents: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """Concatenate all documents, each ended by EOS, and cut them into sequences.

    Returns:
        Token ids of shape (sequences, length + 1); the rest at the end is dropped.
    """
    token_ids: list[int] = []
    for document_ids in tokenizer(documents)["input_ids"]:
        token_ids += [*document_ids, tokenizer.eos_token_id]
    sequences = len(token_ids) // (length + 1)
    return torch.tensor(token_ids[: sequences * (length + 1)]).view(-1, length + 1)


def shuffle(documents: list[str], seed: int) -> list[str]:
    """The documents in a random order that depends on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(documents), generator=generator).tolist()
    return [documents[i] for i in order]


def untrained_model(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> LlamaForCausalLM:
    """The architecture of the bundled base model, with random weights in float32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)

"""The text that the bundled base model was pretrained on: lines, their own keywords, a tokenizer, rows of tokens."""

import gzip
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"
WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # numbers in pairs
HELD_OUT_EVERY = 100
SHORTEST_DOCUMENT_WORDS = 40


def read_lines(folder: Path) -> tuple[list[str], list[str]]:
    """The lines of all `*.txt.gz` files, and those of them that are held out."""
    texts = [
        gzip.decompress(file.read_bytes()).decode() for file in sorted(folder.glob("*.txt.gz"))
    ]
    lines = [line.strip() for text in texts for line in text.split("\n") if line.strip()]
    return [line for i, line in enumerate(lines) if i % HELD_OUT_EVERY], lines[::HELD_OUT_EVERY]


def add_keywords(lines: list[str], most: int = 5) -> list[str]:
    """Each line of some length with its own terms of highest TF-IDF behind it, in the order in which they stand in it.

    To foretell them the last state of a text has to hold what the text is about, which is what a classifier reads.
    """
    terms = TfidfVectorizer(
        stop_words="english",
        ngram_range=(1, 2),
        min_df=3,
        max_df=0.02,
        sublinear_tf=True,
        token_pattern=r"(?u)\b[^\W\d]{4,}\b",
    )
    table = terms.fit_transform(lines)
    names = terms.get_feature_names_out()
    marked = []
    for line, row in zip(lines, table, strict=True):
        if len(line.split()) >= SHORTEST_DOCUMENT_WORDS and row.nnz >= most:
            best, lower = (
                [names[i] for i in row.indices[row.data.argsort()[::-1][: 2 * most]]],
                line.lower(),
            )
            chosen = [
                term
                for term in best
                if not any(term != other and term in other for other in best) and term in lower
            ][:most]
            line = f"{line}\nKeywords: {'; '.join(sorted(chosen, key=lower.index))}"
        marked.append(line)
    return marked


def train_tokenizer(lines: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with an end mark and a padding token of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder, bpe.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    bpe.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[EOS, PAD],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, model_max_length=512
    )


def pack(lines: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """All lines behind one another, each ended by EOS, cut into rows of `length + 1` tokens."""
    ids = [i for line in tokenizer(lines)["input_ids"] for i in [*line, tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // (length + 1) * (length + 1)]).view(-1, length + 1)

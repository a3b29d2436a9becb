"""What all systems share: base, texts, instruction, adapter settings and initial values."""

import csv
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from experiment import Experiment  # isort: skip
from real_data import minilm_folder  # isort: skip

from peftcls.demo import BASE_FOLDER
from peftcls.training import data_order

INSTRUCTION = (
    "You are given a short text message that somebody received. Decide whether it is unwanted "
    "advertising or fraud, or an ordinary message between people who know one another. Look at "
    "offers, prizes, numbers to call and at how it is written. Answer with a single word."
)
LABELS = ("no", "yes")
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
}
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "pad_token_id": 1,
}
# The dimensions of published models, as (class, config, tokenizer folder); weights are random.
SHAPES: dict[str, Any] = {
    "bert-base": (BertModel, BertConfig(), None),
    "smollm2-135m": (
        LlamaForCausalLM,
        LlamaConfig(tie_word_embeddings=True, **SMOLLM2),
        BASE_FOLDER,
    ),
    "qwen2.5-0.5b": (Qwen2ForCausalLM, Qwen2Config(tie_word_embeddings=True, **QWEN), BASE_FOLDER),
    # For curves and tests.
    "two-layers": (
        LlamaForCausalLM,
        LlamaConfig(tie_word_embeddings=True, **{**SMOLLM2, "num_hidden_layers": 2}),
        BASE_FOLDER,
    ),
    "tiny": (BertModel, BertConfig(vocab_size=8192, **TINY), BASE_FOLDER),
}
# Stored in bfloat16, as they are published.
STORED_IN_BFLOAT16 = {"smollm2-135m", "qwen2.5-0.5b"}
# By name: folder, text column, label column, and the part that scores are taken on.
TEXTS = {
    "sms": ("sms_spam", "Text", "Label", "test"),
    "abstracts": ("medical_papers", "abstract", "label", "validation"),
}
Rows = list[dict[str, str]]


def base_folder(name: str, cache: Path) -> str:
    """The folder of a base: MiniLM-L6 itself, or random weights of a shape, which are made once."""
    if name == "minilm":
        return minilm_folder()
    folder = cache / name
    if not (folder / "config.json").is_file():
        model_class, config, tokenizer = SHAPES[name]
        torch.manual_seed(0)
        AutoTokenizer.from_pretrained(tokenizer or minilm_folder()).save_pretrained(folder)
        model = model_class(config)
        if name in STORED_IN_BFLOAT16:
            model.bfloat16()
        model.save_pretrained(folder)
    return str(folder)


def read_file(data: Path, texts: str, part: str) -> Rows:
    """All rows of a file that have a text, with the columns text and label."""
    folder, text, label, _ = TEXTS[texts]
    file = data / folder / f"{part}.csv"
    if not file.is_file():
        raise ValueError(
            f"there is no file {file}; give --data a folder with sms_spam and medical_papers in it."
        )
    rows = []
    with file.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            name = LABELS[1] if row[label] == "1" else LABELS[0]
            rows.append({"text": row[text].strip(), "label": name})
    return [row for row in rows if row["text"]]


def training_rows(e: Experiment, data: Path) -> Rows:
    """The first rows of the file, or, where it has fewer, drawn from all of them and numbered."""
    table = read_file(data, e.texts, "train")
    if e.words:
        texts = [_joined_texts(table, first, e.words) for first in range(len(table))]
        table = [{**row, "text": text} for row, text in zip(table, texts, strict=True)]
    if e.rows <= len(table):
        return table[: e.rows]
    drawn = random.Random(0).choices(table, k=e.rows)
    return [{**row, "text": f"{row['text']} {number}"} for number, row in enumerate(drawn)]


def _joined_texts(table: Rows, first: int, min_words: int) -> str:
    """The texts from a row on, until they have enough words."""
    words: list[str] = []
    while len(words) < min_words:
        words += table[first % len(table)]["text"].split()
        first += 1
    return " ".join(words)


def gate_rows(e: Experiment, data: Path) -> Rows:
    """A few rows, as many of each label."""
    table = read_file(data, e.texts, "train")
    chosen = []
    for label in LABELS:
        of_label = [row for row in table if row["label"] == label]
        chosen += of_label[: e.gate_rows // 2]
    return chosen


def in_step_order(rows: Rows, e: Experiment, seed: int) -> Rows:
    """The rows of all epochs, one after another, in the order in which peftcls takes them."""
    steps = e.epochs * data_order.steps_per_epoch(len(rows), e.batch_size)
    ordered = []
    for step in range(steps):
        indices = data_order.step_rows(len(rows), e.batch_size, seed, step)
        ordered += [rows[i] for i in indices]
    return ordered


def instruction_text(e: Experiment) -> str:
    """The instruction before every text."""
    return " ".join([INSTRUCTION] * e.instructions)


def lora(base: str) -> dict[str, Any]:
    """The settings of the adapter; its targets are the base's attention projections."""
    if AutoConfig.from_pretrained(base).model_type == "bert":
        targets = ["query", "value"]
    else:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return {"r": 8, "lora_alpha": 16, "target_modules": targets}


def begin_with(model: torch.nn.Module, file: Path) -> None:
    """Set all trained tensors to the initial values that all systems share.

    Raises:
        ValueError: the file and the model do not have the same trained tensors.
    """
    initial = load_file(file)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    different = sorted(set(initial) ^ set(trained))
    if different:
        raise ValueError(
            f"{different[0]}, and {len(different) - 1} more, are trained by only one system."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(initial[name])

"""What every system is given alike: the base, the texts, the instruction, the adapter's settings and its first values."""

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
    "You are given a short text message that somebody received. Decide whether it is unwanted advertising or fraud, or an "
    "ordinary message between people who know one another. Look at offers, prizes, numbers to call and at how it is written. "
    "Answer with a single word."
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
SHAPES: dict[str, Any] = {  # the dimensions of published models; the weights are random
    "bert-base": (BertModel, BertConfig(), None),
    "smollm2-135m": (
        LlamaForCausalLM,
        LlamaConfig(tie_word_embeddings=True, **SMOLLM2),
        BASE_FOLDER,
    ),
    "qwen2.5-0.5b": (Qwen2ForCausalLM, Qwen2Config(tie_word_embeddings=True, **QWEN), BASE_FOLDER),
    # and two for curves and tests
    "two-layers": (
        LlamaForCausalLM,
        LlamaConfig(tie_word_embeddings=True, **{**SMOLLM2, "num_hidden_layers": 2}),
        BASE_FOLDER,
    ),
    "tiny": (BertModel, BertConfig(vocab_size=8192, **TINY), BASE_FOLDER),
}
STORED_NARROW = {"smollm2-135m", "qwen2.5-0.5b"}  # as they are published
TEXTS = {
    "sms": ("sms_spam", "Text", "Label", "test"),
    "abstracts": ("medical_papers", "abstract", "label", "validation"),
}
Rows = list[dict[str, str]]


def base_folder(name: str, cache: Path) -> str:
    """The folder of a base: MiniLM-L6 as it is, or random weights in a shape, made once."""
    if name == "minilm":
        return minilm_folder()
    if not (folder := cache / name / "config.json").is_file():
        kind, config, words = SHAPES[name]
        torch.manual_seed(0)
        AutoTokenizer.from_pretrained(words or minilm_folder()).save_pretrained(folder.parent)
        model = kind(config)
        if name in STORED_NARROW:
            model.bfloat16()
        model.save_pretrained(folder.parent)
    return str(folder.parent)


def read_file(data: Path, texts: str, part: str) -> Rows:
    """All rows of a file as text and label."""
    folder, text, label, _ = TEXTS[texts]
    if not (file := data / folder / f"{part}.csv").is_file():
        raise ValueError(
            f"there is no file {file}; give --data a folder with sms_spam and medical_papers in it."
        )
    with file.open(newline="", encoding="utf-8") as opened:
        table = [
            {"text": row[text].strip(), "label": LABELS[row[label] == "1"]}
            for row in csv.DictReader(opened)
        ]
    return [row for row in table if row["text"]]


def training_rows(e: Experiment, data: Path) -> Rows:
    """The rows of an experiment: the file's first, or drawn from all of them and numbered where the file has fewer."""
    table = read_file(data, e.texts, "train")
    if e.words:
        table = [{**row, "text": _joined(table, place, e.words)} for place, row in enumerate(table)]
    if e.rows <= len(table):
        return table[: e.rows]
    drawn = random.Random(0).choices(table, k=e.rows)
    return [{**row, "text": f"{row['text']} {number}"} for number, row in enumerate(drawn)]


def _joined(table: Rows, place: int, words: int) -> str:
    found: list[str] = []
    while len(found) < words:
        found += table[place % len(table)]["text"].split()
        place += 1
    return " ".join(found)


def gate_rows(e: Experiment, data: Path) -> Rows:
    """A few rows, as many of each label."""
    table = read_file(data, e.texts, "train")
    half = e.gate_rows // 2
    return [
        row for label in LABELS for row in [row for row in table if row["label"] == label][:half]
    ]


def in_step_order(rows: Rows, e: Experiment, seed: int) -> Rows:
    """All epochs' rows, one after another, as peftcls takes them."""
    steps = e.epochs * data_order.steps_per_epoch(len(rows), e.batch_size)
    return [
        rows[i]
        for step in range(steps)
        for i in data_order.step_rows(len(rows), e.batch_size, seed, step)
    ]


def instruction_text(e: Experiment) -> str:
    """What stands in front of every text."""
    return " ".join([INSTRUCTION] * e.instructions)


def lora(base: str) -> dict[str, Any]:
    """The adapter's settings, by the names of the base's attention projections."""
    targets = (
        ["query", "value"]
        if AutoConfig.from_pretrained(base).model_type == "bert"
        else ["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    return {"r": 8, "lora_alpha": 16, "target_modules": targets}


def begin_with(model: torch.nn.Module, file: Path) -> None:
    """Put the first values that all systems share into what is trained, which must be the same tensors."""
    given, own = (
        load_file(file),
        {name: p for name, p in model.named_parameters() if p.requires_grad},
    )
    if different := sorted(set(given) ^ set(own)):
        raise ValueError(
            f"{different[0]}, and {len(different) - 1} more, are trained by one system alone."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])

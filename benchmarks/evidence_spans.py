"""Extractive question answering by transformers' Trainer, prepared as the library's examples do it.

Windows with a stride, each a training row of its own; ends on the first token where a window lacks
the answer; at the end the best pair of ends over all windows of a row.
"""

import tempfile
from typing import Any

import datasets
import numpy as np
import torch
from evidence_data import Rows, Work
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from peftcls.training.defaults import SPANS

STRIDE = 96
N_BEST = 20
MAX_ANSWER_TOKENS = 30


def with_trainer(
    work: Work, base: str, rows: tuple[Rows, Rows, Rows], seed: int, rate: float
) -> list[str]:
    """The answers to the test rows."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    adapter = LoraConfig(
        task_type="QUESTION_ANS",
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=["query", "key", "value", "attention.output.dense"],
    )
    model = get_peft_model(AutoModelForQuestionAnswering.from_pretrained(base), adapter)

    def windows(table: dict[str, list]) -> dict[str, list]:
        return encode_windows(tokenizer, table, work.max_length)

    train, _, test = (datasets.Dataset.from_list(part) for part in rows)
    encoded = train.map(windows, batched=True, remove_columns=train.column_names)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=work.epochs or SPANS.epochs_for(len(train), SPANS.batch_size),
        per_device_train_batch_size=SPANS.batch_size,
        seed=seed,
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=0.06,
        lr_scheduler_type="linear",
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=encoded.remove_columns(["row", "offset_mapping"]),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    test_windows = test.map(
        windows, batched=True, batch_size=len(test), remove_columns=test.column_names
    )
    return best_texts(trainer, test_windows, test)


def encode_windows(tokenizer: Any, rows: dict[str, list], max_length: int) -> dict[str, list]:
    """Questions with windows of their contexts, and the tokens where the answers begin and end."""
    encoded = tokenizer(
        [question.strip() for question in rows["question"]],
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    encoded["start_positions"] = []
    encoded["end_positions"] = []
    context_offsets = []
    row_numbers = encoded.pop("overflow_to_sample_mapping")
    for window, row in enumerate(row_numbers):
        parts = encoded.sequence_ids(window)
        # None outside of the context.
        offsets = [
            pair if part == 1 else None
            for pair, part in zip(encoded["offset_mapping"][window], parts, strict=True)
        ]
        first, last = answer_tokens(rows["answers"][row], offsets)
        encoded["start_positions"].append(first)
        encoded["end_positions"].append(last)
        context_offsets.append(offsets)
    encoded["row"] = row_numbers
    encoded["offset_mapping"] = context_offsets
    return dict(encoded)


def answer_tokens(answers: dict[str, list], offsets: list[Any]) -> tuple[int, int]:
    """The first and last token of the first answer; (0, 0) where the window lacks one of them."""
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = 0
    last = 0
    for token, pair in enumerate(offsets):
        if pair is None:
            continue
        if not first and pair[0] <= start < pair[1]:
            first = token
        if not last and pair[0] < end <= pair[1]:
            last = token
    return (first, last) if first and last else (0, 0)


def best_texts(trainer: Trainer, windows: Any, test: Any) -> list[str]:
    """For each row, the span with the highest sum of start and end logits over all its windows."""
    removed = ["row", "offset_mapping", "start_positions", "end_positions"]
    starts, ends = trainer.predict(windows.remove_columns(removed)).predictions
    texts = [""] * len(test)
    scores = [-np.inf] * len(test)
    for window, encoded in enumerate(windows):
        row = encoded["row"]
        offsets = encoded["offset_mapping"]
        for first in np.argsort(starts[window])[::-1][:N_BEST]:
            for last in np.argsort(ends[window])[::-1][:N_BEST]:
                if not is_span(offsets, first, last):
                    continue
                score = starts[window][first] + ends[window][last]
                if score > scores[row]:
                    scores[row] = score
                    texts[row] = test[row]["context"][offsets[first][0] : offsets[last][1]]
    return texts


def is_span(offsets: list[Any], first: int, last: int) -> bool:
    """Whether two tokens are in the context, in their order, and not too far apart."""
    if not first <= last < min(first + MAX_ANSWER_TOKENS, len(offsets)):
        return False
    return offsets[first] is not None and offsets[last] is not None

"""The experiments of the study in seven_questions.py, and one run of one of them."""

import argparse
import contextlib
import dataclasses
import resource
import sys
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

# Shares of the training file where no such file is given.
SPLIT = {"test": 0.2, "valid": 0.1}
# Training rows that are scored.
MAX_TRAIN_SCORED = 500
MAX_TOKENS = 512
# From so many parameters on, a model is trained in smaller steps.
MIN_LARGE_PARAMETERS = 50_000_000
RATES = {
    "small": {
        "head": 5e-3,
        "last_block": 5e-4,
        "last_two_blocks": 5e-4,
        "all": 5e-4,
        "attention": 1e-3,
        "all-linear": 1e-3,
    },
    "large": {
        "head": 1e-3,
        "last_block": 5e-5,
        "last_two_blocks": 5e-5,
        "all": 5e-5,
        "attention": 5e-4,
        "all-linear": 5e-4,
    },
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """How a line of the table differs from the default, which is `Experiment("last block")`.

    Args:
        name: of the line.
        train: a part of the model, or the targets of a LoRA of rank 16.
        base: "model", "encoder" or "larger": the option that names it.
        pooling: see `Classification`.
        causal: see `Classification`.
        batch_size: rows of a step.
        micro_batch_size: rows of a forward pass.
        padding: "longest" pads to the longest row of the micro-batch; "width" to a fixed width;
            "text" also has the padding read as text.
        pretrained: False for random weights.
        baseline: a system without a transformer, by its name in peftcls.baselines.
    """

    name: str
    train: Any = "last_block"
    base: str = "model"
    pooling: Any = None
    causal: bool = True
    batch_size: int = 16
    micro_batch_size: int | None = None
    padding: str = "longest"
    pretrained: bool = True
    baseline: bool = False


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment("last block"),
        Experiment("head only", train="head"),
        Experiment("last two blocks", train="last_two_blocks"),
        Experiment("all layers", train="all"),
        Experiment("LoRA, attention", train="attention"),
        Experiment("LoRA, all linear", train="all-linear"),
        Experiment("first token", pooling="first"),
        Experiment("mean of tokens", pooling="mean"),
        Experiment("no causal mask", causal=False),
        Experiment("no causal mask, mean of tokens", causal=False, pooling="mean"),
        Experiment("encoder, LoRA", base="encoder", train="attention"),
        Experiment("encoder, last block", base="encoder"),
        Experiment("larger model", base="larger"),
        Experiment("no padding, batch of 1", batch_size=1),
        Experiment("no padding, 16 rows one by one", micro_batch_size=1),
        Experiment("padded to a fixed width", padding="width"),
        Experiment("padded, last position whatever it holds", padding="text"),
        Experiment("random weights, last block", pretrained=False),
        Experiment("random weights, all layers", pretrained=False, train="all"),
        Experiment("TF-IDF + logistic regression", baseline=True),
        Experiment("majority", baseline=True),
    )
}


def read_tables(options: argparse.Namespace) -> dict[str, Any]:
    """Training, validation and test rows with the columns text and label.

    What has no file is split off the training rows.
    """
    from peftcls import read_rows
    from peftcls.data.reading import as_dataset, source_name
    from peftcls.recipe import find_columns

    tables: dict[str, Any] = {}
    for part in ("train", "valid", "test"):
        source = getattr(options, part)
        if source is None:
            continue
        rows = read_rows(source)
        text, label = find_columns(rows, options.text, options.label)
        renamed = [{"text": row[text], "label": row[label]} for row in rows]
        tables[part] = as_dataset(renamed, source_name(rows))
    total = len(tables["train"])
    for part, share in SPLIT.items():
        if part not in tables:
            count = round(share * total)
            tables["train"], tables[part] = _split(tables["train"], count, total)
    return tables


def _split(rows: Any, count: int, total: int) -> tuple[Any, Any]:
    """The rows without some of them, and these, with the same share of every label."""
    from sklearn.model_selection import train_test_split

    from peftcls.data.reading import source_name

    try:
        kept, held_out = train_test_split(
            range(len(rows)), test_size=count, stratify=rows["label"], random_state=0
        )
    except ValueError as error:
        sys.exit(
            f"the {total} rows of {source_name(rows)} cannot be split into 70 / 10 / 20 by label "
            f"({error}); give --valid and --test."
        )
    return rows.select(kept), rows.select(held_out)


def padding_to(width: int, *, is_read: bool) -> Callable[..., Any]:
    """A `pad_inputs` that pads on the right to a fixed width.

    Args:
        width: in tokens.
        is_read: whether the attention mask has the model read the padding as text.
    """
    import torch

    from peftcls.tasks.base import pad_inputs

    def pad_to_width(features: Any, tokenizer: Any) -> Any:
        padding = {
            "input_ids": int(tokenizer.pad_token_id),
            "attention_mask": 0,
            "token_type_ids": 0,
        }
        batch = {}
        for name, tensor in pad_inputs(features, tokenizer).items():
            missing = (0, width - tensor.shape[1])
            batch[name] = torch.nn.functional.pad(tensor, missing, value=padding[name])
        if is_read:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return batch

    return pad_to_width


def measure(e: Experiment, options: argparse.Namespace, out: str) -> dict[str, Any]:
    """One run in this process: accuracies, costs, and which test rows were right."""
    import numpy as np

    from peftcls import Classification
    from peftcls.baselines import baselines

    tables = read_tables(options)
    train = tables["train"]
    chosen = np.random.default_rng(0).permutation(len(train))[:MAX_TRAIN_SCORED]
    scored = {**tables, "train": train.select(chosen)}
    task = Classification(pooling=e.pooling, causal=e.causal).learn(train)
    found: dict[str, Any] = {
        "rows": {part: len(rows) for part, rows in tables.items()},
        "labels": task.labels,
    }
    if e.baseline:
        answers = {part: baselines(task, train, rows)[e.name] for part, rows in scored.items()}
    else:
        costs, answers = _train(e, options, task, train, scored, out)
        found |= costs
    for part, rows in scored.items():
        right = [
            answer.label == task.gold_of(row)[0]
            for answer, row in zip(answers[part], rows, strict=True)
        ]
        found[f"{part}_accuracy"] = 100 * float(np.mean(right))
        if part == "test":
            found["test_right"] = "".join(str(int(r)) for r in right)
    return found


def _train(
    e: Experiment,
    options: argparse.Namespace,
    task: Any,
    train: Any,
    scored: dict[str, Any],
    out: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a model: its costs, and its answers to the rows that are scored."""
    from peftcls import TrainConfig, Trainer
    from peftcls.models.trainable import trained_parameters

    model, tokenizer = _load_base(e, options, task)
    width = _width(options, model, tokenizer)
    task = dataclasses.replace(task, max_length=width)
    base_parameters = sum(p.numel() for p in model.parameters())
    model = _make_trainable(e, model, task, options.seed)
    rate = RATES["small" if base_parameters < MIN_LARGE_PARAMETERS else "large"][e.train]
    config = TrainConfig(
        out,
        epochs=options.epochs,
        batch_size=e.batch_size,
        micro_batch_size=e.micro_batch_size,
        learning_rate=rate,
        seed=options.seed,
    )
    # peftcls pads no further than necessary and never reads padding, so both are patched in.
    padding: Any = contextlib.nullcontext()
    if e.padding != "longest":
        padding = unittest.mock.patch(
            "peftcls.tasks.text_encoding.pad_inputs",
            padding_to(width, is_read=e.padding == "text"),
        )
    with padding, Trainer(model, task, tokenizer, config) as trainer:
        peak_before = peak_mib()
        started = time.perf_counter()
        worked = time.process_time()
        trainer.fit(train)
        costs = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - worked,
            "peak_mib": peak_mib(),
            "peak_mib_before_training": peak_before,
            "trained_parameters": sum(p.numel() for p in trained_parameters(model).values()),
            "base_parameters": base_parameters,
            "learning_rate": rate,
            "width": width,
        }
        answers = {part: trainer.predict(rows) for part, rows in scored.items()}
    return costs, answers


def _load_base(e: Experiment, options: argparse.Namespace, task: Any) -> tuple[Any, Any]:
    from peftcls import load_base
    from peftcls.engine.model_state import base_facts

    name = getattr(options, e.base)
    model, tokenizer = load_base(name, task, seed=options.seed, pretrained=e.pretrained)
    if e.base == "encoder" and base_facts(model).causal:
        sys.exit(
            f"--encoder {options.encoder} is a decoder, expected an encoder such as BERT; "
            "leave it out or name another."
        )
    return model, tokenizer


def _width(options: argparse.Namespace, model: Any, tokenizer: Any) -> int:
    """The tokens of a text that are read."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    return min(options.pad_to or MAX_TOKENS, positions, tokenizer.model_max_length)


def _make_trainable(e: Experiment, model: Any, task: Any, seed: int) -> Any:
    from peftcls import attach_lora, train_only

    if e.train in ("attention", "all-linear"):
        return attach_lora(model, task, rank=16, alpha=32, targets=e.train, seed=seed)
    return train_only(model, task, e.train)


def peak_mib() -> float:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

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

SPLIT = {"test": 0.2, "valid": 0.1}  # shares of the training file where no such file is given
TRAIN_SCORED = 500
MOST_TOKENS = 512
LARGE = 50_000_000  # parameters; from here on a model is trained in smaller steps
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
    """What one line of the table differs in from the default, which is `Experiment("last block")`."""

    name: str
    train: Any = "last_block"  # a part of the model, or the targets of a LoRA of rank 16
    base: str = "model"  # or "encoder" or "larger": the option that names it
    pooling: Any = None
    causal: bool = True
    batch_size: int = 16
    micro_batch_size: int | None = None
    padding: str = "longest"  # of the micro-batch; "width" fills up to a fixed one; "text" also has the padding read as text
    pretrained: bool = True
    baseline: bool = False  # a system without a transformer, by its name in peftcls.baselines


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
    """Training, validation and test rows with the columns text and label; what has no file is split off the training rows."""
    from sklearn.model_selection import train_test_split

    from peftcls import read_rows
    from peftcls.data.reading import as_dataset, source_name
    from peftcls.recipe import find_columns

    found = {}
    for part in ("train", "valid", "test"):
        if (source := getattr(options, part)) is not None:
            rows = read_rows(source)
            text, label = find_columns(rows, options.text, options.label)
            found[part] = as_dataset(
                [{"text": row[text], "label": row[label]} for row in rows], source_name(rows)
            )
    total, name = len(found["train"]), source_name(found["train"])
    for part, share in SPLIT.items():
        if part not in found:
            rows = found["train"]
            try:
                rest, held = train_test_split(
                    range(len(rows)),
                    test_size=round(share * total),
                    stratify=rows["label"],
                    random_state=0,
                )
            except ValueError as error:
                sys.exit(
                    f"the {total} rows of {name} cannot be split into 70 / 10 / 20 by label ({error}); give --valid and --test."
                )
            found["train"], found[part] = rows.select(rest), rows.select(held)
    return found


def padding_to(width: int, tokens_are_real: bool) -> Callable[..., Any]:
    """A `pad_inputs` that fills up to a width on the right, and with `tokens_are_real` has the model read what it filled in."""
    import torch

    from peftcls.tasks.base import pad_inputs

    def pad_to_width(features: Any, tokenizer: Any) -> Any:
        batch = pad_inputs(features, tokenizer)
        filled = {
            "input_ids": int(tokenizer.pad_token_id),
            "attention_mask": 0,
            "token_type_ids": 0,
        }
        batch = {
            name: torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=filled[name])
            for name, tensor in batch.items()
        }
        return (
            {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
            if tokens_are_real
            else batch
        )

    return pad_to_width


def measure(e: Experiment, options: argparse.Namespace, out: str) -> dict[str, Any]:
    """One run in this process: accuracies, what it took, and which test rows were right."""
    import numpy as np

    from peftcls import Classification, TrainConfig, Trainer, attach_lora, load_base, train_only
    from peftcls.baselines import baselines
    from peftcls.models.state import base_facts
    from peftcls.models.trainable import trained_parameters

    tables = read_tables(options)
    train = tables["train"]
    scored = {
        **tables,
        "train": train.select(np.random.default_rng(0).permutation(len(train))[:TRAIN_SCORED]),
    }
    task = Classification(pooling=e.pooling, causal=e.causal).learn(train)
    spent: dict[str, Any] = {
        "rows": {part: len(rows) for part, rows in tables.items()},
        "labels": task.labels,
    }
    if e.baseline:
        answers = {part: baselines(task, train, rows)[e.name] for part, rows in scored.items()}
    else:
        model: Any
        model, tokenizer = load_base(
            getattr(options, e.base), task, seed=options.seed, pretrained=e.pretrained
        )
        if e.base == "encoder" and base_facts(model).causal:
            sys.exit(
                f"--encoder {options.encoder} is a decoder, expected an encoder such as BERT; leave it out or name another."
            )
        context = (
            getattr(model.config.get_text_config(), "max_position_embeddings", None) or MOST_TOKENS
        )
        width = min(options.pad_to or MOST_TOKENS, context, tokenizer.model_max_length)
        task = dataclasses.replace(task, max_length=width)
        size = sum(p.numel() for p in model.parameters())
        if e.train in ("attention", "all-linear"):
            model = attach_lora(model, task, rank=16, alpha=32, targets=e.train, seed=options.seed)
        else:
            model = train_only(model, task, e.train)
        rate = RATES["small" if size < LARGE else "large"][e.train]
        config = TrainConfig(
            out,
            epochs=options.epochs,
            batch_size=e.batch_size,
            micro_batch_size=e.micro_batch_size,
            learning_rate=rate,
            seed=options.seed,
        )
        padding: Any = contextlib.nullcontext()
        if (
            e.padding != "longest"
        ):  # peftcls pads no further than it must and reads no padding: both are put into it from outside
            padding = unittest.mock.patch(
                "peftcls.tasks.text_encoding.pad_inputs", padding_to(width, e.padding == "text")
            )
        with padding, Trainer(model, task, tokenizer, config) as trainer:
            before, started, worked = peak_mib(), time.perf_counter(), time.process_time()
            trainer.fit(train)
            spent |= {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - worked,
                "peak_mib": peak_mib(),
                "peak_mib_before_training": before,
                "trained_parameters": sum(p.numel() for p in trained_parameters(model).values()),
                "base_parameters": size,
                "learning_rate": rate,
                "width": width,
            }
            answers = {part: trainer.predict(rows) for part, rows in scored.items()}
    right = {
        part: [a.label == task.gold_of(row)[0] for a, row in zip(answers[part], rows, strict=True)]
        for part, rows in scored.items()
    }
    return {
        **spent,
        **{f"{part}_accuracy": 100 * float(np.mean(own)) for part, own in right.items()},
        "test_right": "".join(str(int(r)) for r in right["test"]),
    }


def peak_mib() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

"""Started by torchrun, or alone: train several small models in float64, the base in shares or not.

With the method "4bit" the base is in 4 bits, and computes in float32; each process then trains it
whole, too.

Writes what each has trained, its scores and answers, and how much of the base this process held.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file

import peftcls
from peftcls.engine.model_state import state_of
from peftcls.engine.sharding import own_parts
from peftcls.models.lora_injection import set_head_dropout

bases = json.loads(sys.argv[1])
out, rows_file, kinds = Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
shard = int(os.environ.get("WORLD_SIZE", "1")) > 1
torch.set_num_threads(1)
rows = peftcls.read_rows(rows_file)
CONTEXT = "the patient was given a new drug and recovered. a galaxy emits radio waves."
QUESTIONS = [
    {"question": f"{question} {n}", "context": CONTEXT * (n + 1), "answers": answers}
    for n in range(2)
    for question, answers in [
        ("who recovered?", {"text": ["the patient"], "answer_start": [0]}),
        ("what was given?", {"text": ["a new drug"], "answer_start": [22]}),
        ("what emits waves?", {"text": ["a galaxy"], "answer_start": [48]}),
    ]
]


def task_of(kind):
    if kind in ("labels", "generated"):
        return peftcls.Instruction(
            template="Read this text.\nText: {input}\nAnswer: ",
            input="text",
            output="label",
            labels=("no", "yes") if kind == "labels" else None,
            max_length=64,
            max_new_tokens=6,
        )
    if kind == "spans":
        return peftcls.ExtractiveQA(max_length=40, stride=12).learn(QUESTIONS)
    if kind == "numbers":
        return peftcls.Regression(target="length", max_length=64).learn(table_of(kind))
    if kind == "pairs":
        return peftcls.Classification(text=("text", "other"), max_length=64).learn(table_of(kind))
    if kind == "several":
        return peftcls.Classification(multi_label=True, max_length=64).learn(table_of(kind))
    sampling = "balanced" if kind == "balanced" else None
    return peftcls.Classification(max_length=64, sampling=sampling).learn(rows)


def table_of(kind):
    if kind == "spans":
        return QUESTIONS
    if kind == "numbers":
        return [{"text": row["text"], "length": float(len(row["text"]))} for row in rows]
    if kind == "pairs":
        return [{**row, "other": rows[n - 1]["text"]} for n, row in enumerate(rows)]
    if kind == "several":
        return [{**row, "label": [row["label"], str(n % 3)]} for n, row in enumerate(rows)]
    return list(rows)


def train_in_4_bits(base, kind, *, shard):
    task = task_of(kind)
    model, tokenizer = peftcls.load_base(
        bases[base], task, dtype=torch.float32, quantize="4bit", shard=shard
    )
    model = peftcls.attach_lora(model, task, rank=4)
    # Whole 4-bit weights know how they are quantized; shares of them are stored as bytes.
    held = sum(
        part.nbytes
        for _, part in own_parts(model.named_parameters())
        if part.dtype == torch.uint8 or hasattr(part, "quant_state")
    )
    folder = out / f"{base}-{kind}-4bit-{'shares' if shard else 'whole'}"
    # In shares all processes agree on a prefix; else each chooses its own, and rounds so.
    paths = peftcls.FastPaths(prefix=False)
    config = peftcls.TrainConfig(
        folder, epochs=1, batch_size=5, learning_rate=1e-2, fast_paths=paths
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    trainer.fit(rows)
    loaded = peftcls.load_predictor(folder, shard=shard)
    found = {
        "answers": [answer.probabilities for answer in trainer.predict(rows)],
        "loaded": [answer.probabilities for answer in loaded.predict(rows)],
        "held": gather_object([held]),
        "shared": [state_of(each).shares is not None for each in (model, loaded.model)],
    }
    if trainer.accelerator.is_main_process:
        tensors = {name: p.detach().clone() for name, p in trainer.parameters.items()}
        save_file(tensors, f"{folder}.safetensors")
        Path(f"{folder}.json").write_text(json.dumps(found))


def train(base, kind, method):
    if method == "4bit":
        for in_shares in (False, True):
            train_in_4_bits(base, kind, shard=in_shares)
        return
    name = f"{base}-{kind}-{method}"
    task, table = task_of(kind), table_of(kind)
    model, tokenizer = peftcls.load_base(bases[base], task, dtype=torch.float64, shard=shard)
    own = sum(part.numel() for _, part in own_parts(model.named_parameters()))
    if method == "head":
        model = peftcls.train_only(model, task, "head")
        set_head_dropout(model, 0.0)
    else:
        settings = {"targets": "all-linear"} if method == "all-linear" else {"method": method}
        if method == "top":
            settings = {"layers": [-1]}
        # Every process starts from other weights; the main process's are used.
        model = peftcls.attach_lora(
            model, task, rank=4, seed=int(os.environ.get("RANK", "0")), **settings
        )
    model.double()
    config = peftcls.TrainConfig(
        out / name,
        epochs=2,
        batch_size=5,
        micro_batch_size=2,
        learning_rate=1e-2,
        gradient_checkpointing=method == "rslora",
        objective="contrast" if method == "ia3" else "answers",
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    # Without validation rows the last step is kept, not the probe that it began with.
    trainer.fit(table)
    answers = [str(answer.text) for answer in trainer.predict(table)]
    found = {
        "tensors": {name: p.detach().clone() for name, p in trainer.parameters.items()},
        "scores": [trainer.history, trainer.evaluate(table)],
        "answers": answers,
        "held": gather_object([own]),
        "shared": state_of(model).shares is not None,
    }
    if trainer.accelerator.is_main_process:
        save_file(found.pop("tensors"), out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(found))


out.mkdir(exist_ok=True)
for kind in kinds:
    train(*kind.split("-", 2))

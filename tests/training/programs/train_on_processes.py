"""Started by torchrun: train in float64 without dropout; write the trained tensors and scores.

It is started with a file of jobs, since starting takes longer than a job, and the expected number
of processes. A job has a kind, a base, the training rows and a folder.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import peftcls

jobs, processes = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
torch.set_num_threads(1)
process = int(os.environ.get("RANK", 0))


def make_task(kind: str, rows):
    if kind == "instruction":
        return peftcls.Instruction(
            template="Text: {input}\nAnswer: ",
            input="text",
            output="label",
            labels=("no", "yes"),
            max_length=64,
            max_new_tokens=16,
        )
    sampling = "balanced" if kind == "balanced" else None
    weight = "weight" if kind == "weighted" else None
    return peftcls.Classification(max_length=64, sampling=sampling, weight=weight).learn(rows)


def train(kind: str, base: str, rows: list, out: str) -> peftcls.Trainer:
    rows = peftcls.data.reading.as_dataset(rows)
    task = make_task(kind, rows)
    model, tokenizer = peftcls.load_base(base, task)
    method = "adalora" if kind == "balanced" else "lora"
    model = peftcls.attach_lora(
        model, task, rank=4, method=method, seed=process
    ).double()  # every process starts from other weights
    config = peftcls.TrainConfig(
        out,
        epochs=2,
        batch_size=7,
        micro_batch_size=2,
        learning_rate=1e-2,
        metrics=["cohen_kappa_score", "roc_auc_score"],
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.num_processes
    # Without validation rows the last step is kept, not the probe that it began with.
    trainer.fit(rows)
    scores, answers = trainer.evaluate(rows), [a.label for a in trainer.predict(rows)]
    if trainer.accelerator.is_main_process:
        tensors = {name: p.detach() for name, p in trainer.parameters.items()}
        save_file(tensors, Path(out) / "double.safetensors")
        (Path(out) / "scores.json").write_text(json.dumps([scores, answers]))
    return trainer


for job in jobs:
    trainer = train(**job)
trainer.close()

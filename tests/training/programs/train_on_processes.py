"""Started by torchrun: train in float64 without dropout; write the trained tensors and scores."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import peftcls

base, out, rows_file, processes, kind = (
    sys.argv[1],
    Path(sys.argv[2]),
    sys.argv[3],
    int(sys.argv[4]),
    sys.argv[5],
)
torch.set_num_threads(1)
rows = peftcls.read_rows(rows_file)
if kind == "instruction":
    task = peftcls.Instruction(
        template="Text: {input}\nAnswer: ",
        input="text",
        output="label",
        labels=("no", "yes"),
        max_length=64,
        max_new_tokens=16,
    )
else:
    if kind == "weighted":
        rows = rows.add_column("weight", [0.25 * (number % 5) for number in range(len(rows))])
    task = peftcls.Classification(
        max_length=64,
        sampling="balanced" if kind == "balanced" else None,
        weight="weight" if kind == "weighted" else None,
    ).learn(rows)
process = int(os.environ.get("RANK", 0))
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
with peftcls.Trainer(model, task, tokenizer, config) as trainer:
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.num_processes
    # Without validation rows the last step is kept, not the probe that it began with.
    trainer.fit(rows)
    scores, answers = trainer.evaluate(rows), [a.label for a in trainer.predict(rows)]
    if trainer.accelerator.is_main_process:
        save_file(
            {name: p.detach() for name, p in trainer.parameters.items()}, out / "double.safetensors"
        )
        (out / "scores.json").write_text(json.dumps([scores, answers]))

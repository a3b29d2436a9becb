"""One of two processes: in the other one something is not finite, or cannot be computed.

Writes, for each fault, the error that this process ended with and how many steps it had done.
"""

import json
import os
import sys
from pathlib import Path

import torch

import peftcls
from peftcls.models.adapter_folder import load_adapter
from peftcls.training import save_check

base, damaged_base, out, rows_file = sys.argv[1:5]
torch.set_num_threads(1)
rank, rows = int(os.environ["RANK"]), peftcls.read_rows(rows_file)
OTHER = 1
MAIN = 0
FAULT_AT = 3
LAST_STEP = 4


def build(fault, **settings):
    task = peftcls.Classification(max_length=64).learn(rows)
    shard = fault.endswith("in shares")
    model, tokenizer = peftcls.load_base(base, task, dtype=torch.float32, shard=shard)
    model = peftcls.attach_lora(model, task, rank=4)
    config = peftcls.TrainConfig(
        Path(out) / fault.replace(" ", "-"),
        epochs=1,
        batch_size=4,
        eval_every=2,
        head_init="random",
        **settings,
    )
    return peftcls.Trainer(model, task, tokenizer, config)


def replace(owner, name, function):
    """In one process only: a method of a frozen object."""
    object.__setattr__(owner, name, function)


def change_weights(trainer, process, value):
    if rank == process:
        with torch.no_grad():
            for name, parameter in trainer.parameters.items():
                if "classifier" in name:
                    parameter.fill_(value)


def not_finite_loss(fault):
    trainer = build(fault)
    plain = trainer.gradients.task.loss_sum

    def loss_sum(model, batch):
        is_due = torch.is_grad_enabled() and trainer.progress.step == FAULT_AT
        return plain(model, batch) * (float("nan") if is_due else 1)

    if rank == OTHER:
        replace(trainer.gradients.task, "loss_sum", loss_sum)
    trainer.fit(rows, rows)


def no_loss(fault):
    trainer = build(fault)
    plain = trainer.gradients.task.loss_sum

    def loss_sum(model, batch):
        if torch.is_grad_enabled() and trainer.progress.step == FAULT_AT:
            raise ZeroDivisionError("these rows weigh nothing")
        return plain(model, batch)

    if rank == OTHER:
        replace(trainer.gradients.task, "loss_sum", loss_sum)
    trainer.fit(rows, rows)


def no_answer(fault):
    trainer = build(fault)
    plain = trainer.task.decode

    def decode(*arguments):
        if trainer.progress.step == LAST_STEP:
            raise ValueError("these logits are no answer")
        return plain(*arguments)

    if rank == OTHER:
        replace(trainer.task, "decode", decode)
    trainer.fit(rows, rows)


def not_finite_metric(fault):
    asked = []

    def score(golds, predicted):
        asked.append(len(golds))
        # Tried out, asked after step 2, and then.
        return float("nan") if rank == OTHER and len(asked) == 3 else 0.5

    build(fault, metrics=[score]).fit(rows, rows)


def not_finite_weights(fault):
    trainer = build(fault)
    plain = trainer.predict_encoded

    def predict_encoded(inputs):
        answers = plain(inputs)
        if trainer.progress.step == LAST_STEP:
            change_weights(trainer, OTHER, float("nan"))
        return answers

    trainer.predict_encoded = predict_encoded
    trainer.fit(rows, rows)


def saved_not_finite(fault, process=MAIN):
    trainer = build(fault)
    change_weights(trainer, process, float("nan"))
    trainer.save(trainer.output_dir)


def saved_not_finite_in_shares(fault):
    saved_not_finite(fault, OTHER)


def loaded_otherwise(fault):
    trainer = build(fault)
    trainer.fit(rows)

    def load_changed(folder):
        model, task, tokenizer = load_adapter(folder)
        for name, parameter in model.named_parameters():
            if "classifier" in name:
                parameter.data = parameter.data + torch.randn(parameter.shape)
        return model, task, tokenizer

    save_check.load_adapter = load_changed
    try:
        trainer.save(trainer.output_dir)
    finally:
        save_check.load_adapter = load_adapter


def compared_otherwise_in_shares(fault):
    trainer = build(fault)
    trainer.fit(rows)
    change_weights(trainer, OTHER, 0.0)
    trainer.save(trainer.output_dir)


def damaged_share(fault):
    task = peftcls.Classification(max_length=64).learn(rows)
    peftcls.load_base(damaged_base, task, dtype=torch.float32, shard=True)


FAULTS = {
    "loss in shares": not_finite_loss,
    "no loss": no_loss,
    "no answer": no_answer,
    "metric": not_finite_metric,
    "weights in shares": not_finite_weights,
    "saved": saved_not_finite,
    "saved in shares": saved_not_finite_in_shares,
    "loaded": loaded_otherwise,
    "compared in shares": compared_otherwise_in_shares,
    "read in shares": damaged_share,
}
met = {}
for fault, run in FAULTS.items():
    try:
        run(fault)
    except Exception as error:
        met[fault] = [type(error).__name__, str(error)]
(Path(out) / f"met{rank}.json").write_text(json.dumps(met))

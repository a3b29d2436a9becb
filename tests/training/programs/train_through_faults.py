"""One of two processes: the other lacks memory, finds a nan, gets a signal, then ends or stalls.

A training that one process began is gone on with, too.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import peftcls
from peftcls.engine import lost_processes
from peftcls.errors import RunStoppedError

base, out, rows_file, end = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
rank, rows = int(os.environ["RANK"]), peftcls.read_rows(rows_file)


def build(name, **settings):
    task = peftcls.Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4).double()
    config = peftcls.TrainConfig(
        out / name,
        epochs=2,
        batch_size=6,
        eval_every=2,
        learning_rate=1e-2,
        head_init="random",
        **settings,
    )
    return peftcls.Trainer(model, task, tokenizer, config)


def change_loss(trainer, change):
    """In the second process alone."""
    task = trainer.gradients.task
    plain = task.loss_sum
    if rank == 1:
        object.__setattr__(
            task,
            "loss_sum",
            lambda model, batch: (
                change(plain(model, batch), batch)
                if torch.is_grad_enabled()
                else plain(model, batch)
            ),
        )


def at_step(trainer, step, act):
    """In the second process alone, while it computes its share of a step."""
    change_loss(
        trainer, lambda loss, batch: (act() if trainer.progress.step == step else None, loss)[1]
    )


def keep(trainer, name):
    if rank == 0:
        save_file(
            {name: p.detach() for name, p in trainer.parameters.items()},
            out / f"{name}.safetensors",
        )


def stall():
    (out / "stalled").write_text(str(time.monotonic()))
    os.kill(os.getpid(), signal.SIGSTOP)


if end == "dies":
    begun = build("begun")
    begun.fit(rows, rows, resume=True)
    keep(begun, "begun")

    skipping = build("skipping", max_skipped_steps=1)
    change_loss(
        skipping, lambda loss, batch: loss * (float("nan") if skipping.progress.step == 3 else 1)
    )
    skipping.fit(rows, rows)
    keep(skipping, "skipping")
    (out / f"skipped{rank}").write_text(str(skipping.progress.skipped_steps))

    def refuse(loss, batch):
        if batch["input_ids"].numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return loss

    short = build("short")
    change_loss(short, refuse)
    short.fit(rows, rows)
    keep(short, "short")
    (out / f"tokens{rank}").write_text(str(short.gradients.tokens))

    spoilt = build("spoilt")
    change_loss(
        spoilt, lambda loss, batch: loss * (float("nan") if spoilt.progress.step == 3 else 1)
    )
    try:
        spoilt.fit(rows, rows)
    except FloatingPointError as error:
        (out / f"spoilt{rank}").write_text(str(error))

    stopped = build("stopped")
    at_step(stopped, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        stopped.fit(rows, rows)
    except SystemExit as ended:
        (out / f"stopped{rank}").write_text(f"{ended.code} {stopped.progress.step}")
    again = build("stopped")
    again.fit(rows, rows, resume=True)
    keep(again, "stopped")

lost_processes.STALL_SECONDS, lost_processes.STALL_FACTOR = 2.0, 1.0
lost = build("lost")
if end == "stalls in an evaluation":
    predict_encoded = lost.predict_encoded

    def predict_or_stall(inputs):
        if rank == 1:
            stall()
        return predict_encoded(inputs)

    lost.predict_encoded = predict_or_stall
else:
    at_step(lost, 3, (lambda: os.kill(os.getpid(), signal.SIGKILL)) if end == "dies" else stall)
try:
    lost.fit(rows, rows)
except RunStoppedError as error:
    sys.exit(str(error))

"""Small trainings that several tests run, and what interrupts them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import peftcls

TEMPLATE = "Text: {input}\nAnswer: "


def build(
    base: str,
    out: Path,
    rows: list,
    *,
    dropout: float = 0.0,
    double: bool = False,
    instruction: bool = False,
    **config,
):
    if instruction:
        task = peftcls.Instruction(
            template=TEMPLATE,
            input="text",
            output="label",
            labels=("no", "yes"),
            max_length=64,
            max_new_tokens=16,
        )
    else:
        task = peftcls.Classification(max_length=64, pooling=None).learn(
            peftcls.data.reading.as_dataset(rows)
        )
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4, dropout=dropout)
    if double:
        model.double()
    settings = {"epochs": 2, "batch_size": 6, "learning_rate": 1e-2, **config}
    return peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig(out, **settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


class Killed(Exception):
    """Stands for a process that ends."""


def interrupt(trainer, rows, monkeypatch, at=3, valid=None):
    step = trainer._step
    monkeypatch.setattr(
        trainer,
        "_step",
        lambda t, i, n, s: step(t, i, n, s) if n < at else (_ for _ in ()).throw(Killed()),
    )
    with pytest.raises(Killed):
        trainer.fit(rows, valid)

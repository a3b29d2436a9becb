"""Small trainings that several tests run, and what interrupts them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import peftcls
from peftcls.data.reading import as_dataset

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
    """A trainer of a small LoRA adapter for rows with the columns `text` and `label`.

    Its head starts at random unless told otherwise: a probe of rows so easy would be the best step.
    """
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
        task = peftcls.Classification(max_length=64, pooling=None).learn(as_dataset(rows))
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=4, dropout=dropout)
    if double:
        model.double()
    settings = {"epochs": 2, "batch_size": 6, "learning_rate": 1e-2, "head_init": "random"}
    settings |= config
    return peftcls.Trainer(model, task, tokenizer, peftcls.TrainConfig(out, **settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder, by name."""
    return load_file(folder / "adapter_model.safetensors")


class Killed(Exception):
    """Stands for a process that ends."""


def interrupt(trainer, rows, monkeypatch, at=3, valid=None):
    """Fit until a step, and end there as a killed process does."""
    step = trainer._step

    def step_until_killed(table, indices, number, steps):
        if number >= at:
            raise Killed
        return step(table, indices, number, steps)

    monkeypatch.setattr(trainer, "_step", step_until_killed)
    with pytest.raises(Killed):
        trainer.fit(rows, valid)

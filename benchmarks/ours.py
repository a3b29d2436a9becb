"""peftcls in an experiment: the adapter that all begin with, one timed run, one step for a gate."""

import tempfile
import time
from typing import Any

import torch
from clock import Clock
from experiment import Job
from material import (
    LABELS,
    TEXTS,
    Rows,
    base_folder,
    begin_with,
    gate_rows,
    instruction_text,
    lora,
    read_file,
    training_rows,
)
from safetensors.torch import save_file
from switches import leave_out

import peftcls
from peftcls.models.state import base_facts

MOVED = 0.02  # the deviation of what stands in a gate for the zeros of a new adapter
FAR = 1e9  # a gradient's length at which none is cut


def _build(job: Job, dtype: torch.dtype | None) -> tuple[Any, Any, Any]:
    """Task, model and tokenizer, with a new adapter."""
    e, base = job.experiment, base_folder(job.experiment.base, job.cache)
    task: Any
    if e.kind == "heads":
        task = peftcls.Classification(
            text="text", label="label", labels=LABELS, max_length=e.max_length
        )
    else:
        template = f"{instruction_text(e)}\n\n{{input}}\n\nAnswer: "
        task = peftcls.Instruction(
            template=template, input="text", output="label", labels=LABELS, max_length=1024
        )
    model, tokenizer = peftcls.load_base(base, task, seed=job.seed, dtype=dtype)
    if e.trained == "head":
        return task, peftcls.train_only(model, task, "head"), tokenizer
    own = lora(base)
    adapted = peftcls.attach_lora(
        model,
        task,
        rank=own["r"],
        alpha=own["lora_alpha"],
        targets=own["target_modules"],
        seed=job.seed,
        layers=[-2, -1] if e.trained == "top2" else None,
    )
    return task, adapted, tokenizer


def make_adapter(job: Job) -> dict[str, Any]:
    """Write the tensors that all systems begin with, and those for a gate, in which no gradient is zero."""
    _, model, _ = _build(job, torch.float32)
    torch.manual_seed(job.seed)
    tensors = {
        name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad
    }
    if job.what == "gate":
        tensors = {
            name: torch.randn_like(p) * MOVED if ".lora_B." in name else p
            for name, p in tensors.items()
        }
    save_file(tensors, job.adapter)
    return {"tensors": len(tensors)}


def run(job: Job) -> dict[str, Any]:
    """A training, answers, or both, with their times."""
    e = job.experiment
    rows = training_rows(e, job.data)
    leave_out(job.without)
    task, model, tokenizer = _build(job, getattr(torch, e.dtype) if e.dtype else None)
    begin_with(model, job.adapter)
    found: dict[str, Any] = {"dtype": base_facts(model).dtype}
    clock = Clock()
    if e.epochs:
        config = peftcls.TrainConfig(
            tempfile.mkdtemp(),
            epochs=e.epochs,
            batch_size=e.batch_size,
            learning_rate=e.rate,
            warmup=0.0,
            weight_decay=0.0,
            eval_every=e.eval_every if e.target else None,
            log_every=1,
            seed=job.seed,
        )
        trainer = peftcls.Trainer(model, task, tokenizer, config)
        _time_steps(trainer, clock)
        if e.target:
            _time_evaluations(trainer, clock, e.target)
        trainer.fit(rows, read_file(job.data, e.texts, "validation") if e.target else None)
        found |= {
            **clock.measures(e),
            "losses": [entry["loss"] for entry in trainer.progress.history if "loss" in entry],
        }
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # where a trainer has not done so
    predictor = peftcls.Predictor(model, task, tokenizer)
    if e.predict:
        asked = _without_label(rows)
        predictor.predict(asked[: e.batch_size])  # kernels are built
        started = time.perf_counter()
        answers = predictor.predict(asked)
        found["predict_rows_per_second"] = len(rows) / (time.perf_counter() - started)
        if not e.epochs:
            found["answers"] = [answer.label for answer in answers]
    if e.score:
        held = read_file(job.data, e.texts, TEXTS[e.texts][-1])
        scores = task.score(predictor.predict(_without_label(held)), held)
        found["scores"] = {name: scores[name] for name in ("accuracy", "f1_macro")}
    return found


def _without_label(rows: Rows) -> Rows:
    return [{"text": row["text"]} for row in rows]


def _time_steps(trainer: peftcls.Trainer, clock: Clock) -> None:
    take = trainer._step

    def timed(table: Any, indices: list[int], *more: Any) -> float:
        if not clock.ends:
            clock.step_begins()
        loss = take(table, indices, *more)
        clock.tokens.append(int(table.lengths[indices].sum()))
        clock.step_ends()
        return loss

    trainer._step = timed  # type: ignore[method-assign]


def _time_evaluations(trainer: peftcls.Trainer, clock: Clock, target: float) -> None:
    judge = trainer.evaluate

    def timed(rows: Any) -> dict[str, float]:
        scores = judge(rows)
        clock.judged(scores["accuracy"], target)
        return scores

    trainer.evaluate = timed  # type: ignore[method-assign]


def gate(job: Job) -> dict[str, Any]:
    """The loss of one step; its gradient is left in a file."""
    e = job.experiment
    rows = gate_rows(e, job.data)
    if not job.adapter.is_file():
        make_adapter(job)
    task, model, tokenizer = _build(job, torch.bfloat16 if job.bf16 else torch.float32)
    begin_with(model, job.adapter)
    config = peftcls.TrainConfig(
        tempfile.mkdtemp(), epochs=1, batch_size=len(rows), max_grad_norm=FAR, log_every=1
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    step = trainer.optimizer.step

    def kept(*arguments: Any, **more: Any) -> Any:
        save_file(
            {
                name: p.grad.float().contiguous()
                for name, p in trainer.parameters.items()
                if p.grad is not None
            },
            job.gradient,
        )
        return step(*arguments, **more)

    trainer.optimizer.step = kept  # type: ignore[method-assign]
    trainer.fit(rows)
    return {"loss": trainer.progress.history[0]["loss"]}

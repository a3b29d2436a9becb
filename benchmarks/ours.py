"""peftcls in an experiment: the initial adapter of all systems, a timed run, a step for a gate."""

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
from switches import base_dtype, leave_out

import peftcls
from peftcls.engine.model_state import base_facts

# The deviation of the values that replace a new adapter's zeros in a gate.
MOVED = 0.02
# A gradient's norm that no clipping reaches.
NO_CLIPPING = 1e9


def _build(job: Job, dtype: torch.dtype | None) -> tuple[Any, Any, Any]:
    """Task, model and tokenizer, with a new adapter."""
    e = job.experiment
    base = base_folder(e.base, job.cache)
    task = _task(job)
    model, tokenizer = peftcls.load_base(base, task, seed=job.seed, dtype=dtype)
    if e.trained == "head":
        return task, peftcls.train_only(model, task, "head"), tokenizer
    settings = lora(base)
    adapted = peftcls.attach_lora(
        model,
        task,
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        targets=settings["target_modules"],
        seed=job.seed,
        layers=[-2, -1] if e.trained == "top2" else None,
    )
    return task, adapted, tokenizer


def _task(job: Job) -> Any:
    e = job.experiment
    if e.kind == "heads":
        return peftcls.Classification(
            text="text", label="label", labels=LABELS, max_length=e.max_length
        )
    template = f"{instruction_text(e)}\n\n{{input}}\n\nAnswer: "
    return peftcls.Instruction(
        template=template, input="text", output="label", labels=LABELS, max_length=1024
    )


def make_adapter(job: Job) -> dict[str, Any]:
    """Write the initial tensors of all systems; for a gate with values in place of zeros.

    Where LoRA's B is zero, the gradient of A is zero, which a gate could not compare.
    """
    _, model, _ = _build(job, torch.float32)
    torch.manual_seed(job.seed)
    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensor = parameter.detach().contiguous()
        if job.what == "gate" and ".lora_B." in name:
            tensor = torch.randn_like(tensor) * MOVED
        tensors[name] = tensor
    save_file(tensors, job.adapter)
    return {"tensors": len(tensors)}


def run(job: Job) -> dict[str, Any]:
    """A training, answers, or both, with their times."""
    e = job.experiment
    rows = training_rows(e, job.data)
    leave_out(job.without)
    task, model, tokenizer = _build(job, base_dtype(job.without, e.dtype))
    begin_with(model, job.adapter)
    found: dict[str, Any] = {"dtype": base_facts(model).dtype}
    clock = Clock()
    if e.epochs:
        found |= _train(job, clock, rows, task, model, tokenizer)
    # Where no trainer has moved it.
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    predictor = peftcls.Predictor(model, task, tokenizer)
    if e.predict:
        found |= _time_answers(job, predictor, rows)
    if e.score:
        held_out = read_file(job.data, e.texts, TEXTS[e.texts][-1])
        scores = task.score(predictor.predict(_without_label(held_out)), held_out)
        found["scores"] = {name: scores[name] for name in ("accuracy", "f1_macro")}
    return found


def _train(
    job: Job, clock: Clock, rows: Rows, task: Any, model: Any, tokenizer: Any
) -> dict[str, Any]:
    e = job.experiment
    config = peftcls.TrainConfig(
        tempfile.mkdtemp(),
        # The other programs have no probe to start from.
        head_init="random",
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
    valid = None
    if e.target:
        _time_evaluations(trainer, clock, e.target)
        valid = read_file(job.data, e.texts, "validation")
    trainer.fit(rows, valid)
    losses = [entry["loss"] for entry in trainer.progress.history if "loss" in entry]
    return {**clock.measures(e), "losses": losses}


def _time_answers(job: Job, predictor: peftcls.Predictor, rows: Rows) -> dict[str, Any]:
    unlabelled = _without_label(rows)
    # The first call builds kernels.
    predictor.predict(unlabelled[: job.experiment.batch_size])
    started = time.perf_counter()
    answers = predictor.predict(unlabelled)
    found: dict[str, Any] = {"predict_rows_per_second": len(rows) / (time.perf_counter() - started)}
    if not job.experiment.epochs:
        found["answers"] = [answer.label for answer in answers]
    return found


def _without_label(rows: Rows) -> Rows:
    return [{"text": row["text"]} for row in rows]


def _time_steps(trainer: peftcls.Trainer, clock: Clock) -> None:
    step = trainer._step

    def timed(table: Any, indices: list[int], *more: Any) -> float:
        if not clock.ends:
            clock.step_begins()
        loss = step(table, indices, *more)
        clock.tokens.append(int(table.lengths[indices].sum()))
        clock.step_ends()
        return loss

    trainer._step = timed  # type: ignore[method-assign]


def _time_evaluations(trainer: peftcls.Trainer, clock: Clock, target: float) -> None:
    evaluate = trainer._evaluate

    def timed(*arguments: Any, **settings: Any) -> dict[str, float]:
        scores = evaluate(*arguments, **settings)
        clock.judged(scores["accuracy"], target)
        return scores

    trainer._evaluate = timed  # type: ignore[method-assign]


def gate(job: Job) -> dict[str, Any]:
    """The loss of one step; its gradient is written to a file."""
    rows = gate_rows(job.experiment, job.data)
    if not job.adapter.is_file():
        make_adapter(job)
    task, model, tokenizer = _build(job, torch.bfloat16 if job.bf16 else torch.float32)
    begin_with(model, job.adapter)
    config = peftcls.TrainConfig(
        tempfile.mkdtemp(),
        head_init="random",
        epochs=1,
        batch_size=len(rows),
        max_grad_norm=NO_CLIPPING,
        log_every=1,
    )
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    _keep_gradient(trainer, job)
    trainer.fit(rows)
    return {"loss": trainer.progress.history[0]["loss"]}


def _keep_gradient(trainer: peftcls.Trainer, job: Job) -> None:
    """Write the gradient to the job's file before the optimizer's step."""
    step = trainer.optimizer.step

    def keep_and_step(*arguments: Any, **more: Any) -> Any:
        gradient = {}
        for name, parameter in trainer.parameters.items():
            if parameter.grad is not None:
                gradient[name] = parameter.grad.float().contiguous()
        save_file(gradient, job.gradient)
        return step(*arguments, **more)

    trainer.optimizer.step = keep_and_step  # type: ignore[method-assign]

"""Other systems in an experiment: transformers' Trainer with PEFT, TRL's SFTTrainer, and generate.

They begin with the same weights as peftcls, take the same steps on the same rows in the same order,
and leave an adapter folder as it does. Only where rows of similar length are grouped, or packed, do
they choose their own batches.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
from clock import Clock
from experiment import Experiment, Job
from material import (
    LABELS,
    TEXTS,
    Rows,
    base_folder,
    begin_with,
    gate_rows,
    in_step_order,
    instruction_text,
    lora,
    read_file,
    training_rows,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

OWN_BATCHES = "group_by_length"
# What each sets differently from its library. bf16 and gradient checkpointing are defaults of TRL.
SETTINGS: dict[str, dict[str, Any]] = {
    "trainer": {},
    "trainer_best": {"train_sampling_strategy": OWN_BATCHES},
    "pad_to_max": {},
    "trl": {},
    # Faster where a processor has no instructions for bfloat16.
    "trl_float32": {"bf16": False},
    "trl_best": {"activation_checkpointing": False, "train_sampling_strategy": OWN_BATCHES},
    "trl_packing": {"activation_checkpointing": False, "packing": True},
    # On a GPU only.
    "trl_liger": {
        "activation_checkpointing": False,
        "train_sampling_strategy": OWN_BATCHES,
        "use_liger_kernel": True,
    },
    "generate": {},
    "generate_best": {},
}
# In bfloat16 where the machine is faster in it.
AT_ITS_BEST = ("trainer_best", "trl_best", "trl_packing", "trl_liger", "generate_best")
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}
# Beyond the tokens of the longest prompt, for its answer.
ANSWER_TOKENS = 8
# A gradient's norm that no clipping reaches.
NO_CLIPPING = 1e9


class Steps(TrainerCallback):
    """Tells a clock when each optimizer step of transformers' trainers ended."""

    def __init__(self, clock: Clock, target: float | None) -> None:
        self.clock = clock
        self.target = target

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self.clock.step_begins()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended and the next begins."""
        self.clock.step_ends()

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        """An evaluation has ended."""
        if self.target is not None:
            self.clock.judged(metrics["eval_accuracy"], self.target)


class KeptGradient(TrainerCallback):
    """Writes the gradient of a gate's only step to a file."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        """The gradient is complete."""
        gradient = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient[name] = parameter.grad.float().contiguous()
        save_file(gradient, self.job.gradient)


def make_adapter(job: Job) -> dict[str, Any]:
    """Never called for a contender: all begin with the tensors that peftcls made."""
    raise ValueError(f"{job.system} was asked for {job.adapter.name}, which peftcls makes.")


def run(job: Job) -> dict[str, Any]:
    """A training, answers, or both, with their times."""
    e = job.experiment
    rows = training_rows(e, job.data)
    if job.system in ("generate", "generate_best"):
        return _generate(job, rows)
    model, tokenizer = _model(job, {})
    clock = Clock()
    settings = _settings(job)
    is_sequential = settings["train_sampling_strategy"] != OWN_BATCHES
    if is_sequential and e.epochs:
        # All epochs as one, in the order of peftcls's steps.
        rows = in_step_order(rows, e, job.seed)
        settings["num_train_epochs"] = 1
    trainer = _trainer(job, model, tokenizer, rows, settings, Steps(clock, e.target))
    found: dict[str, Any] = {"dtype": "bfloat16" if trainer.args.bf16 else "float32"}
    if e.epochs:
        _count_tokens(trainer, clock)
        trainer.train()
        trainer.save_model()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found |= {**clock.measures(e), "losses": losses}
    if e.predict:
        # The first call builds kernels.
        trainer.predict(_table(job, tokenizer, rows[: e.batch_size]))
        # From texts to answers, as for peftcls.
        started = time.perf_counter()
        labels = trainer.predict(_table(job, tokenizer, rows)).predictions.argmax(1)
        found["predict_rows_per_second"] = len(rows) / (time.perf_counter() - started)
        # Where rows are grouped by length, answers come in another order.
        if not e.epochs and is_sequential:
            found["answers"] = [LABELS[label] for label in labels]
    if e.score:
        found["scores"] = _scores(job, trainer, tokenizer)
    return found


def _settings(job: Job) -> dict[str, Any]:
    """The arguments of a contender's trainer."""
    e = job.experiment
    settings = {
        "num_train_epochs": max(1, e.epochs),
        "per_device_train_batch_size": e.batch_size,
        "learning_rate": e.rate,
        "train_sampling_strategy": "sequential",
        **SETTINGS[job.system],
    }
    if job.system in AT_ITS_BEST:
        settings |= {"per_device_eval_batch_size": e.batch_size, "bf16": job.bf16}
    if e.target:
        settings |= {"eval_strategy": "steps", "eval_steps": e.eval_every}
    return settings


def _scores(job: Job, trainer: Any, tokenizer: Any) -> dict[str, float]:
    e = job.experiment
    held_out = read_file(job.data, e.texts, TEXTS[e.texts][-1])
    output = trainer.predict(_table(job, tokenizer, held_out))
    labels = output.predictions.argmax(1)
    return {
        "accuracy": accuracy_score(output.label_ids, labels),
        "f1_macro": f1_score(output.label_ids, labels, average="macro"),
    }


def gate(job: Job) -> dict[str, Any]:
    """The loss of one step; its gradient is written to a file."""
    rows = gate_rows(job.experiment, job.data)
    model, tokenizer = _model(job, NO_DROPOUT if job.experiment.kind == "heads" else {})
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": len(rows),
        "max_grad_norm": NO_CLIPPING,
        "bf16": job.bf16,
        "train_sampling_strategy": "sequential",
    }
    trainer = _trainer(job, model, tokenizer, rows, settings, KeptGradient(job))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"loss": losses[0]}


def _model(job: Job, config: dict[str, Any]) -> tuple[Any, Any]:
    """A PEFT model with the shared initial values, and its tokenizer."""
    base = base_folder(job.experiment.base, job.cache)
    is_best_run = job.what == "run" and job.bf16 and job.system in AT_ITS_BEST
    in_bfloat16 = is_best_run and job.experiment.kind == "instructions"
    dtype = torch.bfloat16 if in_bfloat16 else torch.float32
    torch.manual_seed(job.seed)
    if job.experiment.kind == "heads":
        base_model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=len(LABELS), dtype=dtype, **config
        )
        model = get_peft_model(base_model, LoraConfig(task_type="SEQ_CLS", **lora(base)))
    else:
        base_model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        model = get_peft_model(base_model, LoraConfig(task_type="CAUSAL_LM", **lora(base)))
    begin_with(model, job.adapter)
    return model, AutoTokenizer.from_pretrained(base)


def _trainer(
    job: Job,
    model: Any,
    tokenizer: Any,
    rows: Rows,
    settings: dict[str, Any],
    callback: TrainerCallback,
) -> Any:
    """transformers' Trainer for heads, TRL's SFTTrainer for instructions."""
    e = job.experiment
    arguments = {
        "output_dir": tempfile.mkdtemp(),
        "seed": job.seed,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **settings,
    }
    if e.kind == "instructions":
        return _sft_trainer(e, model, tokenizer, rows, arguments, callback)
    valid = None
    if e.target:
        valid = _table(job, tokenizer, read_file(job.data, e.texts, "validation"))
    return Trainer(
        model,
        TrainingArguments(**arguments),
        train_dataset=_table(job, tokenizer, rows),
        eval_dataset=valid,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[callback],
        compute_metrics=_accuracy,
    )


def _accuracy(output: Any) -> dict[str, float]:
    return {"accuracy": accuracy_score(output.label_ids, output.predictions.argmax(1))}


def _sft_trainer(
    e: Experiment,
    model: Any,
    tokenizer: Any,
    rows: Rows,
    arguments: dict[str, Any],
    callback: TrainerCallback,
) -> Any:
    from trl import SFTConfig, SFTTrainer

    prompts = _prompts(e, rows)
    table = [
        {"prompt": prompt, "completion": f" {row['label']}"}
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    if arguments.get("packing"):
        # A step then packs about as many rows as the steps of the others have.
        tokens = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        step_tokens = round(e.batch_size * sum(tokens) / len(tokens))
        arguments["per_device_train_batch_size"] = 1
        arguments["max_length"] = max(max(tokens) + ANSWER_TOKENS, step_tokens)
    return SFTTrainer(
        model,
        SFTConfig(**arguments),
        train_dataset=datasets.Dataset.from_list(table),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def _table(job: Job, tokenizer: Any, rows: Rows) -> datasets.Dataset:
    """Tokenized texts with the numbers of their labels."""

    def encode(batch: dict[str, list]) -> dict[str, Any]:
        encoded = tokenizer(
            batch["text"],
            truncation=True,
            max_length=job.experiment.max_length,
            padding="max_length" if job.system == "pad_to_max" else False,
        )
        return {**encoded, "labels": [LABELS.index(label) for label in batch["label"]]}

    table = datasets.Dataset.from_list(rows)
    return table.map(encode, batched=True, remove_columns=["text", "label"])


def _prompts(e: Experiment, rows: Rows) -> list[str]:
    return [f"{instruction_text(e)}\n\n{row['text']}\n\nAnswer:" for row in rows]


def _count_tokens(trainer: Any, clock: Clock) -> None:
    """Count the tokens of every training batch without padding, in the order of the batches."""
    make_loader = trainer.get_train_dataloader

    def counting(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        def count_and_collate(features: list[Any]) -> Any:
            clock.tokens.append(sum(map(_real_tokens, features)))
            return collate(features)

        return count_and_collate

    def make_counting_loader() -> Any:
        collate = trainer.data_collator
        trainer.data_collator = counting(collate)
        try:
            return make_loader()
        finally:
            trainer.data_collator = collate

    trainer.get_train_dataloader = make_counting_loader


def _real_tokens(feature: dict[str, Any]) -> int:
    if "attention_mask" in feature:
        return sum(feature["attention_mask"])
    return len(feature["input_ids"])


@torch.inference_mode()
def _generate(job: Job, rows: Rows) -> dict[str, Any]:
    """Generate the tokens of a label, as is usual for a closed set of labels.

    At its best the base is in the faster dtype of the machine, and rows are sorted by length.
    """
    e = job.experiment
    is_sorted = job.system in AT_ITS_BEST
    model, tokenizer = _model(job, {})
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer.padding_side = "left"
    model.eval()
    label_tokens = [len(tokenizer(f" {label}")["input_ids"]) for label in LABELS]
    # One more, for the end of the text.
    max_new_tokens = max(label_tokens) + 1

    def answer(texts: list[str]) -> list[str]:
        order = list(range(len(texts)))
        if is_sorted:
            order.sort(key=lambda i: len(texts[i]))
        answers = {}
        for first in range(0, len(texts), e.batch_size):
            indices = order[first : first + e.batch_size]
            batch_texts = [texts[i] for i in indices]
            batch = tokenizer(batch_texts, return_tensors="pt", padding=True).to(model.device)
            ids = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            new_ids = ids[:, batch["input_ids"].shape[1] :]
            decoded = tokenizer.batch_decode(new_ids, skip_special_tokens=True)
            answers.update(zip(indices, decoded, strict=True))
        return [answers[i] for i in range(len(texts))]

    prompts = _prompts(e, rows)
    # The first call builds kernels.
    answer(prompts[: e.batch_size])
    started = time.perf_counter()
    answer(prompts)
    return {
        "predict_rows_per_second": len(rows) / (time.perf_counter() - started),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

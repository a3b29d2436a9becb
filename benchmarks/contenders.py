"""What people use today in an experiment: transformers' Trainer with PEFT, TRL's SFTTrainer, and generate.

They begin with the same weights as peftcls, take its steps of its rows in its order, and leave an adapter folder as it does. Only where
rows of similar length are put together, or packed, do they choose their own batches.
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
SETTINGS: dict[str, dict[str, Any]] = {  # what each sets otherwise than its library does
    "trainer": {},
    "trainer_best": {"train_sampling_strategy": OWN_BATCHES},
    "pad_to_max": {},
    "trl": {},  # bf16 and gradient checkpointing are TRL's defaults
    "trl_float32": {"bf16": False},  # faster where a processor has no instructions for bfloat16
    "trl_best": {"activation_checkpointing": False, "train_sampling_strategy": OWN_BATCHES},
    "trl_packing": {"activation_checkpointing": False, "packing": True},
    "trl_liger": {
        "activation_checkpointing": False,
        "train_sampling_strategy": OWN_BATCHES,
        "use_liger_kernel": True,
    },  # on a GPU alone
    "generate": {},
    "generate_best": {},
}
AT_ITS_BEST = (
    "trainer_best",
    "trl_best",
    "trl_packing",
    "trl_liger",
    "generate_best",
)  # in bfloat16 where the machine is faster in it
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}


class Steps(TrainerCallback):
    """Tells a clock when each optimizer step of transformers' trainers ended."""

    def __init__(self, clock: Clock, target: float | None) -> None:
        self.clock, self.target = clock, target

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
    """Leaves the gradient of a gate's only step in a file."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        """The gradient is there."""
        save_file(
            {
                name: p.grad.float().contiguous()
                for name, p in model.named_parameters()
                if p.grad is not None
            },
            self.job.gradient,
        )


def make_adapter(job: Job) -> dict[str, Any]:
    """Never asked of a contender: all begin with the tensors that peftcls made."""
    raise ValueError(f"{job.system} was asked for {job.adapter.name}, which peftcls makes.")


def run(job: Job) -> dict[str, Any]:
    """A training, answers, or both, with their times."""
    e = job.experiment
    rows = training_rows(e, job.data)
    if job.system in ("generate", "generate_best"):
        return _generate(job, rows)
    model, tokenizer = _model(job, {})
    clock = Clock()
    settings = {
        "num_train_epochs": max(1, e.epochs),
        "per_device_train_batch_size": e.batch_size,
        "learning_rate": e.rate,
        "train_sampling_strategy": "sequential",
        **SETTINGS[job.system],
    }
    if settings["train_sampling_strategy"] != OWN_BATCHES and e.epochs:
        rows, settings["num_train_epochs"] = in_step_order(rows, e, job.seed), 1
    if job.system in AT_ITS_BEST:
        settings |= {"per_device_eval_batch_size": e.batch_size, "bf16": job.bf16}
    if e.target:
        settings |= {"eval_strategy": "steps", "eval_steps": e.eval_every}
    trainer = _trainer(job, model, tokenizer, rows, settings, Steps(clock, e.target))
    found: dict[str, Any] = {"dtype": "bfloat16" if trainer.args.bf16 else "float32"}
    if e.epochs:
        _count_tokens(trainer, clock)
        trainer.train()
        trainer.save_model()
        found |= {
            **clock.measures(e),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        }
    if e.predict:
        trainer.predict(_table(job, tokenizer, rows[: e.batch_size]))  # kernels are built
        started = time.perf_counter()
        answers = trainer.predict(_table(job, tokenizer, rows)).predictions.argmax(
            1
        )  # from texts, as peftcls
        found["predict_rows_per_second"] = len(rows) / (time.perf_counter() - started)
        if (
            not e.epochs and settings["train_sampling_strategy"] != OWN_BATCHES
        ):  # whose answers come in an order of its own
            found["answers"] = [LABELS[a] for a in answers]
    if e.score:
        judged = trainer.predict(
            _table(job, tokenizer, read_file(job.data, e.texts, TEXTS[e.texts][-1]))
        )
        answers = judged.predictions.argmax(1)
        found["scores"] = {
            "accuracy": accuracy_score(judged.label_ids, answers),
            "f1_macro": f1_score(judged.label_ids, answers, average="macro"),
        }
    return found


def gate(job: Job) -> dict[str, Any]:
    """The loss of one step; its gradient is left in a file."""
    rows = gate_rows(job.experiment, job.data)
    model, tokenizer = _model(job, NO_DROPOUT if job.experiment.kind == "heads" else {})
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": len(rows),
        "max_grad_norm": 1e9,
        "bf16": job.bf16,
        "train_sampling_strategy": "sequential",
    }
    trainer = _trainer(job, model, tokenizer, rows, settings, KeptGradient(job))
    trainer.train()
    return {"loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)}


def _model(job: Job, config: dict[str, Any]) -> tuple[Any, Any]:
    """A PEFT model with the shared first values, and its tokenizer."""
    base = base_folder(job.experiment.base, job.cache)
    narrow = (
        job.what == "run"
        and job.bf16
        and job.system in AT_ITS_BEST
        and job.experiment.kind == "instructions"
    )
    dtype = torch.bfloat16 if narrow else torch.float32
    torch.manual_seed(job.seed)
    if job.experiment.kind == "heads":
        model = get_peft_model(
            AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=len(LABELS), dtype=dtype, **config
            ),
            LoraConfig(task_type="SEQ_CLS", **lora(base)),
        )
    else:
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=dtype),
            LoraConfig(task_type="CAUSAL_LM", **lora(base)),
        )
    begin_with(model, job.adapter)
    return model, AutoTokenizer.from_pretrained(base)


def _trainer(
    job: Job,
    model: Any,
    tokenizer: Any,
    rows: Rows,
    settings: dict[str, Any],
    watcher: TrainerCallback,
) -> Any:
    e = job.experiment
    common = {
        "output_dir": tempfile.mkdtemp(),
        "seed": job.seed,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **settings,
    }
    if e.kind == "heads":
        valid = (
            _table(job, tokenizer, read_file(job.data, e.texts, "validation")) if e.target else None
        )
        return Trainer(
            model,
            TrainingArguments(**common),
            train_dataset=_table(job, tokenizer, rows),
            eval_dataset=valid,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[watcher],
            compute_metrics=lambda p: {
                "accuracy": accuracy_score(p.label_ids, p.predictions.argmax(1))
            },
        )
    from trl import SFTConfig, SFTTrainer

    table = [
        {"prompt": prompt, "completion": f" {row['label']}"}
        for prompt, row in zip(_prompts(e, rows), rows, strict=True)
    ]
    if settings.get("packing"):  # a step then packs about as many rows as the others' steps have
        tokens = [len(ids) for ids in tokenizer([row["prompt"] for row in table])["input_ids"]]
        common |= {
            "per_device_train_batch_size": 1,
            "max_length": max(max(tokens) + 8, round(e.batch_size * sum(tokens) / len(tokens))),
        }
    return SFTTrainer(
        model,
        SFTConfig(**common),
        train_dataset=datasets.Dataset.from_list(table),
        processing_class=tokenizer,
        callbacks=[watcher],
    )


def _table(job: Job, tokenizer: Any, rows: Rows) -> datasets.Dataset:
    def encode(batch: dict[str, list]) -> dict[str, Any]:
        found = tokenizer(
            batch["text"],
            truncation=True,
            max_length=job.experiment.max_length,
            padding="max_length" if job.system == "pad_to_max" else False,
        )
        return {**found, "labels": [LABELS.index(label) for label in batch["label"]]}

    return datasets.Dataset.from_list(rows).map(
        encode, batched=True, remove_columns=["text", "label"]
    )


def _prompts(e: Experiment, rows: Rows) -> list[str]:
    return [f"{instruction_text(e)}\n\n{row['text']}\n\nAnswer:" for row in rows]


def _count_tokens(trainer: Any, clock: Clock) -> None:
    """Keep the real tokens of every training batch, in the order in which they are drawn."""
    load = trainer.get_train_dataloader

    def counting(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        def counted(features: list[Any]) -> Any:
            clock.tokens.append(
                sum(
                    sum(f["attention_mask"]) if "attention_mask" in f else len(f["input_ids"])
                    for f in features
                )
            )
            return collate(features)

        return counted

    def loader() -> Any:
        plain = trainer.data_collator
        trainer.data_collator = counting(plain)
        try:
            return load()
        finally:
            trainer.data_collator = plain

    trainer.get_train_dataloader = loader


@torch.inference_mode()
def _generate(job: Job, rows: Rows) -> dict[str, Any]:
    """What is usually done for a closed set of labels: generate the tokens of a label and read them.

    At its best the base is in what the machine is faster in, and rows of similar length are put together.
    """
    e, best = job.experiment, job.system in AT_ITS_BEST
    model, tokenizer = _model(job, {})
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer.padding_side = "left"
    model.eval()
    prompts = _prompts(e, rows)
    most = (
        max(len(tokenizer(f" {label}")["input_ids"]) for label in LABELS) + 1
    )  # and the end of the text

    def answer(texts: list[str]) -> list[str]:
        found = {}
        order = (
            sorted(range(len(texts)), key=lambda i: len(texts[i])) if best else range(len(texts))
        )
        for first in range(0, len(texts), e.batch_size):
            chosen = order[first : first + e.batch_size]
            batch = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True).to(
                model.device
            )
            ids = model.generate(
                **batch, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
            found |= zip(
                chosen,
                tokenizer.batch_decode(
                    ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
                ),
                strict=True,
            )
        return [found[i] for i in range(len(texts))]

    answer(prompts[: e.batch_size])  # kernels are built
    started = time.perf_counter()
    answer(prompts)
    return {
        "predict_rows_per_second": len(rows) / (time.perf_counter() - started),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

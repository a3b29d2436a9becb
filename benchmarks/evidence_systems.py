"""The systems of `evidence.py`: each is given the same rows, and answers the same test rows.

peftcls has its defaults. The others have the same base, adapter, batches, epochs and schedule, and
three learning rates. All keep the step that is best on the validation rows, if there are any.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import evidence_instructions
import evidence_spans
import numpy as np
import torch
from evidence_data import Rows, Work
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, PreTrainedConfig

import peftcls
from peftcls.baselines import baselines
from peftcls.data.reading import as_dataset
from peftcls.models.named_bases import find_named_base
from peftcls.training.defaults import defaults_for
from peftcls.training.judgement import PROBE, answers_at_start

Answers = list[Any]
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
WARMUP = 0.06
WEIGHT_DECAY = 0.01
# The top layers of SmolLM2 that get adapters, in all systems, so that a run ends in minutes.
TOP_LAYERS = 4


def base_folder(base: str) -> str:
    """The folder of a base with a short name."""
    return find_named_base(base)


# peftcls, and what needs no training


def with_peftcls(
    work: Work, base: str, rows: tuple[Rows, Rows, Rows], seed: int, rate: float | None
) -> dict[str, Answers]:
    """The answers of peftcls with its default settings, and of the probe that it began with."""
    train, valid, test = rows
    task: Any = work.task().learn(train)
    model, tokenizer = peftcls.load_base(base_folder(base), task, seed=seed)
    model = peftcls.attach_lora(model, task, layers=adapted_layers(model.config, base), seed=seed)
    config = peftcls.TrainConfig.for_task(
        tempfile.mkdtemp(), task, rows=len(train), seed=seed, learning_rate=rate, epochs=work.epochs
    )
    table = as_dataset(test)
    with peftcls.Trainer(model, task, tokenizer, config) as trainer:
        trainer.fit(train, valid or None)
        answers = {"peftcls": trainer.predict(table)}
        probe = answers_at_start(trainer, table)
    if probe is not None:
        answers[PROBE] = probe
    return {name: [plain(work, answer) for answer in found] for name, found in answers.items()}


def with_baselines(
    work: Work, base: str, rows: tuple[Rows, Rows, Rows], seed: int, rate: float | None
) -> dict[str, Answers]:
    """The answers of what needs no transformer."""
    train, _, test = rows
    task: Any = work.task().learn(train)
    found = baselines(task, as_dataset(train), as_dataset(test))
    return {name: [plain(work, answer) for answer in answers] for name, answers in found.items()}


def plain(work: Work, answer: peftcls.Answer) -> Any:
    """An answer as what the test rows hold."""
    match work.kind:
        case "numbers":
            return answer.value
        case "spans":
            return answer.text or ""
        case "keywords":
            return list(answer.labels or ())
        case _:
            return answer.label


def adapted_layers(config: PreTrainedConfig, base: str) -> tuple[int, ...] | None:
    """The layers that get adapters; None for all."""
    if base != "smollm2":
        return None
    count = config.num_hidden_layers
    return tuple(range(count - TOP_LAYERS, count))


# transformers' Trainer with PEFT


def with_trainer(
    work: Work, base: str, rows: tuple[Rows, Rows, Rows], seed: int, rate: float | None
) -> dict[str, Answers]:
    """The answers of transformers' Trainer with PEFT."""
    if work.kind == "spans":
        return {
            "trainer": evidence_spans.with_trainer(work, base_folder(base), rows, seed, _of(rate))
        }
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer

    train, valid, test = rows
    folder = base_folder(base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    labels = sorted({row[work.target] for row in train}) if work.kind == "labels" else []
    numbers = [] if labels else [row[work.target] for row in train]
    mean, deviation = (np.mean(numbers), np.std(numbers)) if numbers else (0.0, 1.0)

    def encode(table: Rows) -> list[dict[str, Any]]:
        encoded = []
        for row in table:
            texts = [row[name] for name in work.texts]
            if work.kind == "labels" and len(texts) == 2 and base == "smollm2":
                texts = ["\n".join(texts)]
            target = row[work.target]
            encoded.append(
                {
                    **tokenizer(*texts, truncation=True, max_length=work.max_length),
                    "labels": labels.index(target) if labels else (target - mean) / deviation,
                }
            )
        return encoded

    model = _sequence_model(folder, base, len(labels) or 1, tokenizer.pad_token_id, seed)
    trainer = Trainer(
        model=model,
        args=_arguments(work, len(train), seed, _of(rate), has_valid=bool(valid)),
        train_dataset=encode(train),
        eval_dataset=encode(valid) if valid else None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_judge_labels if labels else _judge_numbers,
    )
    trainer.train()
    outputs: Any = trainer.predict(encode(test)).predictions
    if labels:
        return {"trainer": [labels[i] for i in outputs.argmax(1)]}
    return {"trainer": (outputs[:, 0] * deviation + mean).tolist()}


def _of(rate: float | None) -> float:
    assert rate is not None, "every contender is given a rate"
    return rate


def _judge_labels(prediction: Any) -> dict[str, float]:
    return {"score": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def _judge_numbers(prediction: Any) -> dict[str, float]:
    return {"score": float(np.corrcoef(prediction.predictions[:, 0], prediction.label_ids)[0, 1])}


def _sequence_model(folder: str, base: str, outputs: int, pad_id: int, seed: int) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=outputs, dtype=torch.float32
    )
    model.config.pad_token_id = pad_id
    layers = adapted_layers(model.config, base)
    adapter = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=attention_projections(base),
        layers_to_transform=list(layers) if layers else None,
        **LORA,
    )
    return get_peft_model(model, adapter)


def attention_projections(base: str) -> list[str]:
    """The layers that peftcls puts adapters into by default."""
    if base == "smollm2":
        return ["q_proj", "k_proj", "v_proj", "o_proj"]
    return ["query", "key", "value", "attention.output.dense"]


def _arguments(work: Work, rows: int, seed: int, rate: float, *, has_valid: bool) -> Any:
    from transformers import TrainingArguments

    defaults = defaults_for(work.task())
    judged = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
    }
    return TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=work.epochs or defaults.epochs_for(rows, defaults.batch_size),
        per_device_train_batch_size=defaults.batch_size,
        per_device_eval_batch_size=defaults.batch_size,
        learning_rate=rate,
        warmup_steps=WARMUP,
        lr_scheduler_type="linear",
        weight_decay=WEIGHT_DECAY,
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        **(judged if has_valid else {"save_strategy": "no"}),
    )


# TRL


def with_trl(
    work: Work, base: str, rows: tuple[Rows, Rows, Rows], seed: int, rate: float | None
) -> dict[str, Answers]:
    """The answers of TRL's SFTTrainer with PEFT, to instructions."""
    folder = base_folder(base)
    layers = adapted_layers(AutoConfig.from_pretrained(folder), base)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=attention_projections(base),
        layers_to_transform=list(layers) if layers else None,
        **LORA,
    )
    found = evidence_instructions.with_trl(work, folder, adapter, rows, seed, _of(rate))
    return {"trl": found}


# SetFit's method


def with_setfit(
    work: Work, base: str, rows: tuple[Rows, Rows, Rows], seed: int, rate: float | None
) -> dict[str, Answers]:
    """The answers of SetFit: the whole base learns pairs by contrast, then logistic regression."""
    import datasets
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments

    train, _, test = rows
    body = SentenceTransformer(base_folder(base), device="cpu")
    body.max_seq_length = work.max_length
    model = SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000))
    table = [{"text": joined(work, row), "label": row[work.target]} for row in train]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(tempfile.mkdtemp(), seed=seed, report_to="none"),
        train_dataset=datasets.Dataset.from_list(table),
    )
    trainer.train()
    return {"setfit": [str(label) for label in model.predict([joined(work, row) for row in test])]}


def joined(work: Work, row: dict[str, Any]) -> str:
    """The texts of a row as one."""
    return "\n".join(row[name] for name in work.texts)


System = Callable[[Work, str, tuple[Rows, Rows, Rows], int, float | None], dict[str, Answers]]
SYSTEMS: dict[str, System] = {
    "peftcls": with_peftcls,
    "baselines": with_baselines,
    "trainer": with_trainer,
    "trl": with_trl,
    "setfit": with_setfit,
}

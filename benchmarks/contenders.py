"""One timed training or prediction run of one system, in a process of its own: what speed.py starts.

Every system gets the same base, texts, adapter, rows a step and rate. Times are those of optimizer steps; the first ones, in which
kernels are built and memory is laid out, are left out.
"""

import csv
import json
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from real_data import minilm_folder  # isort: skip

import peftcls
from peftcls import gradients, packing, prefix, processor, trunk
from peftcls.demo import BASE_FOLDER

WARM_STEPS = 2
RATE, SEED = 5e-4, 0
INSTRUCTION = ("You are given a short text message that somebody received. Decide whether it is unwanted advertising or fraud, or an "
               "ordinary message between people who know one another. Look at offers, prizes, numbers to call and at how it is written. "
               "Answer with a single word.")
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}
QWEN = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
SHAPES: dict[str, Any] = {  # the dimensions of published models; the weights are random
    "bert-base": (BertModel, BertConfig(), None),
    "smollm2-135m": (LlamaForCausalLM, LlamaConfig(tie_word_embeddings=True, **SMOLLM2), BASE_FOLDER),
    "qwen2.5-0.5b": (Qwen2ForCausalLM, Qwen2Config(tie_word_embeddings=True, **QWEN), BASE_FOLDER),
}
TEXTS = {"sms": ("sms_spam/train.csv", "Text", "Label"), "abstracts": ("medical_papers/train.csv", "abstract", "label")}


def base_folder(name: str, cache: Path) -> str:
    """The folder of a base: MiniLM-L6 as it is, or random weights in a published shape, made once."""
    if name == "minilm":
        return minilm_folder()
    if not (folder := cache / name / "config.json").is_file():
        kind, config, words = SHAPES[name]
        torch.manual_seed(0)
        kind(config).save_pretrained(folder.parent)
        AutoTokenizer.from_pretrained(words or minilm_folder()).save_pretrained(folder.parent)
    return str(folder.parent)


def read_texts(data: Path, texts: str, rows: int) -> list[dict[str, str]]:
    """The first rows of a data set as text and label."""
    file, text, label = TEXTS[texts]
    with (data / file).open(newline="", encoding="utf-8") as opened:
        table = [{"text": row[text].strip(), "label": "yes" if row[label] == "1" else "no"} for row in csv.DictReader(opened)]
    return [row for row in table if row["text"]][:rows]


class StepClock(TrainerCallback):
    """When each optimizer step of transformers' trainers ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self.ends = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended and the next begins."""
        self.ends.append(time.perf_counter())


def lora(base: str) -> dict[str, Any]:
    """The adapter's settings, by the names of the base's attention projections."""
    targets = ["query", "value"] if "bert" in base or "minilm" in base else ["q_proj", "k_proj", "v_proj", "o_proj"]
    return {"r": 8, "lora_alpha": 16, "target_modules": targets}


def instruction_task(o: Any) -> peftcls.Instruction:
    """The instruction repeated as often as asked for, in front of every text."""
    template = f"{' '.join([INSTRUCTION] * o.instructions)}\n\n{{input}}\n\nAnswer: "
    return peftcls.Instruction(template=template, input="text", output="label", labels=("no", "yes"), max_length=1024)


def peftcls_head(o: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    """A classification head and LoRA, or the head alone."""
    task = peftcls.Classification(text="text", label="label", max_length=o.max_length).learn(rows)
    model, tokenizer = peftcls.load_base(o.base_folder, task, seed=SEED, dtype=torch.float32 if "float32" in o.off else None)
    return _peftcls(o, rows, task, model, tokenizer)


def peftcls_instruction(o: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Instruction tuning with a closed set of labels."""
    task = instruction_task(o)
    model, tokenizer = peftcls.load_base(o.base_folder, task, seed=SEED, dtype=torch.float32 if "float32" in o.off else None)
    return _peftcls(o, rows, task, model, tokenizer)


def _peftcls(o: Any, rows: list[dict[str, str]], task: Any, model: Any, tokenizer: Any) -> dict[str, Any]:
    own = lora(o.base_folder)
    layers = [-2, -1] if o.trained == "top2" else None
    model = peftcls.train_only(model, task, "head") if o.trained == "head" else peftcls.attach_lora(
        model, task, rank=own["r"], alpha=own["lora_alpha"], targets=own["target_modules"], layers=layers, seed=SEED)
    config = peftcls.TrainConfig(tempfile.mkdtemp(), epochs=o.epochs, batch_size=o.batch_size, learning_rate=RATE, log_every=1, seed=SEED)
    trainer = peftcls.Trainer(model, task, tokenizer, config)
    ends = [0.0]
    take = trainer._step

    def timed(*arguments: Any) -> float:
        ends[0] = ends[0] or time.perf_counter()
        loss = take(*arguments)
        ends.append(time.perf_counter())
        return loss

    trainer._step = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    trainer.fit(rows)
    wall = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.progress.history if "loss" in entry]
    found = {"ends": ends, "wall_seconds": wall, "losses": losses}
    if o.predict:
        started = time.perf_counter()
        answers = trainer.predict([{k: row[k] for k in task.columns(with_target=False)} for row in rows])
        found["predict_seconds"] = time.perf_counter() - started
        found["answers"] = [answer.label for answer in answers]
    return found


def _switch_off(off: list[str]) -> None:
    """Leave fast paths out, for the table of what each gives."""
    if "attention" in off:
        processor.LONGEST_TOKENS = 0
    if "packing" in off:
        packing.can_pack = gradients.can_pack = lambda _: False  # type: ignore[assignment]
    if "prefix" in off:
        prefix.can_share = lambda _: False  # type: ignore[assignment]
    if "trunk" in off:
        trunk.frozen_layers = lambda _: None  # type: ignore[assignment]
    if "cuts" in off:
        gradients.call_tokens = lambda _: 10**9  # as few micro-batches as their limit allows
    if "logits" in off:
        for kind in (LlamaForCausalLM, Qwen2ForCausalLM):
            kind.forward = _of_all_tokens(kind.forward)


def _of_all_tokens(forward: Any) -> Any:
    """A causal language model that computes the logits of every token and hands out those that were asked for."""
    def computed(self: Any, *inputs: Any, logits_to_keep: Any = 0, **more: Any) -> Any:
        output = forward(self, *inputs, **more)
        if isinstance(logits_to_keep, torch.Tensor):
            output.logits = output.logits[logits_to_keep]
        return output

    return computed


def trainer_head(o: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    """transformers' Trainer: as it comes, at its best (bf16, rows of similar length together), or padded to a fixed length."""
    best = o.system == "trainer_best"
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(o.base_folder)
    base = AutoModelForSequenceClassification.from_pretrained(o.base_folder, num_labels=2)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **lora(o.base_folder)))
    table = datasets.Dataset.from_list(rows).map(
        lambda batch: {**tokenizer(batch["text"], truncation=True, max_length=o.max_length,
                                   padding="max_length" if o.system == "pad_to_max" else False),
                       "labels": [int(label == "yes") for label in batch["label"]]}, batched=True, remove_columns=["text", "label"])
    arguments = TrainingArguments(tempfile.mkdtemp(), num_train_epochs=o.epochs, per_device_train_batch_size=o.batch_size, bf16=best,
                                  seed=SEED, learning_rate=RATE, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
                                  disable_tqdm=True, train_sampling_strategy="group_by_length" if best else "random")
    clock = StepClock()
    trainer = Trainer(model, arguments, train_dataset=table, data_collator=DataCollatorWithPadding(tokenizer), callbacks=[clock])
    started = time.perf_counter()
    trainer.train()
    found = {"ends": clock.ends, "wall_seconds": time.perf_counter() - started,
             "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}
    if o.predict:
        started = time.perf_counter()
        answers = trainer.predict(table.remove_columns("labels")).predictions.argmax(1)
        found["predict_seconds"] = time.perf_counter() - started
        found["answers"] = [("no", "yes")[a] for a in answers]
    return found


def trl_instruction(o: Any, rows: list[dict[str, str]]) -> dict[str, Any]:
    """TRL's SFTTrainer: as it comes, without gradient checkpointing, or that and rows packed into long sequences."""
    from trl import SFTConfig, SFTTrainer

    text = " ".join([INSTRUCTION] * o.instructions)
    prompts = [f"{text}\n\n{row['text']}\n\nAnswer:" for row in rows]
    table = datasets.Dataset.from_list([{"prompt": p, "completion": f" {row['label']}"} for p, row in zip(prompts, rows, strict=True)])
    best = o.system != "trl"
    arguments = SFTConfig(tempfile.mkdtemp(), num_train_epochs=o.epochs, per_device_train_batch_size=o.batch_size, seed=SEED,
                          learning_rate=RATE, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
                          packing=o.system == "trl_packing", **({"activation_checkpointing": False} if best else {}))
    tokenizer = AutoTokenizer.from_pretrained(o.base_folder)
    model = AutoModelForCausalLM.from_pretrained(o.base_folder)
    clock = StepClock()
    trainer = SFTTrainer(model, arguments, train_dataset=table, processing_class=tokenizer, callbacks=[clock],
                         peft_config=LoraConfig(task_type="CAUSAL_LM", **lora(o.base_folder)))
    started = time.perf_counter()
    trainer.train()
    found = {"ends": clock.ends, "wall_seconds": time.perf_counter() - started,
             "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}
    if o.predict:
        found |= _generate(trainer.model, tokenizer, prompts)
    return found


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, prompts: list[str]) -> dict[str, Any]:
    """What is usually done for a closed set of labels: generate a few tokens and read them."""
    tokenizer.padding_side = "left"
    model.eval()
    started, answers = time.perf_counter(), []
    for first in range(0, len(prompts), 8):
        batch = tokenizer(prompts[first : first + 8], return_tensors="pt", padding=True)
        ids = model.generate(**batch, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answers += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    return {"predict_seconds": time.perf_counter() - started, "answers": answers}


SYSTEMS = {"heads": {"peftcls": peftcls_head, **dict.fromkeys(["trainer", "trainer_best", "pad_to_max"], trainer_head)},
           "instructions": {"peftcls": peftcls_instruction, **dict.fromkeys(["trl", "trl_best", "trl_packing"], trl_instruction)}}


def run(o: Any) -> None:
    """Print one line of JSON with the times, losses and memory of one run."""
    torch.set_num_threads(o.threads)
    _switch_off(o.off)
    rows = read_texts(o.data, o.texts, o.rows)
    o.base_folder = base_folder(o.base, o.cache)
    started = time.perf_counter()
    found = SYSTEMS[o.kind][o.system](o, rows)
    ends = found.pop("ends")
    steps = [after - before for before, after in pairwise(ends)][WARM_STEPS:]
    ordered = sorted(steps)
    tokenizer = AutoTokenizer.from_pretrained(o.base_folder)
    tokens = sum(len(ids) for ids in tokenizer([row["text"] for row in rows], truncation=True, max_length=o.max_length)["input_ids"])
    if o.kind == "instructions":
        tokens += len(rows) * len(tokenizer(" ".join([INSTRUCTION] * o.instructions))["input_ids"])
    per_second = o.batch_size / (sum(steps) / len(steps)) if o.system != "trl_packing" else len(rows) * o.epochs / (ends[-1] - ends[0])
    print(json.dumps({**found, "rows_per_second": per_second, "source_tokens_per_row": tokens / len(rows), "steps": len(steps),
                      "median_step_seconds": ordered[len(steps) // 2], "p90_step_seconds": ordered[int(0.9 * (len(steps) - 1))],
                      "predict_rows_per_second": len(rows) / found["predict_seconds"] if "predict_seconds" in found else None,
                      "process_seconds": time.perf_counter() - started,
                      "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))

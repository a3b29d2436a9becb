"""Compares a memory plan with the memory that a training takes on this machine's CPU.

    python benchmarks/planned_memory.py bert
    python benchmarks/planned_memory.py llama --checkpointing

Each call trains one base with random weights for two steps, in a process of its own. It prints a
line of the table in docs/memory.md. What the process takes before, with its libraries and one small
step, is subtracted.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import datasets
import torch
import transformers

from peftcls import Classification, Instruction, TrainConfig, Trainer, attach_lora, load_base
from peftcls.demo import BASE_FOLDER
from peftcls.models.skeleton import read_skeleton
from peftcls.models.trainable import checkpoint_layers, train_mode, trained_parameters
from peftcls.tasks.base import Task
from peftcls.training.step_cost import step_cost

MIB = 2**20
ROWS = 8
ROW_TOKENS = 256
ANSWER_TOKENS = 64
SIZES = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}
WORD = "patient recovered after "
TRAINED_BYTES = 16
"""Of a trained parameter: weight, gradient and two moments of AdamW."""


def main() -> None:
    """Train one base, and print what was planned and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["bert", "llama"])
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        task = write_base(options.kind, base)
        planned = plan(base, task, checkpointing=options.checkpointing)
        measured = measure(base, task, checkpointing=options.checkpointing)
    name = f"{options.kind}, checkpointing" if options.checkpointing else options.kind
    ratio = planned / measured
    print(f"| {name} | {planned / MIB:.0f} MiB | {measured / MIB:.0f} MiB | {ratio:.2f} |")


def write_base(kind: str, folder: Path) -> Task:
    """Write a base with random weights and a tokenizer; the task that suits it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE_FOLDER)
    tokenizer.save_pretrained(folder)
    if kind == "bert":
        config: Any = transformers.BertConfig(
            vocab_size=len(tokenizer), intermediate_size=2048, **SIZES
        )
        transformers.BertModel(config).save_pretrained(folder)
        return Classification(labels=("a", "b"), max_length=ROW_TOKENS)
    config = transformers.LlamaConfig(
        vocab_size=32000, intermediate_size=1408, num_key_value_heads=4, **SIZES
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return Instruction(
        template="{input} Answer: ",
        input="text",
        output="label",
        max_length=ROW_TOKENS,
        max_new_tokens=ANSWER_TOKENS,
    )


def plan(base: Path, task: Task, *, checkpointing: bool) -> int:
    """The bytes that a step takes beside the base, by the plan for a CPU."""
    model: Any = attach_lora(
        read_skeleton(base, task, dtype=torch.float32), task, targets="all-linear"
    )
    if checkpointing:
        checkpoint_layers(model)
    train_mode(model)
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    cost = step_cost(
        model,
        task,
        rows=ROWS,
        row_tokens=ROW_TOKENS,
        answer_tokens=ANSWER_TOKENS,
        on_gpu=False,
    )
    kept = cost.activation_bytes + cost.logit_bytes + cost.backward_bytes
    # The adapter's own weights are there before the training.
    return kept + (TRAINED_BYTES - 4) * trained


def measure(base: Path, task: Task, *, checkpointing: bool) -> int:
    """How much the process grows in two steps on rows of full length."""
    model, tokenizer = load_base(base, task, dtype=torch.float32)
    config = TrainConfig(
        base.parent / "run",
        batch_size=ROWS,
        micro_batch_tokens=ROWS * ROW_TOKENS,
        gradient_checkpointing=checkpointing,
        head_init="random",
    )
    adapted = attach_lora(model, task, targets="all-linear")
    with Trainer(adapted, task, tokenizer, config) as trainer:
        trainer.dry_run(make_rows(task, WORD, rows=2))
        before = resident_bytes()
        return trainer.dry_run(make_rows(task, WORD * ROW_TOKENS, rows=ROWS)).peak_bytes - before


def make_rows(task: Task, text: str, *, rows: int) -> datasets.Dataset:
    """Different rows of the same length."""
    answers = ("a", "b") if task.new_head else (WORD * 8,)
    return datasets.Dataset.from_list(
        [{"text": f"{n} {text}", "label": answers[n % len(answers)]} for n in range(rows)]
    )


def resident_bytes() -> int:
    """The memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

"""Instructions by TRL's SFTTrainer: the prompt and the answer as text, only the answer is learned.

The answers are generated greedily. Of a closed set, the label that the generated text begins with
is the answer; any other text is a wrong answer.
"""

import tempfile
from typing import Any

import datasets
import torch
from evidence_data import IS_MEDICAL, KEYWORDS_OF, MAX_KEYWORD_TOKENS, Rows, Work
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftcls.training.defaults import defaults_for

LABELS = ("0", "1")
MAX_LABEL_TOKENS = 4
ANSWER_BATCH = 8


def with_trl(
    work: Work,
    base: str,
    adapter: LoraConfig,
    rows: tuple[Rows, Rows, Rows],
    seed: int,
    rate: float,
) -> list[Any]:
    """The answers to the test rows: labels, or lists of keywords."""
    from trl import SFTConfig, SFTTrainer

    train, _, test = rows
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    defaults = defaults_for(work.task())
    trainer = SFTTrainer(
        model,
        SFTConfig(
            tempfile.mkdtemp(),
            num_train_epochs=work.epochs or defaults.epochs_for(len(train), defaults.batch_size),
            per_device_train_batch_size=defaults.batch_size,
            learning_rate=rate,
            warmup_steps=0.06,
            lr_scheduler_type="linear",
            weight_decay=0.01,
            max_length=work.max_length,
            completion_only_loss=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=datasets.Dataset.from_list(
            [
                {"prompt": prompt, "completion": str(row[work.target])}
                for prompt, row in zip(prompts(work, tokenizer, train), train, strict=True)
            ]
        ),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.train()
    texts = generated(trainer.model, tokenizer, prompts(work, tokenizer, test), max_tokens(work))
    return [as_answer(work, text) for text in texts]


def max_tokens(work: Work) -> int:
    """The most tokens of an answer."""
    return MAX_KEYWORD_TOKENS if work.kind == "keywords" else MAX_LABEL_TOKENS


def prompts(work: Work, tokenizer: Any, rows: Rows) -> list[str]:
    """The prompts; an abstract is cut so that the prompt and an answer fit."""
    template = KEYWORDS_OF if work.kind == "keywords" else IS_MEDICAL
    found = []
    for row in rows:
        without = template.format(title=row["title"], input="")
        room = work.max_length - len(tokenizer(without)["input_ids"]) - max_tokens(work) - 1
        kept = tokenizer(
            row["abstract"], truncation=True, max_length=max(room, 1), return_offsets_mapping=True
        )["offset_mapping"]
        abstract = row["abstract"][: kept[-1][1]] if kept else ""
        found.append(template.format(title=row["title"], input=abstract))
    return found


def generated(model: Any, tokenizer: Any, texts: list[str], max_new_tokens: int) -> list[str]:
    """What the model writes after each prompt, greedily."""
    tokenizer.padding_side = "left"
    model.eval()
    answers = []
    for first in range(0, len(texts), ANSWER_BATCH):
        batch = tokenizer(texts[first : first + ANSWER_BATCH], return_tensors="pt", padding=True)
        with torch.no_grad():
            ids = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers += tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return answers


def as_answer(work: Work, text: str) -> Any:
    """A generated text as a label or as a list of keywords."""
    if work.kind == "keywords":
        line = text.strip().split("\n")[0]
        return [word.strip() for word in line.split(";") if word.strip()]
    return next((label for label in LABELS if text.strip().startswith(label)), "")

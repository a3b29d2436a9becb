"""An adapter and its base become one model that plain transformers loads."""

import dataclasses
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.engine.head_logits import class_logits, end_logits
from peftcls.models.adapter_folder import READABLE, load_adapter
from peftcls.models.folder_info import describe_folder
from peftcls.models.model_card import write_merged_card
from peftcls.models.state import base_facts
from peftcls.tasks.base import Feature, Task, token_limit
from peftcls.tasks.classification import Classification
from peftcls.tasks.decisions import PLAIN
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression
from peftcls.tasks.text_encoding import has_separator, text_columns

TOLERANCE = 1e-4  # of a logit, in float32
SHORT = "Yes."
PROBES = (
    "The patient was given a new drug and recovered within a week.",
    SHORT,
    "Stock prices fell after the bank had raised its rates; nobody knew for how long, and few would say so in public.",
    "See you at lunch? Call me when you are there!",
)


def merge_adapter(
    directory: str | Path, out: str | Path, *, base: str | Path | None = None
) -> Path:
    """Merge an adapter into its base, in float32, and write a folder that `from_pretrained` and pipelines load.

    The merged model keeps the head, the label names and the tokenizer. It is compared with the adapter on probe texts,
    first as it is, then read back from the disk by transformers alone, a row at a time and padded. What transformers does
    otherwise without being wrong (thresholds, windows, the scale of numbers) is a `UserWarning` and stands in the
    folder's README.md. A base that was quantized at training is merged in full precision.

    Args:
        directory: written by `Trainer.save`; a trained part of a model is merged in the same way.
        out: the new folder; it must not exist, or be empty.
        base: where the base model is now, if not where it was.

    Raises:
        ValueError: the folder is damaged, `out` holds something, or the plain model would answer otherwise (logits that
            differ by more than 1e-4); nothing is written then.
    """
    facts, out = describe_folder(directory), Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(
            f"{out} holds something already, expected a new or an empty folder; choose another."
        )
    if not (above := out.absolute().parent).is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {above}.")
    loaded, task, tokenizer = load_adapter(directory, base=base, quantize="none")
    model: Any = loaded.float().eval()
    if reason := _inexpressible(task, base_facts(model).causal):
        raise ValueError(
            f"{directory} cannot be merged: {reason}; keep the adapter folder and load it with load_predictor."
        )
    remarks = _remarks(task, tokenizer)
    if facts["base"]["quantize"]:
        remarks.append(
            f"The adapter was trained on a base in {facts['base']['quantize']}, and is merged into the same base in full "
            "precision; its answers may move a little."
        )
    probes = _probes(task, tokenizer)
    expected = _own_logits(task, model, probes, tokenizer)
    if isinstance(model, PeftModel):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=UserWarning
            )  # PEFT says again which layers share weights
            model = model.merge_and_unload(safe_merge=True)
    _compare(
        expected,
        _own_logits(task, model, probes, tokenizer),
        f"{directory} cannot be merged without a change of its answers",
    )
    tokenizer.model_max_length = token_limit(tokenizer, task.max_length)  # type: ignore[attr-defined]
    beside = Path(tempfile.mkdtemp(prefix=".merging-", dir=above))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(str(beside))
        plain = task.auto_model.from_pretrained(
            beside, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        told = f"{directory} cannot be merged: transformers alone reads other logits from the merged model"
        _compare(
            expected,
            [row for probe in probes for row in _plain_logits(task, plain, [probe], tokenizer)],
            told,
        )
        _compare(
            expected, _plain_logits(task, plain, probes, tokenizer), f"{told} where rows are padded"
        )
        write_merged_card(beside, facts, remarks)
        beside.chmod(0o755)  # a temporary folder is its owner's alone, and so are some files in it
        for file in beside.iterdir():
            file.chmod(READABLE)
        if out.is_dir():
            out.rmdir()
        os.replace(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    return out


def _inexpressible(task: Task, causal: bool) -> str | None:
    """What a plain class could only get wrong."""
    if causal and (pooling := getattr(task, "pooling", None)) not in (None, "last"):
        return f"its head reads {pooling!r} of the tokens (pooling={pooling!r}), and that of transformers would read the last one"
    if not getattr(task, "causal", True):
        return "its tokens see the whole text (causal=False), and those of transformers would see what stands before them"
    return None


def _remarks(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What plain transformers does otherwise than peftcls, a sentence each."""
    found = []
    if isinstance(task, Regression):
        found.append(
            f"The output is in units of the training rows' deviation: the number is {task.deviation!r} x output + {task.mean!r}."
        )
    if isinstance(task, ExtractiveQA):
        found.append(
            "transformers gives the logits of an answer's ends; windows and the choice of the best span are left to you."
        )
    if isinstance(task, Instruction):
        found.append(f"The prompt must be written as it was trained: {task.template!r}.")
        if task.labels:
            found.append(
                "transformers generates an answer and scores no labels, so it may give a text that is none of them."
            )
    if getattr(task, "long_text", None) == "windows":
        found.append(
            f"A text of more than {getattr(task, 'max_length', 0)} tokens is cut (with truncation=True), not read in windows."
        )
    if getattr(task, "loss", None) == "bce" and not getattr(task, "multi_label", False):
        found.append(
            "The probabilities of a pipeline are a softmax of the logits, not a normalised sigmoid; the label is the same."
        )
    if getattr(task, "decisions", PLAIN) != PLAIN:
        found.append(
            "Temperature, thresholds and abstention, which were fitted, are not applied; the likeliest label is given."
        )
    if (
        isinstance(text := getattr(task, "text", None), tuple)
        and len(text_columns(text)) == 2
        and not has_separator(tokenizer)
    ):
        found.append(
            "This tokenizer sets nothing between two texts; begin the second one with a new line, as in training."
        )
    return found


def _probes(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Feature]:
    columns = task.columns(with_target=False)
    fixed = (
        {task.question}
        if isinstance(task, ExtractiveQA)
        else set(columns) - {task.input}
        if isinstance(task, Instruction)
        else set()
    )
    rows = [
        {
            name: SHORT if name in fixed else PROBES[(place + number) % len(PROBES)]
            for number, name in enumerate(columns)
        }
        for place in range(len(PROBES))
    ]  # a question and an instruction are never shortened
    whole = (
        dataclasses.replace(task, long_text="truncate")
        if isinstance(task, Classification | Regression)
        else task
    )
    return [whole.encode(row, tokenizer, with_target=False) for row in rows]


@torch.inference_mode()
def _own_logits(
    task: Task, model: Any, probes: Sequence[Feature], tokenizer: PreTrainedTokenizerBase
) -> list[torch.Tensor]:
    """The logits by peftcls, each probe alone and without padding; of a question in windows those of each window."""
    found: list[torch.Tensor] = []
    for batch in (task.collate([probe], tokenizer) for probe in probes):
        if isinstance(task, ExtractiveQA):
            found += _without_padding(
                torch.stack(end_logits(model, batch), dim=-1), batch["attention_mask"]
            )
        elif isinstance(task, Instruction):
            found += model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).logits
        else:
            found += class_logits(model, batch, getattr(task, "pooling", None))
    return found


@torch.inference_mode()
def _plain_logits(
    task: Task,
    model: PreTrainedModel,
    probes: Sequence[Feature],
    tokenizer: PreTrainedTokenizerBase,
) -> list[torch.Tensor]:
    """The logits of probes, padded together, from a model that knows nothing of peftcls."""
    batch = task.collate(probes, tokenizer)
    names = ("input_ids", "attention_mask", "token_type_ids")
    output: Any = model(**{name: batch[name] for name in names if name in batch})
    if isinstance(task, ExtractiveQA):
        return list(
            _without_padding(
                torch.stack([output.start_logits, output.end_logits], dim=-1),
                batch["attention_mask"],
            )
        )
    if isinstance(task, Instruction):
        return list(_without_padding(output.logits, batch["attention_mask"]))
    return list(output.logits)


def _without_padding(logits: torch.Tensor, mask: torch.Tensor) -> Iterator[torch.Tensor]:
    for row, kept in zip(logits, mask.bool(), strict=True):
        yield row[kept]


def _compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], told: str) -> None:
    """Raise a ValueError where logits differ by more than the tolerance."""
    for place, (own, other) in enumerate(zip(expected, found, strict=True), 1):
        far = float((own - other).abs().max()) if own.shape == other.shape else float("inf")
        if not far <= TOLERANCE:
            raise ValueError(
                f"{told}: probe {place} differs by {far:.2g}, expected at most {TOLERANCE:g}; keep the adapter folder "
                "and load it with load_predictor."
            )

"""Merging an adapter into its base: one model that plain transformers loads."""

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.engine.batch import INPUTS
from peftcls.engine.model_state import base_facts
from peftcls.models.adapter_folder import READABLE, Folder, load_adapter, open_folder
from peftcls.models.folder_info import folder_facts
from peftcls.models.mixed_precision import widen_all
from peftcls.models.model_card import write_merged_card
from peftcls.models.peft_library import PeftModel
from peftcls.models.pretrained_io import quiet
from peftcls.tasks.base import Feature, Task, token_limit

logger = logging.getLogger("peftcls")

TOLERANCE = 1e-4
"""The largest difference of a logit, in float32."""
SHORT_TEXT = "Yes."
PROBE_TEXTS = (
    "The patient was given a new drug and recovered within a week.",
    SHORT_TEXT,
    "Stock prices fell after the bank had raised its rates; nobody knew for how long, "
    "and few would say so in public.",
    "See you at lunch? Call me when you are there!",
)
ENCODER_MEAN = (
    "its head reads the mean of all tokens, and that of transformers would read the first one "
    "(an adapter that is trained with pooling='cls' can be merged)"
)
COMPARED_TEXTS = (
    "its head compares two texts that are read alone, and that of transformers reads them together "
    "(an adapter that is trained with pooling='cls' can be merged)"
)
PADDING = (
    "transformers reads a text that ends with {}, the padding token, up to the token before it."
)
USE_THE_FOLDER = "keep the adapter folder and load it with load_predictor"


def merge_adapter(
    directory: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    tasks: Sequence[type[Task]] = (),
) -> Path:
    """Merge an adapter into its base, and write a folder that `from_pretrained` and pipelines load.

    The merged model is in float32 and keeps the head, the label names and the tokenizer. It is
    compared with the adapter on probe texts: in memory, and after transformers has read it back
    from the disk, row by row and padded. What transformers does otherwise without being wrong
    (thresholds, windows, the scale of numbers) is a `UserWarning`, and stands in the folder's
    README.md. A base that was quantized at training is merged in full precision.

    Args:
        directory: written by `Trainer.save`; a trained part of a model is merged in the same way.
        out: the new folder; it must not exist, or be empty.
        base: where the base model is now, if it moved.
        tasks: your own task classes, beside the four built-in ones.

    Raises:
        ValueError: the folder is damaged, `out` is not empty, or the plain model would answer
            otherwise (logits that differ by more than 1e-4); nothing is written then.
    """
    folder = open_folder(directory, tasks=tasks)
    out = Path(out)
    check_out(out)
    loaded, task, tokenizer = load_adapter(folder, base=base, quantize="none")
    widen_all(loaded)
    model: Any = loaded.eval()
    facts = base_facts(model)
    obstacle = task.merge_obstacle(facts.causal)
    if facts.pooling is not None:
        obstacle = COMPARED_TEXTS if facts.pooling == "compare" else ENCODER_MEAN
    if obstacle:
        raise ValueError(f"{directory} cannot be merged: {obstacle}; {USE_THE_FOLDER}.")
    remarks = task.merge_remarks(tokenizer)
    if folder.base.quantize:
        remarks.append(
            f"The adapter was trained on a base in {folder.base.quantize}, and is merged into the "
            "same base in full precision; its answers may move a little."
        )
    probes = encode_probes(task, tokenizer)
    expected = adapter_logits(task, model, probes, tokenizer)
    model = merge_weights(model)
    merged = adapter_logits(task, model, probes, tokenizer)
    compare(expected, merged, f"{directory} cannot be merged without a change of its answers")
    padding = [PADDING.format(tokenizer.pad_token)] if task.new_head and facts.causal else []
    _write_checked(out, folder, model, tokenizer, probes, expected, [*remarks, *padding])
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    # True of every decoder, and rare in texts: no reason to stop where warnings are errors.
    for remark in padding:
        logger.warning("%s: %s", out, remark)
    return out


def check_out(out: Path) -> None:
    """Raise ValueError unless `out` can become a new folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(
            f"{out} holds something already, expected a new or an empty folder; choose another."
        )
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {parent}.")
    if not os.access(out if out.is_dir() else parent, os.W_OK):
        raise ValueError(
            f"cannot write {out}: the folder {parent} cannot be written to; choose another."
        )


def merge_weights(model: Any) -> Any:
    """The plain model with the adapter in its weights; itself where it has no adapter."""
    if not isinstance(model, PeftModel):
        return model
    _untie_output_layer(model.get_base_model())
    with warnings.catch_warnings():
        # PEFT says again which layers share weights.
        warnings.filterwarnings("ignore", category=UserWarning)
        return model.merge_and_unload(safe_merge=True)


def _untie_output_layer(model: Any) -> None:
    """Give an output layer with an adapter weights of its own: the embeddings have no adapter."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if layer is None or not hasattr(layer, "lora_A"):
        return
    plain = layer.get_base_layer()
    plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _write_checked(
    out: Path,
    folder: Folder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Feature],
    expected: Sequence[torch.Tensor],
    remarks: Sequence[str],
) -> None:
    """Write the merged model to a temporary folder, check it, and move it into place."""
    if folder.task.max_length:
        tokenizer.model_max_length = token_limit(tokenizer, folder.task.max_length)
    with new_folder(out) as temporary:
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(str(temporary))
        _check_reloaded(temporary, folder, tokenizer, probes, expected)
        write_merged_card(
            temporary, folder.task, folder_facts(folder.directory, folder.manifest), remarks
        )


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of `out` when all is written and checked."""
    temporary = Path(tempfile.mkdtemp(prefix=".merging-", dir=out.absolute().parent))
    try:
        yield temporary
        # A temporary folder, and some files in it, can be read by their owner only.
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(READABLE)
        if out.is_dir():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_reloaded(
    merged: Path,
    folder: Folder,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Feature],
    expected: Sequence[torch.Tensor],
) -> None:
    """Compare what transformers loads from the merged folder with the adapter."""
    task = folder.task
    with quiet():
        model = task.auto_model.from_pretrained(
            merged, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    model.eval()
    failure = (
        f"{folder.directory} cannot be merged: plain transformers computes other logits from the "
        "merged model"
    )
    row_by_row: list[torch.Tensor] = []
    for probe in probes:
        row_by_row += _plain_logits(task, model, [probe], tokenizer)
    compare(expected, row_by_row, failure)
    padded = _plain_logits(task, model, probes, tokenizer)
    compare(expected, padded, f"{failure} where rows are padded")


def encode_probes(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Feature]:
    """The probe texts as rows of the task, tokenized; no two columns of a row are the same text."""
    fixed = task.fixed_columns()
    columns = task.columns(with_target=False)
    probe_task = task.probe_task()
    probes = []
    for number in range(len(PROBE_TEXTS)):
        row = {}
        for offset, column in enumerate(columns):
            text = PROBE_TEXTS[(number + offset) % len(PROBE_TEXTS)]
            row[column] = SHORT_TEXT if column in fixed else text
        probes.append(probe_task.encode(row, tokenizer, with_target=False))
    return probes


@torch.inference_mode()
def adapter_logits(
    task: Task, model: Any, probes: Sequence[Feature], tokenizer: PreTrainedTokenizerBase
) -> list[torch.Tensor]:
    """The logits by peftcls, one probe at a time, so without padding; one tensor a window."""
    logits: list[torch.Tensor] = []
    for probe in probes:
        logits += task.raw_logits(model, task.collate([probe], tokenizer))
    return logits


@torch.inference_mode()
def _plain_logits(
    task: Task,
    model: PreTrainedModel,
    probes: Sequence[Feature],
    tokenizer: PreTrainedTokenizerBase,
) -> list[torch.Tensor]:
    """The logits of probes, padded together, from a model that knows nothing of peftcls."""
    batch = task.collate(probes, tokenizer)
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    return task.plain_logits(model(**inputs), batch)


def compare(
    expected: Sequence[torch.Tensor],
    actual: Sequence[torch.Tensor],
    failure: str,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ValueError where logits differ by more than the tolerance, or in shape."""
    for number, (right, logits) in enumerate(zip(expected, actual, strict=True), 1):
        difference = float("inf")
        if right.shape == logits.shape:
            difference = float((right - logits).abs().max())
        # A difference of nan is no match either.
        if not difference <= tolerance:
            raise ValueError(
                f"{failure}: probe {number} differs by {difference:.2g}, expected at most "
                f"{tolerance:g}; {USE_THE_FOLDER}."
            )

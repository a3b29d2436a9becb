"""Loading a base in 8 or 4 bits through bitsandbytes."""

import logging
import os
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

from peftcls.engine.model_choices import Quantize
from peftcls.models.structure import head_modules
from peftcls.tasks.base import Task


def own_device() -> int | str:
    """The GPU of this process, by its number: quantized weights cannot be moved once loaded."""
    if not torch.cuda.is_available():
        return "cpu"
    return int(os.environ.get("LOCAL_RANK", 0))


def quantization_config_for(
    task: Task,
    config: Any,
    quantize: Quantize,
    dtype: torch.dtype,
    in_full: list[str],
    *,
    in_shares: bool,
) -> BitsAndBytesConfig:
    """Settings of bitsandbytes that quantize everything but the head and the modules `in_full`.

    Shares of 4-bit weights are stored as bytes: read as floating point some of them are nan, and a
    device may make one nan of all.
    """
    # the structure only, without weights
    with torch.device("meta"):
        skeleton = task.auto_model.from_config(config)
    skipped = get_keys_to_not_convert(skeleton)
    if task.new_head:
        skipped = skipped + head_modules(skeleton)
    skipped = skipped + in_full
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8 if in_shares else dtype,
    )


def drop_cast_warnings() -> None:
    """Drop the warning of bitsandbytes, at every layer and step, that 8 bits narrow the inputs.

    That is what 8 bits are. Only this message of its logger is dropped.
    """
    # A filter that a logger has already is not added again.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast_warning)


def _is_no_cast_warning(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)

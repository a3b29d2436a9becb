"""Holding a base in 8 or 4 bits through bitsandbytes."""

import os
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

from peftcls.models.state import Quantize
from peftcls.models.structure import head_modules
from peftcls.tasks.base import Task


def own_device() -> int | str:
    """The GPU of this process, by its number on this machine: quantized weights cannot be moved once they are loaded."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def quantization_config_for(
    task: Task, config: Any, quantize: Quantize, dtype: torch.dtype, in_full: list[str]
) -> BitsAndBytesConfig:
    """How bitsandbytes should hold the base: everything in few bits but the head and what is named in `in_full`."""
    with torch.device("meta"):  # the structure alone, without weights
        skeleton = task.auto_model.from_config(config)
    skip = (
        get_keys_to_not_convert(skeleton)
        + (head_modules(skeleton) if task.new_head else [])
        + in_full
    )
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skip,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )

"""PEFT and bitsandbytes, imported without a warning that concerns nobody here."""

# ruff: noqa: E402

import logging

# bitsandbytes, which PEFT imports, warns at its import that an optional kernel is not installed.
# Nothing here needs that kernel, so the warning is dropped; the logger is left as it was.
_logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    import bitsandbytes as bnb
finally:
    _logger.setLevel(_level)

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key

__all__ = [
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "AdaLoraConfig",
    "AdaLoraModel",
    "BaseTunerLayer",
    "IA3Config",
    "LoraConfig",
    "LoraLinear",
    "PeftConfig",
    "PeftModel",
    "bnb",
    "get_pattern_key",
    "get_peft_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]

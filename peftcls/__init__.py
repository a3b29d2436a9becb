"""Parameter-efficient fine-tuning of pretrained transformers for classification-like tasks."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

# bitsandbytes warns on every import that an optional kernel from a hub is not there; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# In 8 bits every layer would say at every step that it narrows its inputs, which is what 8 bits are.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from peftcls.api import *
else:

    def __getattr__(name: str) -> Any:
        """A module or a public name, loaded when it is asked for: the command's help and completion need no model library."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        try:
            return importlib.import_module(f"peftcls.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"peftcls.{name}":
                raise
        return getattr(importlib.import_module("peftcls.api"), name)

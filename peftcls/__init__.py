"""Parameter-efficient fine-tuning of pretrained transformers for classification-like tasks."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from peftcls.processors import set_up_threads

__version__ = "0.1.0"

# Before anything imports PyTorch, which reads these settings once.
set_up_threads()

if TYPE_CHECKING:
    from peftcls.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Load a public name or a subpackage when it is first used.

        So the command's help and shell completion start without PyTorch and transformers.
        """
        # Python itself asks for names such as __path__.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        # No public name is also the name of a subpackage. A subpackage does not load the others.
        if importlib.util.find_spec(f"peftcls.{name}") is not None:
            return importlib.import_module(f"peftcls.{name}")
        api = importlib.import_module("peftcls.api")
        if not hasattr(api, name):
            raise AttributeError(f"module 'peftcls' has no attribute {name!r}")
        return getattr(api, name)

    def __dir__() -> list[str]:
        """All public names, for completion in a notebook."""
        return [*globals(), *importlib.import_module("peftcls.api").__all__]

"""The base model, what is trained of it, and the adapter folder."""

import logging

# bitsandbytes, which PEFT imports, warns at its import that an optional kernel is not installed.
# Nothing here needs that kernel, so the warning is dropped; the logger is left as it was.
_logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    import bitsandbytes  # noqa: F401
finally:
    _logger.setLevel(_level)

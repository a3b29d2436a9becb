"""What can be chosen of a model, as the names that settings have; no model library is needed."""

from typing import Literal

Quantize = Literal["8bit", "4bit"]
DeviceMap = Literal["auto"]
Pooling = Literal["cls", "first", "last", "mean", "compare"]

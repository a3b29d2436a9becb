"""Names that settings have in other libraries, and what they are called here."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar, cast

T = TypeVar("T", bound=Callable[..., Any])

OTHER_NAMES = {
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "per_device_batch_size": "batch_size",
    "effective_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "scheduler": "schedule",
    "clip": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "max_steps": "epochs",
    "cpu": "device",
    "gpu": "device",
    "cuda": "device",
    "use_cpu": "device",
    "no_cuda": "device",
    "eval_steps": "eval_every",
    "logging_steps": "log_every",
    "early_stopping": "patience",
    "early_stopping_patience": "patience",
    "metric": "monitor",
    "metric_for_best_model": "monitor",
    "report_to": "trackers",
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "layers_to_transform": "layers",
    "num_layers": "layers",
    "peft_type": "method",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "bf16": "dtype",
    "fp16": "dtype",
    "load_in_8bit": "quantize",
    "load_in_4bit": "quantize",
    "quantization": "quantize",
    "base_model": "model",
    "model_name": "model",
    "model_name_or_path": "model",
    "pretrained_model_name_or_path": "name",
    "output": "out",
    "output_dir": "out",
    "save_dir": "out",
    "max_len": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "text_column": "text",
    "label_column": "label",
    "target": "label",
    "label_separator": "separator",
    "label_delimiter": "separator",
    "dev": "valid",
    "validation": "valid",
    "cv": "folds",
    "random_state": "seed",
    "random_seed": "seed",
}
"""The name here, by the name elsewhere."""

VALUES = {
    "cpu": "cpu",
    "use_cpu": "cpu",
    "no_cuda": "cpu",
    "gpu": "cuda",
    "cuda": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "load_in_8bit": "8bit",
    "load_in_4bit": "4bit",
}
"""What a setting that is only on or off elsewhere is here: a value of the one it is called."""

REMARKS = {
    "gradient_accumulation_steps": "the batch size is of a whole step, however many rows are "
    "computed at once",
    "per_device_train_batch_size": "the batch size counts the rows of a step on all devices",
    "per_device_batch_size": "the batch size counts the rows of a step on all devices",
    "max_steps": "the length of a run is set in epochs, passes over the rows",
    "warmup_steps": "the warm-up is a share of all steps",
}
"""How a setting of a similar name differs."""

PLACES = {
    "attach_lora": ("rank", "alpha", "dropout", "targets", "layers", "method"),
    "load_base": ("dtype", "quantize"),
    "the task, such as Classification(...)": ("max_length", "text", "label", "separator"),
}
"""What takes a setting that a user may look for elsewhere."""
TASKS = ("Classification", "Regression", "Instruction", "ExtractiveQA")


def explanation(name: str, known: Collection[str], spell: Callable[[str], str]) -> str | None:
    """What a setting of other libraries is here, behind "there is no such setting"; None: unknown.

    Args:
        name: what was written, with underscores.
        known: the names of the settings that exist.
        spell: writes a name as it is given: with an equals sign in Python, or as an option.
    """
    name = name.casefold()
    meant = OTHER_NAMES.get(name)
    if meant is not None and meant in known:
        return "; " + _called(name, spell(meant))
    return f": {REMARKS[name]}" if name in REMARKS else None


def most_similar(name: str, known: Iterable[str]) -> str | None:
    """The setting that is written most alike; None if none is."""
    similar = difflib.get_close_matches(name, list(known), 1)
    return similar[0] if similar else None


def names_arguments(owner: T) -> T:
    """Make a function or a class say what an argument that it does not have is called here.

    Without it Python raises a TypeError that names the argument only.
    """
    function = owner.__init__ if isinstance(owner, type) else owner  # type: ignore[misc]
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*arguments: Any, **settings: Any) -> Any:
        for name in settings:
            if name not in known:
                raise TypeError(_unknown_argument(owner.__name__, name, known))
        return function(*arguments, **settings)

    if isinstance(owner, type):
        owner.__init__ = checked  # type: ignore[misc]
        return owner
    return cast(T, checked)


def _unknown_argument(owner: str, name: str, known: list[str]) -> str:
    def spell(argument: str) -> str:
        return f"{argument}="

    explained = explanation(name, known, spell) or _place_of(owner, name)
    similar = most_similar(name, known)
    if explained is None and similar is not None:
        explained = f"; it is called {spell(similar)} here"
    return f"{owner} has no argument {name}={explained or f'; it has {known}'}."


def _place_of(owner: str, name: str) -> str | None:
    """What else takes a setting; None if nothing does."""
    meant = OTHER_NAMES.get(name.casefold(), name)
    for place, names in PLACES.items():
        if meant in names and not (owner in TASKS and place.startswith("the task")):
            return f"; give {meant}= to {place}"
    return None


def _called(name: str, here: str) -> str:
    """What a setting is called here, and how it differs."""
    if name in VALUES:
        value = VALUES[name]
        return f"it is {here}{value!r} here" if here.endswith("=") else f"it is {here} {value} here"
    return f"it is called {here} here" + (f"; {REMARKS[name]}" if name in REMARKS else "")

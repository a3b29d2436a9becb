"""`peftcls show`, `merge` and `push`: what a folder is, and where else it can go."""

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from peftcls.models.adapter_folder import MANIFEST, read_manifest, seal
from peftcls.models.folder_info import describe_folder, tell_folder
from peftcls.models.merging import merge_adapter
from peftcls.models.model_card import CARD, hub_name


def show_folder(*, directory: Path, as_json: bool) -> None:
    """Print what is in a folder."""
    facts = describe_folder(directory)
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else tell_folder(facts))


def merge_folder(*, directory: Path, out: Path, base: str | None) -> None:
    """Merge, and say what plain transformers will do otherwise."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        merge_adapter(directory, out, base=base)
    for remark in (one for one in found if issubclass(one.category, UserWarning)):
        print(f"note: {remark.message}", file=sys.stderr)
    print(
        f"merged into {out}; its logits are those of the adapter, read back by transformers alone"
    )


def copy_for_others(directory: Path, out: Path) -> Path:
    """A folder's own files and its card; of a base in a local folder the manifest keeps the name, not the path."""
    manifest = read_manifest(directory)
    out.mkdir()
    for name in [*manifest["files"], *([CARD] if (directory / CARD).is_file() else [])]:
        shutil.copyfile(directory / name, out / name)
    if (base := manifest["base"])["revision"] is None:
        manifest["base"] = {**base, "name": Path(base["name"]).name}
    (out / MANIFEST).write_text(
        json.dumps(seal(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return out


def push_folder(*, directory: Path, repository: str, private: bool) -> None:
    """Upload a folder's own files.

    Raises:
        ValueError: the folder is damaged, or the hub cannot be reached or refuses.
    """
    manifest = read_manifest(directory)
    if hub_name(manifest["base"]) is None and manifest["base"]["name"] != "demo":
        name = Path(manifest["base"]["name"]).name
        print(
            f"note: the base {name} is not on the hub; others must be told where to get it.",
            file=sys.stderr,
        )
    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        with tempfile.TemporaryDirectory() as beside:
            done = api.upload_folder(
                repo_id=repository,
                folder_path=copy_for_others(directory, Path(beside) / directory.absolute().name),
                commit_message="Adapter by peftcls",
            )
    except (OSError, ValueError, HTTPError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot push {directory} to {repository}: {first.rstrip('.')}. Log in with `hf auth login`, and check the name "
            "(owner/name) and the network."
        ) from None
    print(f"{directory} is at {done}")

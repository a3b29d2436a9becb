"""`peftcls show`, `merge` and `push`: what a folder is, and where else it can go."""

import json
import sys
import warnings
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from peftcls.adapters import MANIFEST, read_manifest
from peftcls.card import CARD, hub_name
from peftcls.folder_facts import describe_folder, tell_folder
from peftcls.merge import merge_adapter


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
    print(f"merged into {out}; its logits are those of the adapter, read back by transformers alone")


def push_folder(*, directory: Path, repository: str, private: bool) -> None:
    """Upload a folder's own files.

    Raises:
        ValueError: the folder is damaged, or the hub cannot be reached or refuses.
    """
    manifest = read_manifest(directory)
    if hub_name(manifest["base"]) is None and manifest["base"]["name"] != "demo":
        print(f"note: the base {manifest['base']['name']} is not on the hub; others must be told where to get it.", file=sys.stderr)
    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=directory, allow_patterns=[*manifest["files"], MANIFEST, CARD],
                                 commit_message="Adapter by peftcls")
    except (OSError, ValueError, HTTPError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot push {directory} to {repository}: {first.rstrip('.')}. Log in with `hf auth login`, and check the name "
                         "(owner/name) and the network.") from None
    print(f"{directory} is at {done}")

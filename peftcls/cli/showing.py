"""`peftcls show`: describe an adapter folder."""

import json
from pathlib import Path

from peftcls.models.folder_info import describe_folder, tell_folder


def show_folder(*, directory: Path, as_json: bool) -> None:
    """Print what is in a folder."""
    facts = describe_folder(directory)
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print(tell_folder(facts))

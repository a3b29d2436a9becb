"""`peftcls merge`, `export` and `push`: merge, export or upload an adapter folder."""

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from peftcls.cli.sources import Source
from peftcls.inference.onnx_export import export_onnx
from peftcls.models.adapter_manifest import MANIFEST, read_manifest, write_manifest
from peftcls.models.merging import merge_adapter
from peftcls.models.model_card import CARD, hub_name


def merge_folder(*, directory: Path, out: Path, base: str | None) -> None:
    """Merge an adapter into its base, and print what plain transformers does differently."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        merge_adapter(directory, out, base=base)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"note: {warning.message}", file=sys.stderr)
    print(
        f"merged into {out}; its logits are those of the adapter, read back by transformers alone"
    )


def export_folder(
    *,
    directory: Path,
    out: Path,
    onnx: bool,
    int8: bool,
    check: str | None,
    base: str | None,
    source: Source,
) -> None:
    """Export an adapter, and print how its answers compare and what is left to other programs."""
    assert onnx, "there is one format"
    rows = None if check is None else source.read(check)
    result = export_onnx(directory, out, int8=int8, check=rows, base=base)
    for remark in result.remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(result)


def push_folder(*, directory: Path, repository: str, private: bool) -> None:
    """Upload a folder's own files to the hub.

    Raises:
        ValueError: the folder is damaged, or the hub cannot be reached or refuses.
    """
    base = read_manifest(directory)["base"]
    if hub_name(base) is None and base["name"] != "demo":
        print(
            f"note: the base {Path(base['name']).name} is not on the hub; others must be told "
            "where to get it.",
            file=sys.stderr,
        )
    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            copied = copy_for_others(directory, Path(temporary) / directory.absolute().name)
            address = api.upload_folder(
                repo_id=repository, folder_path=copied, commit_message="Adapter by peftcls"
            )
    except (OSError, ValueError, HTTPError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot push {directory} to {repository}: {first_line.rstrip('.')}. Log in with "
            "`hf auth login`, and check the name (owner/name) and the network."
        ) from None
    print(f"{directory} is at {address}")


def copy_for_others(directory: Path, out: Path) -> Path:
    """Copy a folder's own files and its card, without paths of this machine.

    If the base is a local folder, the copied manifest keeps the folder's name only.
    """
    manifest = read_manifest(directory)
    names = list(manifest["files"])
    if (directory / CARD).is_file():
        names.append(CARD)
    out.mkdir()
    for name in names:
        shutil.copyfile(directory / name, out / name)
    base = manifest["base"]
    if base["revision"] is None:
        manifest["base"] = {**base, "name": Path(base["name"]).name}
    write_manifest(out / MANIFEST, manifest)
    return out

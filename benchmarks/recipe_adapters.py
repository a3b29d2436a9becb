"""Train every recipe on the sample data and print a checksum of each adapter that it saves.

    python benchmarks/recipe_adapters.py > before.txt   # on one commit
    python benchmarks/recipe_adapters.py > after.txt    # on another; equal if training is the same

A recipe runs for one epoch with seed 0 in a process of its own, on one thread, so that the order of
additions is the same. The base has the dtype that peftcls chooses for the machine; compare files of
the same machine only.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = (
    "medical_paper_lora",
    "medical_keywords_lora",
    "medical_paper_head",
    "spam_gpt_head",
    "mrpc_pairs_head",
    "diabetes_qa",
)
LIMIT_SECONDS = 900


def train(name: str, out: Path) -> None:
    """Run a recipe for one epoch on its sample data, and save to `out`.

    Raises:
        SystemExit: the recipe failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(RECIPES.parent)
    command = [sys.executable, str(RECIPES / f"{name}.py"), "--out", str(out), "--epochs", "1"]
    ended = subprocess.run(
        command,
        env=environment,
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if ended.returncode != 0:
        sys.exit(f"{name} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")


def checksums(folder: Path) -> list[str]:
    """`sha256  file` of the weights in a folder."""
    lines = []
    for file in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines.append(f"{digest}  {file.name}")
    return lines


def main() -> None:
    """Train the recipes that are named, or all, and print their checksums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=NAMES, help="names of recipes (all)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            out = Path(folder) / name
            train(name, out)
            for line in checksums(out):
                print(name, line, flush=True)


if __name__ == "__main__":
    main()

"""Scores of a folder as ONNX, in float32 and in 8 bits, beside its own on labelled rows.

    python benchmarks/onnx_answers.py runs/spam labelled.csv --out benchmarks/results/onnx.json

What the results hold of other files is kept. It needs `pip install 'peftcls[onnx]'`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from real_data import commit, versions

import peftcls
from peftcls.inference.onnx_export import MODEL_FILE


def exported(folder: Path, rows: Any, *, int8: bool) -> dict[str, Any]:
    """The size of the file, its scores, and the share of answers that are the folder's own."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "onnx"
        found = peftcls.export_onnx(folder, out, int8=int8, check=rows)
        size = (out / MODEL_FILE).stat().st_size
    return {
        "megabytes": round(size / 1e6, 1),
        "equal_share": found.equal_share,
        "scores": found.scores,
        "adapter_scores": found.adapter_scores,
    }


def main(options: argparse.Namespace) -> None:
    """Export both forms, print what was found, and write it beside what is there."""
    rows = peftcls.read_rows(options.file)
    found = {
        "rows": len(rows),
        "float32": exported(options.folder, rows, int8=False),
        "int8": exported(options.folder, rows, int8=True),
        "commit": commit(),
        **versions("torch", "onnxruntime"),
    }
    print(json.dumps(found, indent=1))
    if options.out:
        kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
        kept[options.name or options.file.stem] = found
        options.out.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", help="of the rows, in the results; the file's unless given")
    parser.add_argument("--out", type=Path)
    main(parser.parse_args())

"""`peftcls train` on a table that does not fit into memory: own memory of the run over its stages.

    python benchmarks/long_table.py --rows 1000000 10000000

A tiny base with random weights and texts drawn from a seed are made here, in ten parquet files, so
that rows are measured and not the model. Each run reads, examines, splits, tokenizes, trains one
epoch in steps of 4096 rows, evaluates and saves. Every two seconds its own memory is read: without
the pages of files, which the system takes back when it needs them. Results go to
benchmarks/results/long_table.json.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from million_rows import own_mib, texts, tiny_base
from pyarrow import parquet
from real_data import commit, versions

RESULTS = Path(__file__).parent / "results" / "long_table.json"
FILES = 10
ROWS_AT_ONCE = 100_000
SECONDS_BETWEEN = 2
LIMIT_SECONDS = 3600


def write_files(folder: Path, rows: int) -> Path:
    """A folder of parquet files with texts and labels."""
    folder.mkdir()
    drawn = texts(rows)
    for number in range(FILES):
        schema = pa.schema({"text": pa.string(), "label": pa.string()})
        with parquet.ParquetWriter(folder / f"part{number}.parquet", schema) as file:
            left = rows // FILES
            while left:
                part = list(itertools.islice(drawn, min(left, ROWS_AT_ONCE)))
                columns = [list(column) for column in zip(*part, strict=True)]
                file.write_table(pa.table(columns, schema=schema))
                left -= len(part)
    return folder


def measure(folder: Path, base: Path, rows: int) -> dict[str, object]:
    """One training, with its own memory at points of its time, and the highest of it."""
    source = write_files(folder / f"rows{rows}", rows)
    log = folder / f"{rows}.log"
    command = [sys.executable, "-m", "peftcls", "train", str(source), "--model", str(base)]
    settings = ["--batch-size", "4096", "--epochs", "1", "--max-length", "64", "--rank", "4"]
    started = time.monotonic()
    curve: list[tuple[int, float]] = []
    with log.open("w") as said:
        running = subprocess.Popen(
            [*command, *settings, "--out", str(folder / f"adapter{rows}")],
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while running.poll() is None:
            time.sleep(SECONDS_BETWEEN)
            curve.append((round(time.monotonic() - started), round(own_mib(running.pid))))
            if curve[-1][0] > LIMIT_SECONDS:
                running.kill()
    print(log.read_text(encoding="utf-8")[-3000:])
    if running.returncode:
        sys.exit(f"peftcls train ended with {running.returncode}")
    peak = max(mib for _, mib in curve)
    print(f"{rows} rows: {curve[-1][0]} s, {peak} MiB at the peak", flush=True)
    return {
        "seconds": curve[-1][0],
        "peak_own_mib": peak,
        "seconds_and_own_mib": curve[:: max(1, len(curve) // 40)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        base = tiny_base(folder / "base")
        runs = {str(rows): measure(folder, base, rows) for rows in sorted(options.rows)}
    machine = {"commit": commit(), **versions("torch", "transformers", "datasets", "pyarrow")}
    RESULTS.write_text(json.dumps({"runs": runs, **machine}, indent=1) + "\n")

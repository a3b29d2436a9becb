"""`peftcls predict` on a long table of short rows: processor seconds, memory, an interruption.

    python benchmarks/million_rows.py --rows 50000 100000 200000

A tiny base with random weights and texts drawn from a seed are made here, so that reading and
writing rows is measured and not the model. For each number of rows the memory of the process is
read every half second: its own pages, without those of files, which the system takes back when it
needs them. The smallest table is then answered again, the process is killed in the middle, and the
answers after `--resume` are compared with those of the run before, byte for byte. Results go to
benchmarks/results/million_rows.json.
"""

import argparse
import csv
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from real_data import commit, versions
from transformers import AutoTokenizer, BertConfig, BertModel

import peftcls
from peftcls.demo import BASE_FOLDER
from peftcls.inference.answer_parts import CHUNK_ROWS

RESULTS = Path(__file__).parent / "results" / "million_rows.json"
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
WORDS = [
    "patient",
    "prize",
    "stock",
    "drug",
    "lunch",
    "bank",
    "call",
    "free",
    "galaxy",
    "rates",
    "winner",
    "fell",
    "doctor",
    "today",
    "see",
    "you",
    "the",
    "a",
    "of",
    "and",
    "was",
    "given",
    "now",
    "study",
    "treatment",
    "market",
    "radio",
    "asthma",
    "trial",
]
# Points of a memory curve that are kept.
MAX_POINTS = 12


def texts(rows: int) -> Iterator[tuple[str, str]]:
    """Short texts and their labels, the same ones each time."""
    drawn = random.Random(0)
    for number in range(rows):
        words = drawn.choices(WORDS, k=drawn.randint(3, 20))
        is_medical = "patient" in words or "drug" in words
        yield f"{' '.join(words)} {number}", "yes" if is_medical else "no"


def write_table(path: Path, rows: int) -> Path:
    """A csv file with a number and a text in each row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "text"])
        table.writerows([number, text] for number, (text, _) in enumerate(texts(rows)))
    return path


def tiny_base(folder: Path) -> Path:
    """An encoder of one layer with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
    base_config = BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES
    )
    BertModel(base_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path) -> Path:
    """A head on a tiny base, learnt from a few rows."""
    base = tiny_base(folder / "base")
    rows = [{"text": text, "label": label} for text, label in texts(200)]
    task = peftcls.Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    config = peftcls.TrainConfig(folder / "adapter", epochs=1)
    model = peftcls.train_only(model, task, "head")
    peftcls.Trainer(model, task, tokenizer, config).fit(rows)
    return folder / "adapter"


def command(directory: Path, source: Path, out: Path) -> list[str]:
    """What a user types."""
    arguments = ["predict", str(directory), str(source), "--out", str(out)]
    return [sys.executable, "-m", "peftcls", *arguments]


def own_mib(process: int) -> float:
    """A process's own pages in memory; 0 where it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def answered(part: Path) -> int:
    """How many answers are in the partial output, up to the last chunk."""
    return CHUNK_ROWS * sum(1 for _ in part.glob("*.jsonl"))


def measure(directory: Path, folder: Path, rows: int) -> dict[str, object]:
    """One run, with the memory at so many answers."""
    source = write_table(folder / f"{rows}.csv", rows)
    out = folder / f"{rows}_answers.csv"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = subprocess.Popen(command(directory, source, out), stdout=subprocess.DEVNULL)
    curve: list[tuple[int, float]] = []
    while running.poll() is None:
        time.sleep(0.5)
        curve.append((answered(Path(f"{out}.part")), round(own_mib(running.pid), 1)))
    if running.returncode:
        sys.exit(f"peftcls predict ended with {running.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The last memory that was seen at each number of answers.
    last_seen = {done: mib for done, mib in curve if done and mib}
    points = sorted(last_seen.items())
    peak = max(mib for _, mib in curve)
    print(f"{rows} rows: {busy:.0f} processor seconds, {peak:.0f} MiB at the peak", flush=True)
    return {
        "processor_seconds": round(busy, 1),
        "peak_own_mib": peak,
        "answers_and_own_mib": points[:: max(1, len(points) // MAX_POINTS)],
    }


def interrupt(directory: Path, folder: Path, rows: int) -> dict[str, object]:
    """Kill a run when half of the rows are answered, resume it, and compare with the whole run."""
    source = folder / f"{rows}.csv"
    whole = folder / f"{rows}_answers.csv"
    out = folder / "again.csv"
    running = subprocess.Popen(command(directory, source, out), stdout=subprocess.DEVNULL)
    done = 0
    while running.poll() is None and done < rows // 2:
        time.sleep(0.2)
        done = answered(Path(f"{out}.part"))
    running.send_signal(signal.SIGKILL)
    running.wait()
    if out.is_file():
        sys.exit("the run was over before it could be killed; give more rows.")
    subprocess.run(
        [*command(directory, source, out), "--resume"], stdout=subprocess.DEVNULL, check=True
    )
    return {
        "rows": rows,
        "killed_after_rows": done,
        "same_bytes": out.read_bytes() == whole.read_bytes(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        directory = adapter(folder)
        runs = {str(rows): measure(directory, folder, rows) for rows in sorted(options.rows)}
        interruption = interrupt(directory, folder, min(options.rows))
    print(interruption)
    machine = {
        "commit": commit(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **versions("torch", "transformers", "datasets"),
    }
    results = {"runs": runs, "interruption": interruption, **machine}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")

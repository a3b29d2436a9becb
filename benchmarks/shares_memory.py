"""How much of a large base each process holds, whole and in shares, on CPUs, and what was planned.

    python benchmarks/shares_memory.py --out results/shares_memory.json

Makes a random base in the shape of a Llama with a billion parameters (2 GB on disk), trains two
steps of a LoRA adapter on one process and on several, and prints what each process has held: the
part of the base's numbers, and resident memory (anonymous, and all of it) when it is loaded, after
two steps, and at its peak. Beside the growth to the peak stands what `peftcls plan` says.
Pages of the base's files are shared by the processes of a machine until they are written to, so
the memory of a CPU says less than the numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 5504,
    "vocab_size": 32000,
}
ROWS = 8
ROWS_OF_A_STEP = 4
ROW_TOKENS = 64
RANK = 8
LIMIT_SECONDS = 900


def main() -> None:
    """Make the base and start the processes, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.base:
        measure(options.base)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_base(folder)
        found = {str(count): started(count, folder) for count in options.processes}
        for count, processes in found.items():
            planned = planned_mib(folder, int(count))
            for process in processes:
                growth = process["peak_anonymous_mib"] - process["anonymous_mib_before"]
                process["planned_mib"] = planned
                process["planned_of_growth"] = round(planned / growth, 2)
    whole = found["1"][0]["held"] if "1" in found else None
    for count, processes in found.items():
        for number, process in enumerate(processes):
            share = f" ({process['held'] / whole:.2f} of the base)" if whole else ""
            print(f"{count} processes, number {number}: {json.dumps(process)}{share}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def make_base(folder: str) -> None:
    """Write a random model and a tokenizer, as a hub would hold them."""
    import transformers

    from peftcls.models.named_bases import find_named_base

    tokenizer = transformers.AutoTokenizer.from_pretrained(find_named_base("minilm"))
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(**SHAPE, pad_token_id=tokenizer.pad_token_id)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.save_pretrained(folder)


def planned_mib(base: str, count: int) -> int:
    """What a plan says that each of so many processes needs."""
    import peftcls

    plan = peftcls.plan_memory(
        base,
        peftcls.Classification(labels=("0", "1"), max_length=ROW_TOKENS),
        gpus=count,
        gpu_memory=80,
        rank=RANK,
        micro_batch_tokens=ROWS_OF_A_STEP * ROW_TOKENS,
    )
    way = next(way for way in plan.ways if way.in_shares or count == 1)
    return sum(way.parts.values()) // 2**20


def started(count: int, base: str) -> list[dict[str, Any]]:
    """What each of so many processes has held."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    ended = subprocess.run(
        [sys.executable, *launcher, __file__, "--base", base],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or len(lines) != count:
        sys.exit(ended.stderr)
    return sorted((json.loads(line) for line in lines), key=lambda found: int(found["process"]))


def measure(base: str) -> None:
    """Load the base, take two steps, and print what this process holds."""
    import peftcls
    from peftcls.engine.sharding import own_parts

    rows = [{"text": f"word {n} " * ROW_TOKENS, "label": str(n % 2)} for n in range(ROWS)]
    task = peftcls.Classification(max_length=ROW_TOKENS).learn(rows)
    peak = Peak()
    before = memory()
    model, tokenizer = peftcls.load_base(base, task, dtype=torch.bfloat16, shard=True)
    at_rest = memory()
    held = sum(part.numel() for _, part in own_parts(model.base_model.named_parameters()))
    model = peftcls.attach_lora(model, task, rank=RANK)
    config = peftcls.TrainConfig(
        tempfile.mkdtemp(),
        epochs=1,
        batch_size=ROWS_OF_A_STEP,
        learning_rate=1e-4,
        head_init="random",
    )
    started_at = time.perf_counter()
    with peftcls.Trainer(model, task, tokenizer, config) as trainer:
        trainer.dry_run(rows)
    trained = memory()
    found = {
        "process": os.environ.get("RANK", "0"),
        "held": held,
        "anonymous_mib_before": before[0],
        "anonymous_mib": at_rest[0],
        "resident_mib": at_rest[1],
        "anonymous_mib_after_steps": trained[0],
        "peak_anonymous_mib": peak.anonymous,
        "seconds_of_two_steps": round(time.perf_counter() - started_at, 1),
    }
    print(json.dumps(found), flush=True)


def memory() -> tuple[int, int]:
    """Anonymous and resident memory of this process now, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, resident = (int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "VmRSS"))
    return anonymous, resident


class Peak(threading.Thread):
    """Watches the anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0
        self.start()

    def run(self) -> None:
        """Look every hundredth of a second."""
        while True:
            self.anonymous = max(self.anonymous, memory()[0])
            time.sleep(0.01)


if __name__ == "__main__":
    main()

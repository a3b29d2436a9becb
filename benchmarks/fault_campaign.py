"""Kill a training at every file boundary and at random moments, damage its checkpoints, fill its disk: is anything lost?

    python benchmarks/fault_campaign.py --seed 0 --kills 300

A tiny training with dropout, an evaluation and a checkpoint every second step is killed as by `kill -9` before every file
operation that it makes, and at random moments (up to three times in a row), and taken up again. Every file that it ends
with must be, byte for byte, that of the training that was never killed. Children are forked from a parent that has imported
everything, so that a training takes a second. Figures go to benchmarks/results/faults.json.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
)

import numpy as np
import torch
import transformers

import peftcls.api as peftcls
from peftcls.data.reading import as_dataset
from peftcls.demo import BASE_FOLDER
from peftcls.errors import RunStoppedError
from peftcls.models.adapter_folder import read_manifest
from peftcls.models.folder_safety import check_adapter_folder
from peftcls.training import checkpoint

RESULTS = Path(__file__).parent / "results" / "faults.json"
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
FLIPS = 40  # in each file of a checkpoint
MOST_IN_A_ROW = 3
LEFT_BYTES = 8192  # on the full disk
ROWS = [
    {"text": f"{text} {n}", "label": label}
    for n in range(2)
    for label, texts in {
        "yes": (
            "the patient recovered",
            "a new drug was given",
            "the drug and the patient",
            "a patient was given a new drug and recovered",
        ),
        "no": (
            "stock prices fell",
            "the bank raised rates",
            "radio waves from a galaxy far away and away",
            "see you at lunch",
        ),
    }.items()
    for text in texts
]


def make_base(folder: Path) -> str:
    """A tiny decoder with random weights and the bundled tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE_FOLDER)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(base: str, out: Path) -> None:
    """The training, taken up again if there is a checkpoint."""
    rows = as_dataset(ROWS, "rows")
    task = peftcls.Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=2, dropout=0.3)
    config = peftcls.TrainConfig(
        out, epochs=2, batch_size=4, micro_batch_size=2, eval_every=2, learning_rate=1e-2
    )
    with peftcls.Trainer(model, task, tokenizer, config) as trainer:
        trainer.fit(rows, rows, resume=True)


def die_before(event_number: int, out: Path) -> list[int]:
    """From now on the file operations under a folder are counted; before the one of that number the process is killed."""
    count = [0]

    def happen() -> None:
        count[0] += 1
        if count[0] == event_number:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(name: str, arguments: tuple) -> None:
        if name in FILE_EVENTS:
            within = (
                name in ("os.remove", "os.rmdir") and arguments[1] != -1
            )  # as rmtree takes files away, by the folder that is open
            if within or (
                isinstance(arguments[0], str | os.PathLike)
                and str(arguments[0]).startswith(str(out))
            ):
                happen()

    flush = os.fsync

    def fsync(opened: Any) -> None:
        happen()
        flush(opened)
        happen()

    os.fsync = fsync
    sys.addaudithook(heard)
    return count


def forked(job: Callable[[], None], log: Path, *, seconds: float | None = None) -> int:
    """Run a job in a child, killed after so many seconds. Returns its exit code; of a killed one it is negative."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


class Campaign:
    """What a training that was never interrupted left, and how the others compare."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.log = folder, np.random.default_rng(seed), folder / "log"
        self.base, self.problems, self.kills = make_base(folder / "base"), list[str](), 0
        started = time.perf_counter()
        self.code(self.run("whole"), "the uninterrupted training")
        self.seconds = time.perf_counter() - started
        self.whole = contents(folder / "whole")

    def run(self, name: str, **settings: Any) -> int:
        """The training in a folder of that name."""
        return forked(lambda: train(self.base, self.folder / name), self.log, **settings)

    def code(self, found: int, what: str, expected: int = 0) -> None:
        """Note a run that ended otherwise than it should."""
        if found != expected:
            self.problems.append(f"{what}: exit code {found}, expected {expected}")

    def judge(self, name: str, what: str) -> None:
        """Finish the training of that name, and compare what it leaves; then remove it."""
        if (self.folder / name / "peftcls.json").exists():
            try:
                check_adapter_folder(self.folder / name, read_manifest(self.folder / name))
            except ValueError as error:
                self.problems.append(f"{what}: a manifest over a broken adapter: {error}")
        self.code(self.run(name), f"{what}, taken up again")
        if (found := contents(self.folder / name)) != self.whole:
            other = sorted(
                file
                for file in found.keys() | self.whole
                if found.get(file) != self.whole.get(file)
            )
            self.problems.append(f"{what}: {other} are not those of the uninterrupted training")
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def count_events(self) -> int:
        """How many file operations the training makes in its folder."""
        out, told = self.folder / "counted", self.folder / "events"

        def job() -> None:
            count = die_before(0, out)
            train(self.base, out)
            told.write_text(str(count[0]))

        self.code(forked(job, self.log), "the counted training")
        shutil.rmtree(out)
        return int(told.read_text())

    def kill_at_event(self, number: int) -> None:
        """Kill one training before a file operation."""

        def job() -> None:
            die_before(number, self.folder / "event")
            train(self.base, self.folder / "event")

        self.code(forked(job, self.log), f"killed before file operation {number}", -signal.SIGKILL)
        self.kills += 1
        self.judge("event", f"killed before file operation {number}")

    def kill_at_random(self) -> None:
        """Kill one training at a random moment, and most of the times the one that goes on from it too."""
        moments = []
        for _ in range(int(self.random.integers(1, MOST_IN_A_ROW + 1))):
            moments.append(float(self.random.uniform(0, self.seconds)))
            if self.run("random", seconds=moments[-1]) == 0:
                break
            self.kills += 1
        self.judge("random", f"killed after {', '.join(f'{moment:.3f}' for moment in moments)} s")

    def cut(self, name: str) -> list[Path]:
        """A training that was killed in the midst of its third part. Returns its two checkpoints, newest first."""

        def job() -> None:
            write, out = checkpoint.write_checkpoint, self.folder / name

            def write_and_die(*arguments: Any) -> None:
                write(*arguments)
                if len(checkpoint.find_checkpoints(out)) == checkpoint.KEPT:
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.write_checkpoint = write_and_die  # type: ignore[assignment]
            train(self.base, out)

        self.code(forked(job, self.log), "the cut training", -signal.SIGKILL)
        return checkpoint.find_checkpoints(self.folder / name)

    def damage_checkpoints(self) -> dict[str, int]:
        """Damage the files of a checkpoint in every way, and see that it is found each time; a few runs go on from the older one."""
        newest, older = self.cut("damaged")
        made = found = taken_up = 0
        for file in sorted(newest.iterdir()):
            bits = file.read_bytes()
            places = self.random.integers(0, len(bits), FLIPS)
            ways = {
                f"bit {place} flipped": bits[:place]
                + bytes([bits[place] ^ (1 << self.random.integers(8))])
                + bits[place + 1 :]
                for place in places
            }
            for left in (0, 1, len(bits) // 2, len(bits) - 1):
                ways[f"cut to {left} bytes"] = bits[:left]
            ways |= {
                "a byte added": bits + b"\0",
                "torn: its last half zeros": bits[: len(bits) // 2].ljust(len(bits), b"\0"),
            }
            for way, changed in [*ways.items(), ("deleted", None)]:
                file.unlink()
                if changed is not None:
                    file.write_bytes(changed)
                made, found = made + 1, found + (checkpoint.damage(newest) is not None)
                if checkpoint.damage(newest) is None:
                    self.problems.append(f"{file.name}: {way}, and it was not found")
                if way in ("deleted", "torn: its last half zeros"):
                    shutil.copytree(self.folder / "damaged", self.folder / "copy")
                    self.judge("copy", f"{file.name}: {way}")
                    taken_up += 1
                file.write_bytes(bits)
        if checkpoint.damage(newest) or checkpoint.damage(older):
            self.problems.append("a checkpoint that was put back as it was counts as damaged")
        return {"made": made, "found": found, "taken_up_from_the_older_one": taken_up}

    def fill_disk(self) -> dict[str, Any]:
        """A disk that is full from the beginning, one that fills up in the midst, and files that may not grow."""
        found: dict[str, Any] = {}
        self.cut("limited")
        before = contents(self.folder / "limited")
        largest = max(len(bits) for name, bits in before.items())

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))
            with self.one_sentence("cannot be written"):
                train(self.base, self.folder / "limited")

        self.code(forked(limited, self.folder / "limited.log"), "files that may not grow")
        if {
            n: b
            for n, b in contents(self.folder / "limited").items()
            if not Path(n).name.startswith(".")
        } != before:
            self.problems.append(
                "files that may not grow: the checkpoints are not those from before"
            )
        self.judge("limited", "files that may not grow")
        found["files that may not grow"] = (
            "the checkpoints from before are whole, and the training goes on from them"
        )
        disk = self.folder / "disk"
        disk.mkdir()
        size = 8 * largest + 4 * sum(map(len, self.whole.values()))
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True
        ).returncode:
            return {**found, "small disk": "not tried: nothing can be mounted here"}
        try:
            self.cut("disk/run")
            before = contents(disk / "run")
            (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - LEFT_BYTES))

            def full() -> None:
                with self.one_sentence("MiB free, expected"):
                    train(self.base, disk / "run")

            self.code(forked(full, self.log), "a full disk")
            if contents(disk / "run") != before:
                self.problems.append("a full disk: the checkpoints are not those from before")
            (disk / "other").unlink()
            self.judge("disk/run", "a full disk with room made")
            found["small disk"] = (
                "refused before a step was taken; with room made, the training goes on"
            )
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return found

    @contextlib.contextmanager
    def one_sentence(self, expected: str) -> Any:
        """The training within it must end with a sentence that has this in it."""
        try:
            yield
        except RunStoppedError as error:
            if expected not in str(error):
                raise
        else:
            raise AssertionError(f"nothing was said of {expected}")


def main() -> None:
    """Run the campaign, print and write its figures; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the moments and of the damaged bits (0)"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=300,
        help="in all; every file operation is among them if there are as many (300)",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"where the figures go ({RESULTS.name})"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed)
        events = campaign.count_events()
        chosen = (
            range(1, events + 1)
            if options.kills >= events
            else sorted(
                campaign.random.choice(
                    np.arange(1, events + 1), (options.kills + 1) // 2, replace=False
                ).tolist()
            )
        )
        for number in chosen:
            campaign.kill_at_event(number)
        while campaign.kills < options.kills:
            campaign.kill_at_random()
        damaged, disk = campaign.damage_checkpoints(), campaign.fill_disk()
        shutil.copy(campaign.log, Path(tempfile.gettempdir()) / "fault_campaign.log")
    figures = {
        "seed": options.seed,
        "kills": campaign.kills,
        "file_operations": events,
        "kills_before_a_file_operation": len(chosen),
        "kills_at_random": campaign.kills - len(chosen),
        "damaged_checkpoints": damaged,
        "full_disk": disk,
        "problems": campaign.problems,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {
            name: version(name)
            for name in ("torch", "safetensors", "transformers", "peft", "accelerate")
        },
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    sys.exit(1 if campaign.problems else 0)


if __name__ == "__main__":
    main()

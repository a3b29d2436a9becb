"""Kill a training at file operations and at random, damage its checkpoints, fill its disk.

    python benchmarks/fault_campaign.py --seed 0 --kills 300

A tiny training with dropout, an evaluation and a checkpoint every second step is killed as by
`kill -9` before every file operation that it makes, and at random moments (up to three times in a
row), and resumed. Every file at its end must be, byte for byte, that of the training that was never
killed. Children are forked from a parent that has imported everything, so that a training takes a
second. Figures go to benchmarks/results/faults.json.
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
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
)

import numpy as np
import torch
import transformers
from real_data import versions

import peftcls.api as peftcls
from peftcls.data.reading import as_dataset
from peftcls.demo import BASE_FOLDER
from peftcls.errors import RunStoppedError
from peftcls.models.adapter_manifest import read_manifest
from peftcls.models.folder_safety import check_adapter_folder
from peftcls.training import checkpoint

RESULTS = Path(__file__).parent / "results" / "faults.json"
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
# In each file of a checkpoint.
FLIPPED_BITS = 40
MAX_KILLS_IN_A_ROW = 3
# On the full disk.
FREE_BYTES = 8192
TEXTS = {
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
}


def make_rows() -> list[dict[str, str]]:
    """Sixteen different texts with two labels."""
    rows = []
    for number in range(2):
        for label, texts in TEXTS.items():
            rows += [{"text": f"{text} {number}", "label": label} for text in texts]
    return rows


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
    """Train, from the newest checkpoint if there is one."""
    rows = as_dataset(make_rows(), "rows")
    task = peftcls.Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(base, task)
    model = peftcls.attach_lora(model, task, rank=2, dropout=0.3)
    config = peftcls.TrainConfig(
        out, epochs=2, batch_size=4, micro_batch_size=2, eval_every=2, learning_rate=1e-2
    )
    with peftcls.Trainer(model, task, tokenizer, config) as trainer:
        trainer.fit(rows, rows, resume=True)


def die_before(event_number: int, out: Path) -> list[int]:
    """Kill this process before a file operation in a folder.

    Args:
        event_number: of the file operation, from 1; 0 for none.
        out: the folder.

    Returns:
        A list whose only item counts the file operations.
    """
    count = [0]

    def happen() -> None:
        count[0] += 1
        if count[0] == event_number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(name: str, arguments: tuple) -> None:
        if name in FILE_EVENTS and is_in_folder(name, arguments, out):
            happen()

    flush = os.fsync

    def fsync(opened: Any) -> None:
        happen()
        flush(opened)
        happen()

    os.fsync = fsync
    sys.addaudithook(hear)
    return count


def is_in_folder(name: str, arguments: tuple, folder: Path) -> bool:
    """Whether an audited file operation is in a folder."""
    # rmtree removes files relative to the open folder.
    if name in ("os.remove", "os.rmdir") and arguments[1] != -1:
        return True
    path = arguments[0]
    return isinstance(path, str | os.PathLike) and str(path).startswith(str(folder))


def forked(job: Callable[[], None], log: Path, *, seconds: float | None = None) -> int:
    """Run a job in a child process.

    Args:
        job: what the child does.
        log: the file that gets its output.
        seconds: until the child is killed.

    Returns:
        The exit code; negative for a child that was killed.
    """
    child = os.fork()
    if child == 0:
        _run_and_exit(job, log)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _run_and_exit(job: Callable[[], None], log: Path) -> None:
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


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def without_hidden(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files whose names do not begin with a dot."""
    return {name: data for name, data in files.items() if not Path(name).name.startswith(".")}


class Campaign:
    """Interrupts trainings and compares what they leave with an uninterrupted one.

    Args:
        folder: of all trainings.
        seed: of the moments and of the damaged bits.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.log = folder / "log"
        self.base = make_base(folder / "base")
        self.problems: list[str] = []
        self.kills = 0
        started = time.perf_counter()
        self.expect_code(self.run("whole"), "the uninterrupted training")
        self.seconds = time.perf_counter() - started
        self.whole = contents(folder / "whole")

    def run(self, name: str, **settings: Any) -> int:
        """Train in a folder of that name in a child; its exit code."""

        def job() -> None:
            train(self.base, self.folder / name)

        return forked(job, self.log, **settings)

    def expect_code(self, code: int, what: str, expected: int = 0) -> None:
        """Note a problem if a run ended with another exit code than it should."""
        if code != expected:
            self.problems.append(f"{what}: exit code {code}, expected {expected}")

    def judge(self, name: str, what: str) -> None:
        """Resume the training of that name, compare the files that it leaves, and remove them."""
        folder = self.folder / name
        if (folder / "peftcls.json").exists():
            try:
                check_adapter_folder(folder, read_manifest(folder))
            except ValueError as error:
                self.problems.append(f"{what}: a manifest over a broken adapter: {error}")
        self.expect_code(self.run(name), f"{what}, taken up again")
        files = contents(folder)
        if files != self.whole:
            names = sorted(files.keys() | self.whole)
            different = [file for file in names if files.get(file) != self.whole.get(file)]
            self.problems.append(f"{what}: {different} are not those of the uninterrupted training")
        shutil.rmtree(folder, ignore_errors=True)

    def count_events(self) -> int:
        """How many file operations the training makes in its folder."""
        out = self.folder / "counted"
        counter = self.folder / "events"

        def job() -> None:
            count = die_before(0, out)
            train(self.base, out)
            counter.write_text(str(count[0]))

        self.expect_code(forked(job, self.log), "the counted training")
        shutil.rmtree(out)
        return int(counter.read_text())

    def kill_at_event(self, number: int) -> None:
        """Kill one training before a file operation."""

        def job() -> None:
            die_before(number, self.folder / "event")
            train(self.base, self.folder / "event")

        what = f"killed before file operation {number}"
        self.expect_code(forked(job, self.log), what, -signal.SIGKILL)
        self.kills += 1
        self.judge("event", what)

    def kill_at_random(self) -> None:
        """Kill one training at a random moment, and often the resumed one too."""
        moments = []
        for _ in range(int(self.random.integers(1, MAX_KILLS_IN_A_ROW + 1))):
            moments.append(float(self.random.uniform(0, self.seconds)))
            if self.run("random", seconds=moments[-1]) == 0:
                break
            self.kills += 1
        shown = ", ".join(f"{moment:.3f}" for moment in moments)
        self.judge("random", f"killed after {shown} s")

    def cut(self, name: str) -> list[Path]:
        """Kill a training when it has two checkpoints; the checkpoints, newest first."""
        out = self.folder / name

        def job() -> None:
            write = checkpoint.write_checkpoint

            def write_and_die(*arguments: Any, **settings: Any) -> None:
                write(*arguments, **settings)
                if len(checkpoint.find_checkpoints(out)) == checkpoint.KEPT_CHECKPOINTS:
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.write_checkpoint = write_and_die  # type: ignore[assignment]
            train(self.base, out)

        self.expect_code(forked(job, self.log), "the cut training", -signal.SIGKILL)
        return checkpoint.find_checkpoints(out)

    def damage_checkpoints(self) -> dict[str, int]:
        """Damage the files of a checkpoint in every way; each damage must be found.

        After some, the training is resumed from the older checkpoint.
        """
        newest, older = self.cut("damaged")
        made = 0
        found = 0
        resumed = 0
        for file in sorted(newest.iterdir()):
            intact = file.read_bytes()
            for damage, changed in self.damaged(intact).items():
                file.unlink()
                if changed is not None:
                    file.write_bytes(changed)
                made += 1
                if checkpoint.find_damage(newest) is None:
                    self.problems.append(f"{file.name}: {damage}, and it was not found")
                else:
                    found += 1
                if damage in ("deleted", "torn: its last half zeros"):
                    shutil.copytree(self.folder / "damaged", self.folder / "copy")
                    self.judge("copy", f"{file.name}: {damage}")
                    resumed += 1
                file.write_bytes(intact)
        if checkpoint.find_damage(newest) or checkpoint.find_damage(older):
            self.problems.append("a checkpoint that was put back as it was counts as damaged")
        return {"made": made, "found": found, "taken_up_from_the_older_one": resumed}

    def damaged(self, intact: bytes) -> dict[str, bytes | None]:
        """The bytes of a file after each kind of damage; None where the file is deleted."""
        changed: dict[str, bytes | None] = {}
        for position in self.random.integers(0, len(intact), FLIPPED_BITS):
            flipped = bytearray(intact)
            flipped[position] ^= 1 << int(self.random.integers(8))
            changed[f"bit {position} flipped"] = bytes(flipped)
        half = len(intact) // 2
        for length in (0, 1, half, len(intact) - 1):
            changed[f"cut to {length} bytes"] = intact[:length]
        changed["a byte added"] = intact + b"\0"
        changed["torn: its last half zeros"] = intact[:half].ljust(len(intact), b"\0")
        changed["deleted"] = None
        return changed

    def fill_disk(self) -> dict[str, Any]:
        """Train where files may not grow, and on a full disk."""
        self.cut("limited")
        before = contents(self.folder / "limited")
        largest = max(map(len, before.values()))
        found: dict[str, Any] = {"files that may not grow": self.limit_files(before, largest)}
        disk = self.folder / "disk"
        disk.mkdir()
        size = 8 * largest + 4 * sum(map(len, self.whole.values()))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            return {**found, "small disk": "not tried: nothing can be mounted here"}
        try:
            found["small disk"] = self.train_on_full_disk(disk)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return found

    def limit_files(self, before: dict[str, bytes], largest: int) -> str:
        """Resume where a file cannot become as large as a checkpoint's largest file."""
        folder = self.folder / "limited"

        def job() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))
            with self.stops_with("cannot be written"):
                train(self.base, folder)

        what = "files that may not grow"
        self.expect_code(forked(job, self.folder / "limited.log"), what)
        if without_hidden(contents(folder)) != before:
            self.problems.append(f"{what}: the checkpoints are not those from before")
        self.judge("limited", what)
        return "the checkpoints from before are whole, and the training goes on from them"

    def train_on_full_disk(self, disk: Path) -> str:
        """Resume on a full disk, then with room made."""
        self.cut("disk/run")
        before = contents(disk / "run")
        (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - FREE_BYTES))

        def job() -> None:
            with self.stops_with("MiB free, expected"):
                train(self.base, disk / "run")

        self.expect_code(forked(job, self.log), "a full disk")
        if contents(disk / "run") != before:
            self.problems.append("a full disk: the checkpoints are not those from before")
        (disk / "other").unlink()
        self.judge("disk/run", "a full disk with room made")
        return "refused before a step was taken; with room made, the training goes on"

    @contextlib.contextmanager
    def stops_with(self, expected: str) -> Any:
        """The training within it must stop with a sentence that has this in it."""
        try:
            yield
        except RunStoppedError as error:
            if expected not in str(error):
                raise
        else:
            raise AssertionError(f"the training did not stop; expected {expected!r}")


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
        chosen = list(range(1, events + 1))
        if options.kills < events:
            count = (options.kills + 1) // 2
            chosen = sorted(campaign.random.choice(chosen, count, replace=False).tolist())
        for number in chosen:
            campaign.kill_at_event(number)
        while campaign.kills < options.kills:
            campaign.kill_at_random()
        damaged = campaign.damage_checkpoints()
        disk = campaign.fill_disk()
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
        "versions": versions("torch", "safetensors", "transformers", "peft", "accelerate"),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    sys.exit(1 if campaign.problems else 0)


if __name__ == "__main__":
    main()

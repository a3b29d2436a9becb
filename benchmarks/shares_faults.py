"""Kill one of two processes that hold a base in shares, at random, and go on.

    python benchmarks/shares_faults.py --seed 0 --kills 60

The tiny training of `fault_campaign.py` runs on two processes with the base in shares. One of them
is killed as by `kill -9` at a random moment, up to three times in a row; the other one has to end
by itself, with a sentence. Where it waits for the killed one to join the run, it gets SIGTERM after
some seconds, as torchrun would send it. Then two processes go on from the newest checkpoint. Every
file at the end must be, byte for byte, that of the training that was never killed. Figures go to
benchmarks/results/shares_faults.json.
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_campaign import Campaign, _run_and_exit, make_rows
from real_data import versions

import peftcls.api as peftcls
from peftcls.data.reading import as_dataset

RESULTS = Path(__file__).parent / "results" / "shares_faults.json"
PROCESSES = 2
SENTENCE = "another process has ended or does not answer"
LIMIT_SECONDS = 120
# So long a survivor is waited for before it is ended as torchrun would end it.
LAUNCHER_SECONDS = 15


def train(base: str, out: Path) -> None:
    """Train with the base in shares, from the newest checkpoint if there is one."""
    rows = as_dataset(make_rows(), "rows")
    task = peftcls.Classification(max_length=64).learn(rows)
    model, tokenizer = peftcls.load_base(base, task, shard=True)
    model = peftcls.attach_lora(model, task, rank=2, dropout=0.3)
    config = peftcls.TrainConfig(
        out, epochs=2, batch_size=4, micro_batch_size=2, eval_every=2, learning_rate=1e-2
    )
    with peftcls.Trainer(model, task, tokenizer, config) as trainer:
        assert trainer.shares is not None
        trainer.fit(rows, rows, resume=True)


class SharedCampaign(Campaign):
    """Kills one of the processes that hold a base together."""

    ended_as_by_launcher = 0

    def run(self, name: str, *, seconds: float | None = None) -> int:
        """Train in a folder of that name on two processes, and kill one of them after some seconds.

        Returns:
            The exit code if all have the same; that of the killed one if one was killed.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(PROCESSES):
            child = os.fork()
            if child == 0:
                self._be(rank, port, name)
            children.append(child)
        if seconds is not None:
            time.sleep(seconds)
            victim = int(self.random.integers(PROCESSES))
            os.kill(children[victim], signal.SIGKILL)
        if seconds is None:
            codes = [self._ended(child, LIMIT_SECONDS) for child in children]
            return max(codes, key=abs)
        code = self._ended(children[victim], LIMIT_SECONDS)
        survivor = self._ended(children[1 - victim], LAUNCHER_SECONDS)
        if code == -signal.SIGKILL and survivor not in (0, 1, -signal.SIGTERM, 143):
            self.problems.append(f"{name}: the other process ended with {survivor}")
        return code

    def _be(self, rank: int, port: int, name: str) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(PROCESSES),
            LOCAL_WORLD_SIZE=str(PROCESSES),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        _run_and_exit(lambda: train(self.base, self.folder / name), self.log)

    def _ended(self, child: int, limit_seconds: int) -> int:
        """The exit code of a child; one that waits too long gets SIGTERM, and then SIGKILL."""
        until = time.monotonic() + limit_seconds
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        if limit_seconds == LIMIT_SECONDS:
            self.problems.append("a process did not end")
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGALRM
        self.ended_as_by_launcher += 1
        os.kill(child, signal.SIGTERM)
        return self._ended(child, LIMIT_SECONDS)


def main() -> None:
    """Run the campaign, print and write its figures; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign = SharedCampaign(Path(folder), options.seed)
        while campaign.kills < options.kills:
            campaign.kill_at_random()
            print(f"{campaign.kills} kills, {len(campaign.problems)} problems", flush=True)
        found: dict[str, Any] = {
            "kills": campaign.kills,
            "problems": campaign.problems,
            "ended_as_by_launcher": campaign.ended_as_by_launcher,
            "sentences": campaign.log.read_text(errors="replace").count(SENTENCE),
            "seconds_of_a_run": round(campaign.seconds, 1),
            "seed": options.seed,
            **versions("torch", "transformers", "peft"),
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(bool(campaign.problems))


if __name__ == "__main__":
    main()

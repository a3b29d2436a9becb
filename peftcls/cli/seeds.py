"""`peftcls train --seeds`: the same run with several seeds, and what it scores on average."""

import contextlib
import dataclasses
import gc
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from peftcls.cli.running import train
from peftcls.cli.tables import Tables, is_first_process, print_once
from peftcls.cli.train_setup import TrainOptions, build_model, given_candidate, load_and_prepare
from peftcls.metrics import mean_interval
from peftcls.quality.findings import Examination
from peftcls.report.wording import is_share, write_score
from peftcls.tasks.base import Task
from peftcls.training.config import TrainConfig
from peftcls.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class SeedScores:
    """The scores of the same run with several seeds, on the same test rows.

    Args:
        by_seed: the scores by name, of each seed.
    """

    by_seed: Mapping[int, Mapping[str, float]]

    def beside(self, seed: int, scores: Mapping[str, float]) -> "SeedScores":
        """These, and before them the scores of another seed."""
        return SeedScores({seed: scores, **self.by_seed})

    def summary(self, name: str) -> str:
        """The mean of a score over the seeds with its 95 % t-interval, in words."""
        mean, (low, high) = mean_interval([scores[name] for scores in self.by_seed.values()])
        if is_share(name):
            low, high = max(low, 0.0), min(high, 1.0)
        return f"{write_score(mean, name)} ({write_score(low, name)} to {write_score(high, name)})"

    def __str__(self) -> str:
        seeds = list(self.by_seed)
        lines = []
        for name in self.by_seed[seeds[0]]:
            line = {"score": name, "mean (95 % t-interval)": self.summary(name)}
            for seed, scores in self.by_seed.items():
                line[f"seed {seed}"] = write_score(scores[name], name)
            lines.append(line)
        return f"{len(seeds)} seeds on the same rows\n{pd.DataFrame(lines).to_string(index=False)}"


def train_other_seeds(
    options: TrainOptions,
    task: Task,
    tables: Tables,
    examination: Examination,
    config: TrainConfig,
) -> SeedScores:
    """Run with the seeds that follow that of --seed, score each run, and keep no folder of them.

    The rows are the same for every seed: the seeds differ in new weights, order and dropout.
    """
    assert options.seeds is not None, "--seeds is given"
    scores = {}
    with scratch_folder(options.out, "seeds") as folder:
        for seed in range(options.seed + 1, options.seed + options.seeds):
            own = dataclasses.replace(config, output_dir=folder / str(seed), seed=seed)
            scores[seed] = _scores_of_seed(options, task, tables, examination, own)
            score = task.score_names[0]
            print_once(f"seed {seed}: {score} {write_score(scores[seed][score], score)}")
            # The model is part of reference cycles; the next base needs its memory.
            gc.collect()
    return SeedScores(scores)


def _scores_of_seed(
    options: TrainOptions,
    task: Task,
    tables: Tables,
    examination: Examination,
    config: TrainConfig,
) -> dict[str, float]:
    """The scores of one run on the test rows."""
    base, tokenizer, rows = load_and_prepare(options, task, tables, examination, seed=config.seed)
    model = build_model(options, task, base, given_candidate(options, config), seed=config.seed)
    trainer = Trainer(model, task, tokenizer, config)
    train(trainer, rows, resume=False, calibrate=options.calibrate, shows_warnings=False)
    return trainer.evaluate(tables.test)


@contextlib.contextmanager
def scratch_folder(out: Path, name: str) -> Iterator[Path]:
    """A folder in --out for runs that are not kept; what an earlier command left is removed.

    Of several processes the first one removes: another would remove what that one has begun.

    Args:
        out: the value of --out; it is removed too if it stays empty.
        name: of the folder, without the dot that it begins with.
    """
    folder = out / f".{name}"
    if is_first_process():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        if is_first_process():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                out.rmdir()

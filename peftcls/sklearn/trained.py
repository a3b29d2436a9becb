"""A trained adapter that an estimator keeps: the files of its folder, without the base."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcls.data.reading import Row, as_dataset
from peftcls.engine.model_state import Quantize
from peftcls.inference.loading import load_predictor
from peftcls.inference.predictor import Predictor
from peftcls.logs import without_bars
from peftcls.models.adapter_folder import MANIFEST, read_manifest
from peftcls.models.base_model import load_base
from peftcls.models.lora_injection import attach_lora
from peftcls.models.model_card import CARD
from peftcls.tasks.base import Task
from peftcls.training.config import TrainConfig
from peftcls.training.trainer import Trainer

PREFIX = "peftcls-"
"""Of the names of temporary folders."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an estimator trains; what is not among the settings is left to the package's defaults.

    Args:
        base: as of `load_base`.
        quantize: as of `load_base`.
        adapter: settings of `attach_lora`.
        training: settings of `TrainConfig`.
        seed: of new weights, of the order of the rows and of dropout.
        output_dir: the adapter folder; None for a temporary one.
        verbose: whether progress bars are shown.
    """

    base: str | Path
    quantize: Quantize | None
    adapter: Mapping[str, Any]
    training: Mapping[str, Any]
    seed: int
    output_dir: str | Path | None
    verbose: bool


class TrainedAdapter:
    """A trained adapter in memory, which answers rows.

    Its pickle holds the files of the adapter folder, and nothing of the base. What comes out of a
    pickle loads the base when it first answers.

    Args:
        files: of the adapter folder, by name.
        base: that it was trained on, as of `load_base`.
        predictor: with the trained model; None to load it from the files.
        history: the log of the training.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        base: str | Path,
        predictor: Predictor | None,
        history: Sequence[dict[str, float]],
    ) -> None:
        self.files = dict(files)
        self.base = base
        self.history = list(history)
        self._predictor = predictor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_predictor": None}

    def predictor(self, base: str | Path) -> Predictor:
        """The predictor; loaded now if that was not done yet.

        Args:
            base: where the base model is now.
        """
        if self._predictor is None:
            moved_to = None if base == self.base else base
            with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
                self.save(folder)
                loaded = load_predictor(folder, base=moved_to)
            # Without the folder, which is removed: nothing can be loaded from it again.
            self._predictor = Predictor(loaded.model, loaded.task, loaded.tokenizer)
        return self._predictor

    def save(self, directory: str | Path) -> Path:
        """Write the adapter folder, the manifest last, and return its path."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # Without a manifest a folder is never loaded, so that half of two adapters is not either.
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in sorted(self.files, key=lambda name: name == MANIFEST):
            (folder / name).write_bytes(self.files[name])
        return folder


def train_adapter(task: Task, rows: Sequence[Row], settings: Settings) -> TrainedAdapter:
    """Train an adapter on all rows, in a folder that is removed unless it was asked for.

    Args:
        task: what the rows mean.
        rows: with their targets.
        settings: how to train.

    Raises:
        RowError, ValueError: the rows or a setting are wrong; nothing is left behind.
    """
    table = as_dataset(rows, "X")
    learnt_task = task.learn(table)
    with _folder(settings.output_dir) as folder, _bars(settings.verbose):
        config = TrainConfig.for_task(
            folder, learnt_task, rows=len(table), seed=settings.seed, **settings.training
        )
        model, tokenizer = load_base(
            settings.base, learnt_task, quantize=settings.quantize, seed=settings.seed
        )
        adapted = attach_lora(model, learnt_task, seed=settings.seed, **settings.adapter)
        with Trainer(adapted, learnt_task, tokenizer, config) as trainer:
            trainer.fit(table)
        adapted.requires_grad_(False)
        predictor = Predictor(adapted.eval(), trainer.task, tokenizer)
        history = trainer.history
        return TrainedAdapter(_read_files(folder), settings.base, predictor, history)


@contextlib.contextmanager
def _folder(output_dir: str | Path | None) -> Iterator[Path]:
    """The folder to train in; a temporary one is removed at the end."""
    if output_dir is not None:
        yield Path(output_dir)
        return
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        yield Path(folder)


def _bars(verbose: bool) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if verbose else without_bars()


def _read_files(folder: Path) -> dict[str, bytes]:
    """The files of an adapter folder, by name."""
    names = [*read_manifest(folder)["files"], MANIFEST, CARD]
    return {name: (folder / name).read_bytes() for name in names}

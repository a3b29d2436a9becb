"""Answers from a saved adapter, in another program than the one that trained it."""

import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError, as_dataset, source_name
from peftcls.engine import frozen_cache
from peftcls.engine.allocator import give_back
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.inference.multi_predictor import ManyPredictor, load_many
from peftcls.models.adapter_folder import load_adapter
from peftcls.models.base_model import Quantize, base_facts
from peftcls.tasks.base import Answer, Feature, Task
from peftcls.tasks.encoding import encode_rows
from peftcls.tasks.row_checks import check_rows
from peftcls.training import data_order

CHUNK_ROWS = 4096  # rows in tokens at a time, so that a table of any length takes the same memory


class Predictor:
    """A model, its task and its tokenizer, ready to answer."""

    def __init__(self, model: torch.nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.task, self.tokenizer = model, task, tokenizer
        self.shortened_rows = 0
        """Of the rows answered last, how many had more tokens than are read."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of the head's outputs; empty where the task has none."""
        return tuple(getattr(self.task, "labels", None) or ())

    def predict(self, rows: datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]], *,
                batch_size: int | None = None) -> list[Answer]:
        """One answer a row, in the rows' order.

        Args:
            rows: a table, mappings with the task's columns, or bare texts (pairs of texts for a pair task).
            batch_size: at most this many rows at once; rows of similar length are put together either way, and the
                answers do not depend on it.

        Raises:
            RowError: a column is missing or a text is empty; nothing has been predicted then.
        """
        return [answer for chunk in self.stream(rows, batch_size=batch_size) for answer in chunk]

    def stream(self, rows: datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]], *, first: int = 0,
               chunk_rows: int = CHUNK_ROWS, batch_size: int | None = None) -> Iterator[list[Answer]]:
        """The same answers, a chunk of rows at a time, so that they need not be in memory together.

        Args:
            rows: as in `predict`; all of them are checked before the first is answered.
            first: the index of the row to begin with.
            chunk_rows: answers that come together.
            batch_size: as in `predict`.

        Raises:
            RowError: as in `predict`.
        """
        table, self.shortened_rows = self._table(rows), 0
        if len(table) == 0:
            return
        check_rows(self.task, table, with_target=False)
        table = table.select_columns(self.task.columns(with_target=False))
        for start in range(first, len(table), chunk_rows):
            chunk: list[Row] = table.select(range(start, min(start + chunk_rows, len(table)))).to_list()
            encoded = list(encode_rows(self.task, chunk, self.tokenizer, source=source_name(table), numbers=itertools.count(start + 1)))
            self.shortened_rows += sum(feature["shortened"] for feature in encoded)
            yield self.answer(encoded, batch_size)
            if start + chunk_rows >= len(table):
                break  # a request of a few rows does not pay for what keeps a long table's memory constant
            if start // CHUNK_ROWS < (start + chunk_rows) // CHUNK_ROWS:
                gc.collect()  # what is left of calls of a model holds itself, and is many small things among few large ones
            give_back()  # or what batches of all widths leave between them adds up, a GiB in a million rows

    def _table(self, rows: Any) -> datasets.Dataset:
        if isinstance(rows, str | Mapping):
            raise RowError(f"expected a list of texts or rows, found one {type(rows).__name__}; put it into a list.")
        if isinstance(rows, datasets.Dataset):
            return rows
        listed = list(rows)
        if not listed:
            return datasets.Dataset.from_dict({})
        return as_dataset(listed if all(isinstance(row, Mapping) for row in listed) else self.task.rows_of(listed))

    @torch.inference_mode()
    def answer(self, features: Sequence[Feature], batch_size: int | None = None) -> list[Answer]:
        """One answer a feature; `predict` is for rows."""
        device = next(self.model.parameters()).device
        self.model.eval()
        answers: dict[int, Answer] = {}
        lengths = [len(feature["input_ids"]) for feature in features]
        shared = self.task.shared_tokens(self.model, features)
        for batch in data_order.micro_batches(range(len(features)), lengths, rows=batch_size, tokens=batch_tokens(device), shared=shared,
                                        call_tokens=call_tokens(device)):
            chosen = [features[i] for i in batch]
            inputs = {name: tensor.to(device) for name, tensor in self.task.collate(chosen, self.tokenizer).items()}
            with frozen_cache.reading(self.model, inputs) as inputs:
                answers |= zip(batch, self.task.decode(self.model, inputs, chosen, self.tokenizer), strict=True)
        return [answers[i] for i in range(len(features))]


@overload
def load_predictor(directory: str | Path, *, base: str | Path | None = None,  # type: ignore[overload-overlap]
                   quantize: Quantize | None = None, device: str | torch.device | None = None) -> Predictor: ...
@overload
def load_predictor(directory: Sequence[str | Path], *, base: str | Path | None = None, quantize: Quantize | None = None,
                   device: str | torch.device | None = None) -> ManyPredictor: ...
def load_predictor(directory: str | Path | Sequence[str | Path], *, base: str | Path | None = None, quantize: Quantize | None = None,
                   device: str | torch.device | None = None) -> Predictor | ManyPredictor:
    """Load an adapter folder for prediction: one call, and nothing but the folder and its base is needed.

    Args:
        directory: written by `Trainer.fit` or `Trainer.save`; or several in a list, which then share one base in memory, for
            their names' rows (see `ManyPredictor`).
        base: where the base model is now, if it moved; another model of the same shape is refused.
        quantize: "8bit" or "4bit"; as at training unless given.
        device: where to compute; the first GPU if there is one, unless given.

    Raises:
        ValueError: the folder is incomplete or damaged, or the base is not the one it was trained on; of several folders, two
            cannot share a base, or have the same name.
    """
    if not isinstance(directory, str | Path):
        return load_many(directory, base=base, quantize=quantize, device=device)
    model, task, tokenizer = load_adapter(directory, base=base, quantize=quantize)
    model.requires_grad_(False)
    if base_facts(model).quantize is None:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model.eval(), task, tokenizer)

"""One base in memory, many adapters on it: rows of several tasks are answered in one batch."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.data.reading import Row, RowError, source_name
from peftcls.engine.batch import Batch
from peftcls.engine.batching import micro_batches
from peftcls.engine.head_logits import class_logits
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.engine.packing import can_pack
from peftcls.inference.multi_adapter_layers import Routes
from peftcls.inference.multi_loading import put_on_one_base
from peftcls.models.state import Quantize, base_facts
from peftcls.tasks.base import Answer, Feature, Task, pad_inputs
from peftcls.tasks.classification import Classification
from peftcls.tasks.encoding import encode_rows
from peftcls.tasks.regression import Regression
from peftcls.tasks.row_checks import check_rows
from peftcls.tasks.text_encoding import split_windows

CHUNK_ROWS = 4096  # rows in tokens at a time, as of one predictor
LISTED = "rows"  # the name of a table that is a list
PROBE = (23, 9, 4)  # tokens of lines that are read together and alone, before rows are
Rows: TypeAlias = datasets.Dataset | Iterable[Mapping[str, Any] | str | Sequence[str]]


class ManyPredictor:
    """One base model and several adapters, each with its task, known by the name of its folder.

    `tasks` and `tokenizers` hold them by name. Rows of tasks with a head of their own share a batch, whatever their
    adapter; instructions and questions are answered adapter by adapter.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        routes: Routes,
        tasks: Mapping[str, Task],
        tokenizers: Mapping[str, PreTrainedTokenizerBase],
    ) -> None:
        self.model, self.routes, self.tasks, self.tokenizers = (
            model,
            routes,
            dict(tasks),
            dict(tokenizers),
        )
        self.names = tuple(tasks)
        self._mixes: dict[Any, bool] = {}
        with routes.only(0), torch.inference_mode():
            can_pack(model)  # asked now, of one adapter

    def predict(
        self,
        rows: Rows,
        adapter: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """One answer a row, in the rows' order: that of the row's adapter, as its folder alone gives it, up to rounding.

        Args:
            rows: a table, mappings, or bare texts (pairs of texts for a pair task); a row needs the columns of its own task.
            adapter: the name of the folder that answers all rows, or a name for each row.
            batch_size: at most this many rows at once; the answers do not depend on it.

        Raises:
            RowError: a column is missing or a text is empty; nothing has been predicted then.
            ValueError: there is no adapter of that name, or not one name a row.
        """
        if not isinstance(adapter, str | Sequence):
            raise ValueError(
                f"adapter={adapter!r}: expected the name of the one that answers, or one a row, of {list(self.names)}; "
                "predict_all asks each."
            )
        rows = rows if isinstance(rows, datasets.Dataset) else _listed(rows)
        names = [adapter] * len(rows) if isinstance(adapter, str) else list(adapter)
        if len(names) != len(rows):
            raise ValueError(
                f"adapter has {len(names)} names for {len(rows)} rows; give one name for all rows, or one a row."
            )
        return self._predict(rows, list(enumerate(map(self._number, names))), batch_size)

    def predict_all(self, rows: Rows, *, batch_size: int | None = None) -> dict[str, list[Answer]]:
        """The answers of every adapter to every row, by the adapter's name; arguments and errors as of `predict`."""
        rows = rows if isinstance(rows, datasets.Dataset) else _listed(rows)
        found = self._predict(
            rows,
            [(row, adapter) for adapter in range(len(self.names)) for row in range(len(rows))],
            batch_size,
        )
        return {
            name: found[place * len(rows) : (place + 1) * len(rows)]
            for place, name in enumerate(self.names)
        }

    def _number(self, name: str) -> int:
        if name not in self.tasks:
            near = difflib.get_close_matches(str(name), self.names, 1)
            raise ValueError(
                f"there is no adapter {name!r}, expected one of {list(self.names)}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        return self.names.index(name)

    def _predict(
        self,
        rows: datasets.Dataset | list[Any],
        wanted: list[tuple[int, int]],
        batch_size: int | None,
    ) -> list[Answer]:
        """The answers to pairs of a row and an adapter, by their numbers."""
        owned: dict[int, list[int]] = {}
        for row, adapter in wanted:
            owned.setdefault(adapter, []).append(row)
        tasks, named = (
            list(self.tasks.values()),
            rows if isinstance(rows, datasets.Dataset) else self._named(rows, owned),
        )
        columns = dict.fromkeys(
            name for adapter in owned for name in tasks[adapter].columns(with_target=False)
        )
        for adapter, own in sorted(owned.items()):
            if isinstance(named, datasets.Dataset):
                check_rows(
                    tasks[adapter],
                    named.select(own),
                    with_target=False,
                    numbers=[row + 1 for row in own],
                )
            else:
                _check_listed(tasks[adapter], named, own)
        found: list[Answer] = []
        for start in range(0, len(wanted), CHUNK_ROWS):
            chunk = wanted[start : start + CHUNK_ROWS]
            needed = sorted({row for row, _ in chunk})
            texts = (
                named.select_columns(list(columns)).select(needed).to_list()
                if isinstance(named, datasets.Dataset)
                else [named[row] for row in needed]
            )
            by_number: dict[int, Row] = dict(zip(needed, texts, strict=True))
            source = source_name(named) if isinstance(named, datasets.Dataset) else LISTED
            found += self._answers(
                [(by_number[row], row + 1, adapter) for row, adapter in chunk], source, batch_size
            )
        return found

    def _named(self, rows: list[Any], owned: Mapping[int, Sequence[int]]) -> list[Row]:
        """Rows with the columns' names; a request of a few rows is not worth a table."""
        if all(isinstance(row, Mapping) for row in rows):
            return rows
        made: list[Row] = [{} for _ in rows]
        for adapter, own in owned.items():
            for row, named in zip(
                own,
                list(self.tasks.values())[adapter].rows_of([rows[row] for row in own]),
                strict=True,
            ):
                made[row] |= named
        return made

    @torch.inference_mode()
    def _answers(
        self, rows: Sequence[tuple[Row, int, int]], source: str, batch_size: int | None
    ) -> list[Answer]:
        tasks, tokenizers = list(self.tasks.values()), list(self.tokenizers.values())
        asked, groups = dict[int, list[int]](), dict[Any, list[int]]()
        for place, (_, _, adapter) in enumerate(rows):
            asked.setdefault(adapter, []).append(place)
            groups.setdefault(self._group(adapter), []).append(place)
        encoded: dict[int, Feature] = {}
        for adapter, own in asked.items():
            found = encode_rows(
                tasks[adapter],
                [rows[place][0] for place in own],
                tokenizers[adapter],
                source=source,
                numbers=[rows[place][1] for place in own],
            )
            encoded |= zip(own, found, strict=True)
        features = [encoded[place] for place in range(len(rows))]
        device, lengths = self.model.device, [len(feature["input_ids"]) for feature in features]
        packs = can_pack(self.model)
        answers: dict[int, Answer] = {}
        for group, members in groups.items():
            alone = group if isinstance(group, int) else None
            shared = (
                0
                if alone is None
                else tasks[alone].shared_tokens(self.model, [features[place] for place in members])
            )
            for batch in micro_batches(
                members,
                lengths,
                rows=batch_size,
                tokens=batch_tokens(device),
                shared=shared,
                call_tokens=call_tokens(device),
                packed=alone is None and packs,
            ):
                owners = [rows[place][2] for place in batch]
                answers |= zip(
                    batch,
                    self._read(group, [features[place] for place in batch], owners),
                    strict=True,
                )
        return [answers[place] for place in range(len(rows))]

    def _group(self, adapter: int) -> Any:
        """What rows must have in common to share a batch: the adapter alone, where nothing else will do."""
        task = list(self.tasks.values())[adapter]
        if not isinstance(task, Classification | Regression):
            return adapter
        key = (
            task.pooling or "last" if base_facts(self.model).causal else None,
            task.causal,
        )  # "last" is what None is to a decoder
        if key not in self._mixes:
            self._mixes[key] = self._answers_alike(*key)
        return key if self._mixes[key] else adapter

    def _read(self, group: Any, features: Sequence[Feature], owners: Sequence[int]) -> list[Answer]:
        """The answers to a batch, whose rows may belong to several adapters."""
        device, tasks, tokenizers = (
            self.model.device,
            list(self.tasks.values()),
            list(self.tokenizers.values()),
        )
        task, tokenizer = tasks[owners[0]], tokenizers[owners[0]]
        if len(set(owners)) == 1:
            with self.routes.only(owners[0]):
                batch = {
                    name: tensor.to(device)
                    for name, tensor in task.collate(features, tokenizer).items()
                }
                return task.decode(self.model, batch, features, tokenizer)
        lines = [
            split_windows([feature], ("input_ids", "token_type_ids"))
            if "windows" in feature
            else [feature]
            for feature in features
        ]
        windows = torch.tensor([len(own) for own in lines])
        batch = {
            **pad_inputs([line for own in lines for line in own], tokenizer),
            "windows": windows,
        }
        logits = self._mixed_logits(
            {name: tensor.to(device) for name, tensor in batch.items()}, owners, *group
        )
        answers: dict[int, Answer] = {}
        for adapter in set(owners):
            own_rows, own_task = (
                [row for row, owner in enumerate(owners) if owner == adapter],
                tasks[adapter],
            )
            assert isinstance(own_task, Classification | Regression)
            answers |= zip(
                own_rows,
                own_task.answers_of(logits[own_rows, : own_task.model_settings()["num_labels"]]),
                strict=True,
            )
        return [answers[row] for row in range(len(owners))]

    def _mixed_logits(
        self, batch: Batch, owners: Sequence[int], pooling: Any, causal: bool
    ) -> torch.Tensor:
        with self.routes.mixed(
            torch.tensor(owners, device=self.model.device).repeat_interleave(batch["windows"])
        ):
            return class_logits(self.model, batch, pooling, causal=causal)

    @torch.inference_mode()
    def _answers_alike(self, pooling: Any, causal: bool) -> bool:
        """Whether lines of several adapters may be read together: asked once, of the model itself.

        Not where a layer with an adapter reads what belongs to no line, as DeBERTa's do with its table of distances.
        """
        several = [
            place
            for place, task in enumerate(self.tasks.values())
            if isinstance(task, Classification | Regression)
        ]
        vocabulary, device = self.model.config.get_text_config().vocab_size, self.model.device
        lengths = [PROBE[place % len(PROBE)] for place in range(max(len(several), len(PROBE)))]
        owners = [several[place % len(several)] for place in range(len(lengths))]
        ids = (
            torch.arange(11, 11 + len(lengths) * PROBE[0], device=device)
            .view(len(lengths), -1)
            .remainder(vocabulary)
        )
        mask = (
            torch.arange(PROBE[0], device=device)
            < torch.tensor(lengths, device=device).unsqueeze(1)
        ).long()
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "windows": torch.ones(len(lengths), dtype=torch.long, device=device),
        }
        with self.routes.only(
            owners[0]
        ):  # by the way the model is asked what it can leave out, of one adapter
            class_logits(self.model, batch, pooling, causal=causal)
        try:
            together = self._mixed_logits(batch, owners, pooling, causal)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False
        near = 0.1 if self.model.dtype in (torch.bfloat16, torch.float16) else 1e-3
        for line, adapter in enumerate(owners):
            with self.routes.only(adapter):
                own = {name: tensor[line : line + 1] for name, tensor in batch.items()}
                alone = class_logits(self.model, own, pooling, causal=causal)[0]
            if not float((together[line, : len(alone)] - alone).abs().max()) <= near * max(
                float(alone.abs().max()), near
            ):
                return False
        return True


def load_many(
    directories: Iterable[str | Path],
    *,
    base: str | Path | None,
    quantize: Quantize | None,
    device: str | torch.device | None,
) -> ManyPredictor:
    """What `load_predictor` gives for several folders; arguments and errors as there."""
    model, routes, folders = put_on_one_base(
        directories, base=base, quantize=quantize, device=device
    )
    return ManyPredictor(
        model,
        routes,
        {name: folder.task for name, (folder, _) in folders.items()},
        {name: tokenizer for name, (_, tokenizer) in folders.items()},
    )


def _check_listed(task: Task, rows: Sequence[Row], own: Sequence[int]) -> None:
    """Raise a RowError for the first of the task's own rows that it cannot read."""
    columns = task.columns(with_target=False)
    for row in own:
        if missing := [name for name in columns if name not in rows[row]]:
            raise RowError(
                f"row {row + 1} of {LISTED} has no column {missing[0]!r}; it has {list(rows[row])}. "
                f"{type(task).__name__} needs {columns}."
            )
        if problem := task.problem(rows[row], with_target=False):
            raise RowError(f"row {row + 1} of {LISTED} {problem}.")


def _listed(rows: Any) -> list[Any]:
    if isinstance(rows, str | Mapping):
        raise RowError(
            f"expected a list of texts or rows, found one {type(rows).__name__}; put it into a list."
        )
    return list(rows)

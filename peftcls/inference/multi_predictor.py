"""Multi-adapter inference: several adapters on one base, and rows of several tasks in one batch."""

import difflib
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftcls.data.reading import Row, source_name
from peftcls.data.tables import RowsOrTexts, split_of, table_of
from peftcls.engine.batch import Batch
from peftcls.engine.batching import micro_batches
from peftcls.engine.head_logits import class_logits
from peftcls.engine.kernels import batch_tokens, call_tokens
from peftcls.engine.model_choices import Pooling
from peftcls.engine.model_state import base_facts, state_of
from peftcls.engine.precision import tolerance
from peftcls.engine.probes import can_pack
from peftcls.engine.turns import end_team
from peftcls.inference.multi_adapter_layers import Routes
from peftcls.inference.predictor import (
    CHUNK_ROWS,
    ROWS_LOCK,
    describe_base,
    how_to_load,
    list_rows,
    tokenize_rows,
)
from peftcls.tasks.base import Answer, Feature, Task, pad_inputs
from peftcls.tasks.row_checks import check_mappings, check_rows
from peftcls.tasks.text_encoding import split_windows

# What a table that is a list is called in messages.
LIST_NAME = "rows"
# The lengths of the sequences that show whether several adapters can share a batch.
PROBE_TOKENS = (23, 9, 4)
logger = logging.getLogger("peftcls")


class Request(NamedTuple):
    """A row that an adapter answers, both by their number."""

    row: int
    adapter: int


class HeadInput(NamedTuple):
    """What the head of a task reads: rows of adapters where it is the same can share a batch."""

    pooling: Pooling | None
    causal: bool


@runtime_checkable
class AnswersFromLogits(Protocol):
    """A task whose answers follow from one vector of logits a row."""

    def answers_of(self, logits: torch.Tensor) -> list[Answer]:
        """Answers from logits of shape (rows, outputs)."""
        ...


class ManyPredictor:
    """Answers rows with one base model and several adapters, each known by its folder's name.

    `tasks` and `tokenizers` hold those of each adapter by name. Rows of tasks with a head of their
    own share a batch, whatever their adapter; instructions and questions are answered adapter by
    adapter. Several threads can use one predictor: the model computes one micro-batch at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        routes: Routes,
        tasks: Mapping[str, Task],
        tokenizers: Mapping[str, PreTrainedTokenizerBase],
        *,
        load: functools.partial[Any] | None = None,
    ) -> None:
        """`load` loads the same predictor again; None where it does not come from folders."""
        self.model = model
        self.routes = routes
        self.tasks = dict(tasks)
        self.tokenizers = dict(tokenizers)
        self.names = tuple(tasks)
        self._load = load
        self._turns = state_of(model).turns
        self._can_mix: dict[HeadInput, bool] = {}
        # Find out now what the model can do, with one adapter: later the batches may be mixed.
        with self._turns.lock, routes.only(0), torch.inference_mode():
            can_pack(model)
        # The thread that loads is often not the one that asks.
        end_team()

    def __call__(
        self,
        rows: RowsOrTexts,
        adapter: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer rows, as `predict` does."""
        return self.predict(rows, adapter, batch_size=batch_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return how_to_load(self._load)

    def __repr__(self) -> str:
        adapters = [f"{name}={task}" for name, task in self.tasks.items()]
        device = str(self.model.device)
        shown = ", ".join([*adapters, describe_base(self.model), f"device={device!r}"])
        return f"ManyPredictor({shown})"

    def predict(
        self,
        rows: RowsOrTexts,
        adapter: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer rows, each with its own adapter: one answer a row, in the rows' order.

        The answers are those of each adapter's folder alone, up to rounding.

        Args:
            rows: a table, mappings, or bare texts (pairs of texts for a pair task); a row needs
                the columns of its own task.
            adapter: the name of the folder that answers all rows, or a name for each row.
            batch_size: at most this many rows at once; the answers do not depend on it.

        Raises:
            RowError: a column is missing or a text is empty; nothing has been predicted then.
            ValueError: there is no adapter of that name, or not one name a row.
        """
        if not isinstance(adapter, str | Sequence):
            raise ValueError(
                f"adapter={adapter!r}: expected the name of one adapter, or one name a row, "
                f"of {list(self.names)}; predict_all uses every adapter."
            )
        rows = self._listed(rows)
        names = [adapter] * len(rows) if isinstance(adapter, str) else list(adapter)
        if len(names) != len(rows):
            raise ValueError(
                f"adapter has {len(names)} names for {len(rows)} rows; give one name for all "
                "rows, or one a row."
            )
        requests = [Request(row, self._number(name)) for row, name in enumerate(names)]
        return self._predict(rows, requests, batch_size)

    def predict_all(
        self, rows: RowsOrTexts, *, batch_size: int | None = None
    ) -> dict[str, list[Answer]]:
        """Answer every row with every adapter, by the adapter's name; arguments as of `predict`."""
        rows = self._listed(rows)
        requests = [
            Request(row, adapter) for adapter in range(len(self.names)) for row in range(len(rows))
        ]
        answers = self._predict(rows, requests, batch_size)
        by_name: dict[str, list[Answer]] = {}
        for adapter, name in enumerate(self.names):
            start = adapter * len(rows)
            by_name[name] = answers[start : start + len(rows)]
        return by_name

    def answer(
        self,
        adapters: Sequence[str],
        features: Sequence[Feature],
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer rows that are tokenized already, each with its adapter: one answer a feature."""
        requests = [Request(row, self._number(name)) for row, name in enumerate(adapters)]
        return self._answer(requests, features, batch_size)

    def _listed(self, rows: Any) -> datasets.Dataset | list[Any]:
        """A table, or rows or texts as a list."""
        with ROWS_LOCK:
            table = table_of(split_of(rows, "test"), LIST_NAME)
        return list_rows(rows, self._task(0)) if table is None else table

    def _number(self, name: str) -> int:
        """The number of an adapter. Raises ValueError where no adapter has this name."""
        if name in self.tasks:
            return self.names.index(name)
        message = f"there is no adapter {name!r}, expected one of {list(self.names)}"
        similar = difflib.get_close_matches(str(name), self.names, 1)
        if similar:
            raise ValueError(f"{message}; did you mean {similar[0]!r}?")
        raise ValueError(f"{message}.")

    def _task(self, adapter: int) -> Task:
        return self.tasks[self.names[adapter]]

    def _tokenizer(self, adapter: int) -> PreTrainedTokenizerBase:
        return self.tokenizers[self.names[adapter]]

    def _predict(
        self,
        rows: datasets.Dataset | list[Any],
        requests: Sequence[Request],
        batch_size: int | None,
    ) -> list[Answer]:
        """Check all rows, then tokenize and answer them a chunk at a time."""
        rows_of_adapter: dict[int, list[int]] = {}
        for row, adapter in requests:
            rows_of_adapter.setdefault(adapter, []).append(row)
        if not isinstance(rows, datasets.Dataset):
            rows = self._with_columns(rows, rows_of_adapter)
        for adapter, numbers in sorted(rows_of_adapter.items()):
            _check_rows(self._task(adapter), rows, numbers)
        columns: dict[str, None] = {}
        for adapter in rows_of_adapter:
            task = self._task(adapter)
            names = rows.column_names if isinstance(rows, datasets.Dataset) else ()
            columns |= dict.fromkeys(task.columns_among(names, with_target=False))
        answers: list[Answer] = []
        for start in range(0, len(requests), CHUNK_ROWS):
            chunk = requests[start : start + CHUNK_ROWS]
            fetched = _fetch_rows(rows, list(columns), sorted({row for row, _ in chunk}))
            features = self._tokenize(chunk, fetched, _name_of(rows))
            answers += self._answer(chunk, features, batch_size)
        return answers

    def _with_columns(
        self, rows: list[Any], rows_of_adapter: Mapping[int, Sequence[int]]
    ) -> list[Row]:
        """Rows with the columns' names. A request of a few rows is not worth a table."""
        if all(isinstance(row, Mapping) for row in rows):
            return rows
        with_columns: list[Row] = [{} for _ in rows]
        for adapter, numbers in rows_of_adapter.items():
            made = self._task(adapter).rows_of([rows[number] for number in numbers])
            for number, row in zip(numbers, made, strict=True):
                with_columns[number] |= row
        return with_columns

    def _tokenize(
        self, requests: Sequence[Request], rows: Mapping[int, Row], source: str
    ) -> list[Feature]:
        """Tokenize the row of each request with the task and tokenizer of its adapter."""
        places_of_adapter: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            places_of_adapter.setdefault(request.adapter, []).append(place)
        features: dict[int, Feature] = {}
        for adapter, places in places_of_adapter.items():
            numbers = [requests[place].row for place in places]
            tokenized = tokenize_rows(
                self._task(adapter),
                [rows[number] for number in numbers],
                self._tokenizer(adapter),
                source=source,
                numbers=[number + 1 for number in numbers],
            )
            features.update(zip(places, tokenized, strict=True))
        return [features[place] for place in range(len(requests))]

    @torch.inference_mode()
    def _answer(
        self, requests: Sequence[Request], features: Sequence[Feature], batch_size: int | None
    ) -> list[Answer]:
        """Answer tokenized requests in micro-batches of those that can share one."""
        device = self.model.device
        lengths = [len(feature["input_ids"]) for feature in features]
        packs, groups = self._turns.compute(functools.partial(self._groups_of, requests), device)
        answers: dict[int, Answer] = {}
        for group, places in groups.items():
            one_adapter = isinstance(group, int)
            batches = micro_batches(
                places,
                lengths,
                rows=batch_size,
                tokens=batch_tokens(device),
                shared=self._shared_tokens(group, [features[place] for place in places]),
                call_tokens=call_tokens(device),
                packed=packs and not one_adapter,
            )
            for batch in batches:
                chosen = [features[place] for place in batch]
                adapters = [requests[place].adapter for place in batch]
                if isinstance(group, int) or len(set(adapters)) == 1:
                    answered = self._answer_alone(adapters[0], chosen)
                else:
                    answered = self._answer_mixed(group, adapters, chosen)
                answers.update(zip(batch, answered, strict=True))
        return [answers[place] for place in range(len(requests))]

    def _groups_of(
        self, requests: Sequence[Request]
    ) -> tuple[bool, dict[HeadInput | int, list[int]]]:
        """Whether the model packs sequences, and the places of the requests of each group."""
        groups: dict[HeadInput | int, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._group(request.adapter), []).append(place)
        return can_pack(self.model), groups

    def _group(self, adapter: int) -> HeadInput | int:
        """What requests that share a batch have in common: the adapter itself if nothing else."""
        if not isinstance(self._task(adapter), AnswersFromLogits):
            return adapter
        head_input = self._head_input(adapter)
        if head_input not in self._can_mix:
            self._can_mix[head_input] = self._probe_mixing(head_input)
        return head_input if self._can_mix[head_input] else adapter

    def _head_input(self, adapter: int) -> HeadInput:
        task = self._task(adapter)
        if not base_facts(self.model).causal:
            return HeadInput(None, task.causal)
        # A decoder's head reads the last token where the task does not say.
        return HeadInput(task.pooling or "last", task.causal)

    def _shared_tokens(self, group: HeadInput | int, features: Sequence[Feature]) -> int:
        """How many first tokens all sequences of a group share, where one adapter answers them."""
        if not isinstance(group, int):
            return 0
        count = functools.partial(self._task(group).shared_tokens, self.model, features)
        return self._turns.compute(count, self.model.device)

    def _answer_alone(self, adapter: int, features: Sequence[Feature]) -> list[Answer]:
        """Answer a batch whose rows all belong to one adapter."""
        task = self._task(adapter)
        tokenizer = self._tokenizer(adapter)

        def answers() -> list[Answer]:
            batch = self._to_device(task.collate(features, tokenizer))
            with self.routes.only(adapter):
                return task.decode(self.model, batch, features, tokenizer)

        return self._turns.compute(answers, self.model.device)

    def _answer_mixed(
        self, head_input: HeadInput, adapters: Sequence[int], features: Sequence[Feature]
    ) -> list[Answer]:
        """Answer a batch whose rows belong to several adapters."""
        sequences: list[Feature] = []
        windows: list[int] = []
        for feature in features:
            parts = [feature]
            if "windows" in feature:
                parts = split_windows([feature], ("input_ids", "token_type_ids"))
            sequences += parts
            windows.append(len(parts))
        batch = pad_inputs(sequences, self._tokenizer(adapters[0]))
        batch["windows"] = torch.tensor(windows)
        logits = self._turns.compute(
            functools.partial(self._mixed_logits, batch, adapters, head_input), self.model.device
        )
        answers: dict[int, Answer] = {}
        for adapter in set(adapters):
            task = self._task(adapter)
            assert isinstance(task, AnswersFromLogits)
            places = [place for place, owner in enumerate(adapters) if owner == adapter]
            outputs = task.model_settings()["num_labels"]
            answers.update(zip(places, task.answers_of(logits[places, :outputs]), strict=True))
        return [answers[place] for place in range(len(adapters))]

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def _mixed_logits(
        self, batch: Batch, adapters: Sequence[int], head_input: HeadInput
    ) -> torch.Tensor:
        """Logits of each row's own head, of shape (rows, outputs of the widest head)."""
        owners = torch.tensor(adapters, device=self.model.device)
        batch = self._to_device(batch)
        with self.routes.mixed(owners.repeat_interleave(batch["windows"])):
            return class_logits(self.model, batch, head_input.pooling, causal=head_input.causal)

    @torch.inference_mode()
    def _probe_mixing(self, head_input: HeadInput) -> bool:
        """Find out whether sequences of several adapters can share a batch: once, from the model.

        They cannot where a layer with an adapter has inputs that belong to no sequence, as
        DeBERTa's layers do with its table of distances.
        """
        candidates = [
            adapter
            for adapter in range(len(self.names))
            if isinstance(self._task(adapter), AnswersFromLogits)
        ]
        sequences = max(len(candidates), len(PROBE_TOKENS))
        adapters = [candidates[place % len(candidates)] for place in range(sequences)]
        batch = self._probe_batch(sequences)
        # First with one adapter, so that the model is asked what it can leave out.
        self._logits_alone(batch, adapters[0], head_input)
        try:
            together = self._mixed_logits(batch, adapters, head_input)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            logger.debug("adapters cannot share a batch: %s: %s", type(error).__name__, error)
            return False
        allowed = tolerance(self.model.dtype, narrow=0.1, wide=1e-3)
        for place, adapter in enumerate(adapters):
            row = {name: tensor[place : place + 1] for name, tensor in batch.items()}
            alone = self._logits_alone(row, adapter, head_input)[0]
            difference = float((together[place, : len(alone)] - alone).abs().max())
            # Written so that a difference of nan is too large.
            if not difference <= allowed * max(float(alone.abs().max()), allowed):
                logger.debug("adapters cannot share a batch: logits differ by %g", difference)
                return False
        return True

    def _probe_batch(self, sequences: int) -> Batch:
        """A batch of made-up token ids, whose sequences have the lengths of `PROBE_TOKENS`."""
        device = self.model.device
        vocabulary = self.model.config.get_text_config().vocab_size
        width = PROBE_TOKENS[0]
        ids = torch.arange(11, 11 + sequences * width, device=device).remainder(vocabulary)
        lengths = [PROBE_TOKENS[place % len(PROBE_TOKENS)] for place in range(sequences)]
        is_real = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
        return {
            "input_ids": ids.view(sequences, width),
            "attention_mask": is_real.long().to(device),
            "windows": torch.ones(sequences, dtype=torch.long, device=device),
        }

    def _logits_alone(self, batch: Batch, adapter: int, head_input: HeadInput) -> torch.Tensor:
        with self.routes.only(adapter):
            return class_logits(self.model, batch, head_input.pooling, causal=head_input.causal)


def _name_of(rows: datasets.Dataset | list[Row]) -> str:
    """What messages call a table."""
    return source_name(rows) if isinstance(rows, datasets.Dataset) else LIST_NAME


def _fetch_rows(
    rows: datasets.Dataset | list[Row], columns: list[str], numbers: Sequence[int]
) -> dict[int, Row]:
    """Some rows by their number."""
    if isinstance(rows, datasets.Dataset):
        fetched = rows.select_columns(columns).select(numbers).to_list()
    else:
        fetched = [rows[number] for number in numbers]
    return dict(zip(numbers, fetched, strict=True))


def _check_rows(task: Task, rows: datasets.Dataset | list[Row], numbers: Sequence[int]) -> None:
    """Raise RowError for the first of some rows that a task cannot read."""
    if isinstance(rows, datasets.Dataset):
        chosen = rows.select(numbers)
        check_rows(task, chosen, with_target=False, numbers=[number + 1 for number in numbers])
        return
    check_mappings(task, rows, numbers, source=LIST_NAME)

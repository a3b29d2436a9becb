"""Prepare rows for training: check, examine and encode them once, for every run that reads them."""

import dataclasses
import functools
import logging
from array import array
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from peftcls.data.reading import as_dataset, source_name
from peftcls.data.row_numbers import select_rows
from peftcls.data.tables import Rows, with_validation_split
from peftcls.engine.model_state import BaseFacts
from peftcls.quality.examine import examine_rows, raise_errors
from peftcls.quality.findings import Examination
from peftcls.tasks.base import Task
from peftcls.tasks.encoding import (
    EncodedTable,
    column_values,
    content_sum,
    count_sequences,
    encode_table,
)
from peftcls.tasks.row_checks import check_rows
from peftcls.tasks.row_weights import check_weights
from peftcls.training.run_log import log_warning

logger = logging.getLogger("peftcls")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows that can be trained on, and what every run needs to know about them.

    Args:
        train: the training rows, encoded with their targets.
        valid: the validation rows, encoded with their targets; None without validation rows.
        valid_inputs: the validation rows, encoded as for prediction; None without them.
        examination: what was found in all of these rows; it holds no errors.
        train_rows: the training rows as they were read.
        valid_rows: the validation rows as they were read.
        train_sum: a short SHA-256 of the encoded training rows.
        valid_sum: a short SHA-256 of the columns of the validation rows that the task reads.
    """

    train: EncodedTable
    valid: EncodedTable | None
    valid_inputs: EncodedTable | None
    examination: Examination
    train_rows: datasets.Dataset
    valid_rows: datasets.Dataset | None
    train_sum: str
    valid_sum: str | None

    @property
    def tables(self) -> list[EncodedTable]:
        """The encoded tables with targets: the training rows, and the validation rows if any."""
        if self.valid is None:
            return [self.train]
        return [self.train, self.valid]

    def select(self, indices: Sequence[int]) -> "Prepared":
        """Prepare a training run on some of the training rows, without validation rows.

        The rows are not checked, examined or encoded again.

        Args:
            indices: of the training rows, from 0.
        """
        train = _select(self.train, indices)
        return dataclasses.replace(
            self,
            train=train,
            valid=None,
            valid_inputs=None,
            train_rows=select_rows(self.train_rows, indices),
            valid_rows=None,
            train_sum=content_sum(train.features),
            valid_sum=None,
        )


def prepare(
    task: Task,
    train: datasets.Dataset,
    valid: datasets.Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    base: BaseFacts,
    *,
    examination: Examination | None = None,
    cache_dir: str | Path | None = None,
) -> Prepared:
    """Check, examine and encode the rows of a training run.

    Args:
        task: what the rows mean, with its labels learnt.
        train: the rows to train on.
        valid: the rows that choose the best step.
        tokenizer: from `load_base`.
        base: of the model; see `base_facts`.
        examination: of the same rows, where they have been examined already (for example together
            with test rows). They are not read for errors again then.
        cache_dir: where tokenized rows stay for further runs; see `TrainConfig`.

    Raises:
        RowError: rows that cannot be trained on. Rows that the task cannot read come first, then
            rows that cannot be encoded, then the other errors of the examination.
    """
    task = task.on_base(base)
    check_weights(task, train)
    if examination is None:
        examination = examine_rows(task, train, valid)
    has_errors = bool(examination.errors)
    if has_errors:
        # Rows that the task cannot read are named one by one, with their numbers.
        check_rows(task, train, training=True)
        if valid is not None:
            check_rows(task, valid)
    encode = functools.partial(
        encode_table,
        task,
        tokenizer=tokenizer,
        base_fingerprint=base.fingerprint,
        cache_dir=cache_dir,
    )
    valid_table = None
    valid_inputs = None
    if valid is not None:
        valid_table = encode(valid)
        valid_inputs = encode(valid, with_target=False)
    raise_errors(examination)
    train_table = encode(train)
    valid_sum = None
    if valid is not None:
        columns = task.columns_among(valid.column_names, with_target=True)
        valid_sum = content_sum(valid.select_columns(columns))
    return Prepared(
        train=train_table,
        valid=valid_table,
        valid_inputs=valid_inputs,
        examination=examination,
        train_rows=train,
        valid_rows=valid,
        train_sum=content_sum(train_table.features),
        valid_sum=valid_sum,
    )


def prepare_once(
    task: Task,
    train_rows: Rows | Prepared,
    valid_rows: Rows | None,
    tokenizer: PreTrainedTokenizerBase,
    base: BaseFacts,
    *,
    cache_dir: str | Path | None = None,
) -> Prepared:
    """As `prepare`, from rows of any kind, unless that was done before."""
    if isinstance(train_rows, Prepared):
        if valid_rows is not None:
            raise ValueError("valid_rows are given beside prepared rows; give them to prepare.")
        return train_rows
    train_rows, valid_rows = with_validation_split(train_rows, valid_rows)
    train = as_dataset(train_rows, "train_rows")
    valid = None if valid_rows is None else as_dataset(valid_rows, "valid_rows")
    return prepare(task, train, valid, tokenizer, base, cache_dir=cache_dir)


def log_warnings(examination: Examination) -> None:
    """Log what was found in the rows, if any of it is more than a note."""
    if any(finding.severity == "warning" for finding in examination.findings):
        logger.warning(str(examination))


def log_shortened_rows(prepared: Prepared, max_tokens: int) -> None:
    """Log how many training rows are longer than the model reads, in the main process only."""
    shortened_rows = prepared.train.shortened_rows
    if shortened_rows:
        rows = prepared.train_rows
        log_warning(
            f"{shortened_rows} of {len(rows)} rows of {source_name(rows)} are longer than "
            f"{max_tokens} tokens; their text is shortened at its end."
        )


def _select(table: EncodedTable, indices: Sequence[int]) -> EncodedTable:
    """Some rows of an encoded table, as if they had been encoded by themselves."""
    features = table.features.select(indices)
    chosen = np.asarray(indices)
    strata = None if table.strata is None else table.strata[chosen]
    return dataclasses.replace(
        table,
        features=features,
        lengths=table.lengths[chosen],
        weights=table.weights[chosen],
        strata=strata,
        shortened_rows=int(column_values(features, "shortened").sum()),
        sequences=count_sequences(features),
        numbers=array("q", (table.numbers[index] for index in indices)),
    )

"""A stream of rows is read once, and is then a table that is memory-mapped."""

import datasets
import pytest

from peftcls import Classification, RowError
from peftcls.data.reading import as_dataset
from peftcls.data.tables import with_validation_split

ROWS = 600


def rows(cells):
    for number in range(ROWS):
        yield {"text": f"message {number}", "label": "ab"[number % 2], **cells(number)}


def stream_of(cells=lambda number: {}):
    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"cells": cells})


def test_a_stream_is_read_once_and_mapped():
    read = []

    def cells(number):
        read.append(number)
        return {}

    stream = stream_of(cells)
    task = Classification().learn(stream)
    table = as_dataset(stream)
    assert task.labels == ("a", "b")
    assert len(table) == len(read) == ROWS
    assert table.cache_files
    assert table[ROWS - 1] == {"text": f"message {ROWS - 1}", "label": "b"}


def test_a_stream_has_the_types_and_class_names_that_it_declares():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    streamed = as_dataset(table.to_iterable_dataset())
    assert streamed["label"][:] == ["yes", "no"]
    assert streamed.cache_files


def test_streams_with_splits_are_training_and_validation_rows():
    splits = datasets.IterableDatasetDict(train=stream_of(), validation=stream_of())
    train, valid = with_validation_split(splits, None)
    assert (train, valid) == (splits["train"], splits["validation"])
    with pytest.raises(RowError, match=r"rows has the splits \['train', 'validation'\]; give one"):
        as_dataset(splits)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (lambda n: {"text": "x" if n < 300 else 5}, "rows 257 to 512 of train do not fit the rows"),
        (lambda n: {} if n < 300 else {"id": n}, "they have no column 'id', or the first rows"),
        (lambda n: {"id": None if n < 300 else "x"}, r"name the types: stream.cast\(features\)"),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(cells, message):
    with pytest.raises(RowError, match=message):
        as_dataset(stream_of(cells), "train")


def test_a_stream_without_rows_is_one_sentence():
    empty = stream_of().take(0)
    with pytest.raises(RowError, match=r"^train has no rows\.$"):
        as_dataset(empty, "train")

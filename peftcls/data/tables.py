"""Tables in memory as users hold them: data frames, columns, data sets with splits."""

import contextlib
import difflib
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from peftcls.data.column_types import ColumnTypeError, check_text
from peftcls.data.scratch import scratch_folder
from peftcls.data.streams import table_of_stream
from peftcls.errors import RowError

# What makes a table of values that do not fit into one raise.
CONVERSION_ERRORS = (
    pa.ArrowException,
    UnicodeError,
    OverflowError,
    TypeError,
    ValueError,
    RecursionError,
)
MAX_SHOWN_CHARACTERS = 60
# pandas hands its index on as such a column.
INDEX_PREFIX = "__index_level_"


class ArrowStream(Protocol):
    """A data frame of pandas or polars, or an Arrow table: what hands on its columns to Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The columns, by Arrow's C interface."""


Rows: TypeAlias = (
    datasets.Dataset
    | datasets.DatasetDict
    | datasets.IterableDataset
    | datasets.IterableDatasetDict
    | ArrowStream
    | Mapping[str, Sequence[Any]]
    | Iterable[Mapping[str, Any]]
)
"""A table, a mapping of columns to their values, or rows."""
RowsOrTexts: TypeAlias = Rows | Mapping[str, Any] | str | Iterable[str] | Iterable[Sequence[str]]
"""The same, or one row, or bare texts or pairs of texts."""


def table_of(rows: Any, name: str) -> datasets.Dataset | None:
    """What is a table already, or a data frame, or a mapping of columns, as a `datasets.Dataset`.

    Classes of a `datasets.ClassLabel` column are replaced by their names, and so are those of a
    categorical column.

    Args:
        rows: a `Dataset`, a `DatasetDict` with one split, an `IterableDataset`, a pandas or polars
            DataFrame, an Arrow table, or a mapping of columns to lists of values.
        name: what messages call the rows.

    Returns:
        None for anything else, such as a list of rows, or one row.

    Raises:
        RowError: a data set has several splits, or the values do not make a table.
    """
    if isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        rows = _only_split(rows, name)
    if isinstance(rows, datasets.IterableDataset):
        rows = table_of_stream(rows, name)
    if isinstance(rows, datasets.Dataset):
        return with_class_names(rows)
    # A column of a data frame is a stream too, but no table: its values are listed elsewhere.
    is_frame = hasattr(rows, "__arrow_c_stream__") and not hasattr(rows, "to_frame")
    if is_frame:
        _check_names_differ(rows, name)
    columns = None
    try:
        if is_frame:
            columns = rows
            return _from_arrow(pa.table(rows), name)
        if is_columns(rows):
            columns = {key: list(cells) for key, cells in rows.items()}
            return datasets.Dataset.from_dict(columns)
    except CONVERSION_ERRORS as error:
        raise not_a_table(name, error, columns) from None
    return None


def _check_names_differ(frame: Any, name: str) -> None:
    """Raise RowError where two columns of a data frame or an Arrow table have one name."""
    names: Iterable[Any] = getattr(frame, "columns", ())
    if hasattr(frame, "column_names"):
        names = frame.column_names
    for column, count in Counter(map(str, names)).items():
        if count > 1:
            raise RowError(
                f"{name} has {count} columns with the name {column!r}, expected a name of its own "
                "for each; rename them, or leave out those that are not needed."
            )


def split_of(rows: Any, name: str) -> Any:
    """A split of a `DatasetDict` that has it, such as "train"; anything else unchanged."""
    if isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict) and name in rows:
        return rows[name]
    return rows


def with_validation_split(train: Any, valid: Any) -> tuple[Any, Any]:
    """The splits "train" and "validation" of a `DatasetDict`, where it is given alone."""
    is_split = isinstance(train, datasets.DatasetDict | datasets.IterableDatasetDict)
    if is_split and valid is None:
        valid = train.get("validation")
    return split_of(train, "train"), valid


def is_columns(rows: Any) -> bool:
    """Whether something is a mapping of columns, and not of the cells of one row."""
    if not isinstance(rows, Mapping) or not rows:
        return False
    return all(_is_column(cells) for cells in rows.values())


def _is_column(cells: Any) -> bool:
    """Whether something is a list of values: a list, an array, or a column of a data frame."""
    if isinstance(cells, str | bytes):
        return False
    return isinstance(cells, Sequence | np.ndarray) or hasattr(cells, "to_list")


def not_a_table(name: str, error: Exception, columns: Any = None) -> RowError:
    """The error for values that do not make a table.

    Args:
        name: what messages call the rows.
        error: what was raised.
        columns: the values, by column, if there are any: a mapping, or a data frame of pandas.
    """
    problem = f"{error}; use one type of value in each column"
    if hasattr(columns, "items"):
        problem = next(_problems(columns), problem)
    return RowError(f"{name} cannot be made into a table: {problem}.")


def _problems(columns: Any) -> Iterator[str]:
    """What is wrong with columns, and what to do, the first of which is told."""
    lengths = {column: len(values) for column, values in columns.items()}
    for column, length in lengths.items():
        first, expected = next(iter(lengths.items()))
        if length != expected:
            yield (
                f"column {first!r} and column {column!r} have {expected} and {length} values; give "
                "each row a value in both"
            )
    for column, values in columns.items():
        for number, value in enumerate(values, 1):
            try:
                check_text(value if isinstance(value, str) else "")
            except ColumnTypeError as error:
                yield f"row {number} has {error} in column {column!r}; leave it out"
    for conflict in _conflicts(columns):
        yield f"{conflict}; use one type of value in each column"


def _conflicts(columns: Any) -> Iterator[str]:
    """For each column that no type fits, the first value that does not fit to one before it."""
    for column, values in columns.items():
        first: tuple[int, Any] | None = None
        for number, value in enumerate(values, 1):
            if value is None or value != value:
                continue
            if not _fit_together([value]):
                yield f"row {number} has {_shown(value)} in column {column!r}"
                break
            first = first or (number, value)
            if type(value) is not type(first[1]) and not _fit_together([first[1], value]):
                yield (
                    f"row {number} has {_shown(value)} in column {column!r}, where row {first[0]} "
                    f"has {_shown(first[1])}"
                )
                break


def _fit_together(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except CONVERSION_ERRORS:
        return False
    return True


def _shown(value: Any) -> str:
    return f"{str(value)[:MAX_SHOWN_CHARACTERS]!r} ({type(value).__name__})"


def with_class_names(table: datasets.Dataset) -> datasets.Dataset:
    """A table whose class numbers are the names of the classes; -1 becomes None."""
    features = table.features.copy()
    numbered = {}
    for column, feature in table.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.ClassLabel):
            numbered[column] = feature.names
            features[column] = datasets.Value("string")
        elif isinstance(inner, datasets.ClassLabel):
            numbered[column] = inner.names
            features[column] = datasets.List(datasets.Value("string"))
    if not numbered:
        return table

    def named(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            column: [_class_names(cell, names) for cell in batch[column]]
            for column, names in numbered.items()
        }

    description = table.info.description
    # A table that is mapped into memory stays so.
    file = scratch_folder() / f"names-{uuid.uuid4().hex}.arrow" if table.cache_files else None
    with without_progress_bars():
        renamed = table.map(
            named,
            batched=True,
            features=features,
            keep_in_memory=file is None,
            cache_file_name=file and str(file),
        )
    renamed.info.description = description
    return renamed


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets`, for steps that take a moment."""
    were_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def with_column_names(table: datasets.Dataset, names: Mapping[str, str]) -> datasets.Dataset:
    """A table with some columns under new names.

    Args:
        table: with its columns as they are.
        names: from the new name of a column to its old one.

    Raises:
        RowError: there is no column of the old name, or one of the new name already.
    """
    source = table.info.description or "rows"
    for new, old in names.items():
        if old not in table.column_names:
            similar = difflib.get_close_matches(old, table.column_names, 1)
            hint = f" Did you mean {similar[0]!r}?" if similar else ""
            raise RowError(
                f"{source} has no column {old!r}, which is to be read as {new!r}; it has "
                f"{table.column_names}.{hint}"
            )
        if new in table.column_names and new not in names.values():
            raise RowError(
                f"{source} has a column {new!r} already, so {old!r} cannot be read as it; rename "
                "one of them in the file."
            )
    renamed = table.rename_columns({old: new for new, old in names.items()})
    renamed.info.description = table.info.description
    return renamed


def _class_names(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list):
        return [_class_names(each, names) for each in cell]
    return None if cell is None or cell < 0 else names[cell]


def _only_split(splits: Any, name: str) -> Any:
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise RowError(
        f"{name} has the splits {list(splits)}; give one of them, such as "
        f"rows[{next(iter(splits), 'train')!r}]."
    )


def _from_arrow(table: pa.Table, name: str) -> datasets.Dataset:
    columns: dict[str, pa.ChunkedArray] = {}
    for column in table.column_names:
        if column.startswith(INDEX_PREFIX):
            continue
        if table.column_names.count(column) > 1:
            raise RowError(f"{name} has the column {column!r} several times; name each once.")
        cells = table[column]
        if pa.types.is_dictionary(cells.type):
            cells = pa.chunked_array([_categories(chunk) for chunk in cells.chunks] or [[]])
        columns[column] = cells.cast(_usual_type(cells.type))
    return datasets.Dataset(pa.table(columns))


def _categories(cells: pa.DictionaryArray) -> pa.Array:
    """The names of categories in place of their numbers."""
    names = cells.dictionary
    return names.cast(_usual_type(names.type)).take(cells.indices)


def _usual_type(kind: pa.DataType) -> pa.DataType:
    """The type that `datasets` knows for the texts and lists of newer data frames."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_usual_type(kind.value_type))
    return kind

"""Several files as one table: a folder, a pattern, or a folder that `datasets` has saved."""

import glob
from collections.abc import Collection, Sequence
from pathlib import Path

import datasets

from peftcls.data.compression import COMPRESSED
from peftcls.errors import RowError, SeveralSplitsError

MAX_NAMED_FILES = 8
SAVED_TABLE = "state.json"
SAVED_SPLITS = "dataset_dict.json"


def find_files(source: str, suffixes: Collection[str]) -> list[Path]:
    """The files of a folder or a pattern such as "rows/*.csv", in the order of their names.

    Args:
        source: a path, or a pattern.
        suffixes: of the files in a folder that are taken; all others are left out.

    Returns:
        An empty list for what is neither.

    Raises:
        RowError: nothing fits the pattern.
    """
    path = Path(source)
    if path.is_dir():
        wanted = (*suffixes, *COMPRESSED)
        return sorted(
            file
            for file in path.iterdir()
            if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in wanted
        )
    if path.exists() or not glob.has_magic(source):
        return []
    files = sorted(Path(name) for name in glob.glob(source) if Path(name).is_file())
    if not files:
        raise RowError(
            f"no file fits {source}; check the pattern. A relative path starts from {Path.cwd()}."
        )
    return files


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return (path / SAVED_TABLE).is_file() or (path / SAVED_SPLITS).is_file()


def load_saved(path: Path, split: str | None) -> datasets.Dataset:
    """The table in a folder that `save_to_disk` has written.

    Raises:
        RowError: it is damaged, or has several splits and none is chosen.
    """
    try:
        saved = datasets.load_from_disk(str(path))
    # The folder's own files say which readers are used, and any of them may fail.
    except Exception as error:
        raise RowError(
            f"{path} was saved by datasets and cannot be read ({type(error).__name__}: {error}); "
            "save it again with save_to_disk."
        ) from None
    if isinstance(saved, datasets.Dataset):
        return saved
    if split is None and len(saved) == 1:
        split = next(iter(saved))
    if split not in saved:
        raise SeveralSplitsError(
            f"{path} has the splits {sorted(saved)}; choose one, such as "
            f"split={next(iter(saved))!r} (--split {next(iter(saved))}).",
            () if split else tuple(saved),
        )
    return saved[split]


def join_tables(files: Sequence[Path], tables: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """The rows of all files, one file after the other.

    Raises:
        RowError: two files have other columns, or other types in a column.
    """
    first = tables[0]
    joined = []
    for file, table in zip(files, tables, strict=True):
        if set(table.column_names) != set(first.column_names):
            raise RowError(
                f"{file.name} has the columns {table.column_names}, and {files[0].name} has "
                f"{first.column_names}; give all files the same columns."
            )
        for name, feature in first.features.items():
            if table.features[name] != feature:
                raise RowError(
                    f"{file.name} and {files[0].name} hold values of different types in column "
                    f"{name!r}; use one type of value in a column."
                )
        joined.append(table.select_columns(first.column_names))
    return datasets.concatenate_datasets(joined)


def name_of_files(source: str, files: Sequence[Path], tables: Sequence[datasets.Dataset]) -> str:
    """What messages call the rows of several files: with the numbers of each file's rows."""
    name = Path(source).name or source
    if len(files) > MAX_NAMED_FILES:
        return f"{name} ({len(files)} files in the order of their names)"
    parts = []
    start = 1
    for file, table in zip(files, tables, strict=True):
        parts.append(f"{file.name}: rows {start} to {start + len(table) - 1}")
        start += len(table)
    return f"{name} ({', '.join(parts)})"

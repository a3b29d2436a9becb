"""How the commands read the rows of a file or a data set on the hub."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import datasets

from peftcls.data.reading import check_cache, read_rows
from peftcls.data.tables import with_column_names


def pair_of(text: str, option: str) -> tuple[str, str]:
    """The two sides of a pair such as text=body.

    Raises:
        ValueError: there is no = with something on both sides.
    """
    first, _, second = text.partition("=")
    if not first.strip() or not second.strip():
        raise ValueError(f"{option}: expected two names with = between them, found {text!r}.")
    return first.strip(), second.strip()


@functools.cache
def copies_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for copies of the files that this process reads; it is removed at its end.

    It is on the disk of the cache of `datasets`, or with other temporary files where that cannot be
    written.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        check_cache(cache)
    except ValueError:
        cache = Path(tempfile.gettempdir())
    return tempfile.TemporaryDirectory(prefix="peftcls-", dir=cache, ignore_cleanup_errors=True)


@dataclasses.dataclass(frozen=True)
class Source:
    """The values of `--encoding`, `--columns`, `--split` and `--map`.

    Args:
        encoding: of text files; None for UTF-8.
        columns: the names of the columns with commas between them, where a file has no header.
        split: of a data set on the hub.
        map: pairs NEW=OLD: the column OLD is read as NEW.
    """

    encoding: str | None = None
    columns: str | None = None
    split: str | None = None
    map: tuple[str, ...] = ()

    @property
    def column_names(self) -> list[str] | None:
        """The names that `columns` lists."""
        if self.columns is None:
            return None
        return [name.strip() for name in self.columns.split(",")]

    @property
    def new_names(self) -> dict[str, str]:
        """The new names of columns, with their old ones."""
        return dict(pair_of(pair, "--map NEW=OLD") for pair in self.map)

    def read(self, file: str) -> datasets.Dataset:
        """The rows of a file, or of the split of a data set on the hub."""
        return self._read(file, self.split)

    def read_other(self, file: str) -> datasets.Dataset:
        """The rows of a further file, such as that of `--test`."""
        return self._read(file, None)

    def _read(self, file: str, split: str | None) -> datasets.Dataset:
        rows = read_rows(
            file,
            split=split,
            encoding=self.encoding,
            columns=self.column_names,
            cache_dir=copies_folder().name,
        )
        return with_column_names(rows, self.new_names)

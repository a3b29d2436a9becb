"""How the commands read the rows of a file or a data set on the hub."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import datasets

from peftcls.data.reading import check_cache, read_rows


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
    """The values of `--encoding`, `--columns` and `--split`.

    Args:
        encoding: of text files; None for UTF-8.
        columns: the names of the columns with commas between them, where a file has no header.
        split: of a data set on the hub.
    """

    encoding: str | None = None
    columns: str | None = None
    split: str | None = None

    @property
    def column_names(self) -> list[str] | None:
        """The names that `columns` lists."""
        if self.columns is None:
            return None
        return [name.strip() for name in self.columns.split(",")]

    def read(self, file: str) -> datasets.Dataset:
        """The rows of a file, or of the split of a data set on the hub."""
        return self._read(file, self.split)

    def read_other(self, file: str) -> datasets.Dataset:
        """The rows of a further file, such as that of `--test`."""
        return self._read(file, None)

    def _read(self, file: str, split: str | None) -> datasets.Dataset:
        return read_rows(
            file,
            split=split,
            encoding=self.encoding,
            columns=self.column_names,
            cache_dir=copies_folder().name,
        )

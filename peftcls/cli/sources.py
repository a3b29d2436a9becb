"""How the commands read the rows of a file or a data set on the hub."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import datasets

from peftcls.data.bad_lines import BadLines
from peftcls.data.reading import read_good_rows
from peftcls.data.row_numbers import number_rows
from peftcls.data.scratch import scratch_folder
from peftcls.data.tables import with_column_names
from peftcls.errors import SeveralSplitsError

Use = Literal["train", "valid", "test"]
"""What rows are for."""
SPLITS: dict[Use, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "dev"),
    "test": ("test",),
}
"""What the splits of data sets are called."""


def pair_of(text: str, option: str) -> tuple[str, str]:
    """The two sides of a pair such as text=body, with any spaces around them.

    Raises:
        ValueError: there is no = with something on both sides.
    """
    first, _, second = text.partition("=")
    if not first.strip() or not second.strip():
        raise ValueError(f"{option}: expected two names with = between them, found {text!r}.")
    return first, second


@dataclasses.dataclass(frozen=True)
class Source:
    """The values of `--encoding`, `--columns`, `--split`, `--map` and `--cache`.

    Args:
        encoding: of text files; None for UTF-8.
        columns: the names of the columns with commas between them, where a file has no header.
        split: of a data set on the hub.
        map: pairs NEW=OLD: the column OLD is read as NEW.
        cache: a folder where copies of files and tokenized rows stay; None removes them at the end.
        several: whether several files are read; those that have the new names already stay as they
            are then.
    """

    encoding: str | None = None
    columns: str | None = None
    split: str | None = None
    map: tuple[str, ...] = ()
    cache: Path | None = None
    several: bool = False

    @property
    def column_names(self) -> list[str] | None:
        """The names that `columns` lists."""
        if self.columns is None:
            return None
        return [name.strip() for name in self.columns.split(",")]

    @property
    def new_names(self) -> dict[str, str]:
        """The new names of columns, with their old ones."""
        # Names of columns may begin or end with a space.
        return dict(pair_of(pair, "--map NEW=OLD") for pair in self.map)

    @property
    def copies(self) -> Path:
        """The folder for copies of files."""
        return scratch_folder() if self.cache is None else self.cache

    def read(
        self, file: str, bad_lines: BadLines = None, *, use: Use | None = None
    ) -> datasets.Dataset:
        """The rows of a file, or of a split of a data set on the hub.

        Args:
            file: its name.
            bad_lines: takes lines that are no rows, which are then left out.
            use: of the rows; of several splits the one for it is read, unless `split` says which.
        """
        return self._read(file, self.split, bad_lines, use)

    def read_other(
        self, file: str, bad_lines: BadLines = None, *, use: Use | None = None
    ) -> datasets.Dataset:
        """The rows of a further file, such as that of `--test`; arguments as of `read`."""
        return self._read(file, None, bad_lines, use)

    def _names_to_change(self, columns: list[str]) -> dict[str, str]:
        """The new names with their old ones, less those that a file of several has already."""
        return {
            new: old
            for new, old in self.new_names.items()
            if not self.several or old in columns or new not in columns
        }

    def _read(
        self, file: str, split: str | None, bad_lines: BadLines, use: Use | None
    ) -> datasets.Dataset:
        read = functools.partial(
            read_good_rows,
            file,
            bad_lines,
            encoding=self.encoding,
            columns=self.column_names,
            cache_dir=self.copies,
        )
        try:
            rows = read(split=split)
        except SeveralSplitsError as error:
            names = [] if use is None else [name for name in SPLITS[use] if name in error.splits]
            if not names:
                raise
            rows = read(split=names[0])
        rows = with_column_names(rows, self._names_to_change(rows.column_names))
        # Of several files, the rows are numbered as they follow each other.
        if not bad_lines or not Path(file).is_file():
            return rows
        bad_numbers = {line.number for line in bad_lines}
        all_numbers = range(1, len(rows) + len(bad_numbers) + 1)
        return number_rows(rows, [number for number in all_numbers if number not in bad_numbers])

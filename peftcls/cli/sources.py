"""How the commands read the rows of a file or a data set on the hub."""

import dataclasses

import datasets

from peftcls.data.reading import read_rows


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
        return read_rows(file, split=self.split, encoding=self.encoding, columns=self.column_names)

    def read_other(self, file: str) -> datasets.Dataset:
        """The rows of a further file, such as that of `--test`."""
        return read_rows(file, encoding=self.encoding, columns=self.column_names)

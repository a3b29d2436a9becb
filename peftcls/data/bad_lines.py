"""Lines of a text file that are no rows of its table, where they are to be left out."""

import dataclasses

from peftcls.data.text_files import Row
from peftcls.errors import RowError


@dataclasses.dataclass(frozen=True)
class BadLine:
    """A line that is no row of its table.

    Args:
        file: its name.
        number: of the row in its file, from 1; bad ones count.
        line: its last line in the file, from 1.
        row: as much of it as could be read.
        problem: in the words that follow "row 17 of train.csv (line 18)".
    """

    file: str
    number: int
    line: int
    row: Row
    problem: str

    def __str__(self) -> str:
        return f"row {self.number} of {self.file} (line {self.line}) {self.problem}"


BadLines = list[BadLine] | None
"""Takes the bad lines, which are left out; None refuses the first of them."""


def leave_out(line: BadLine, bad_lines: BadLines) -> None:
    """Note a bad line, which is then left out.

    Raises:
        RowError: nothing takes bad lines.
    """
    if bad_lines is None:
        raise RowError(f"{line}")
    bad_lines.append(line)

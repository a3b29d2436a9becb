"""`--skip-bad-rows`: rows with errors are left out, counted, and written to a file."""

import csv
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import datasets
from transformers import PreTrainedTokenizerBase

from peftcls.cli.option_names import with_options
from peftcls.cli.sources import Source, Use
from peftcls.data.bad_lines import BadLine, BadLines
from peftcls.data.reading import Row, source_name
from peftcls.inference.answer_files import cell_text, written_whole
from peftcls.quality.bad_rows import BadRow, leave_out_bad_rows
from peftcls.quality.findings import MAX_SHOWN_ROWS, count_of
from peftcls.tasks.base import Task

SUFFIXES = (".csv", ".jsonl")
FILE, ROW, REASON = "file", "row", "reason"
PREFIX = "skipped_"
"""Before the names of the new columns where a row has a column of one of them."""


class SkippedRows:
    """The rows that are left out of the files of a command.

    Args:
        out: where they are written; None keeps every row, so that a bad one is refused later.
        sources: the files that are read.

    Raises:
        ValueError: the file cannot be written there.
    """

    def __init__(self, out: Path | None, sources: Iterable[str | None]) -> None:
        self.out = out
        self._bad: list[tuple[str, BadRow]] = []
        self._rows: dict[str, int] = {}
        if out is None:
            return
        if out.suffix.lower() not in SUFFIXES or not out.absolute().parent.is_dir():
            raise ValueError(
                f"--skip-bad-rows {out}: expected a file ending in .csv or .jsonl, in a folder "
                "that exists."
            )
        if out.absolute() in [Path(source).absolute() for source in sources if source]:
            raise ValueError(
                f"--skip-bad-rows {out} would replace the rows that are read; give another file."
            )

    def read(self, source: Source, file: str, *, use: Use | None = None) -> datasets.Dataset:
        """The rows of a file; lines that are no rows are left out where bad rows are.

        Args:
            source: how it is read.
            file: its name.
            use: of the rows, as for `Source.read`.
        """
        return self._without_bad_lines(functools.partial(source.read, use=use), file)

    def read_other(self, source: Source, file: str, *, use: Use | None = None) -> datasets.Dataset:
        """The rows of a further file, such as that of `--test`; arguments as of `read`."""
        return self._without_bad_lines(functools.partial(source.read_other, use=use), file)

    def _without_bad_lines(
        self, read: Callable[[str, BadLines], datasets.Dataset], file: str
    ) -> datasets.Dataset:
        if self.out is None:
            return read(file, None)
        bad_lines: list[BadLine] = []
        rows = read(file, bad_lines)
        name = source_name(rows)
        self._rows.setdefault(name, len(rows) + len(bad_lines))
        self._bad += [(name, _bad_row(line, name)) for line in bad_lines]
        return rows

    def left_out(
        self,
        task: Task,
        rows: datasets.Dataset,
        *,
        with_target: bool = True,
        training: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> datasets.Dataset:
        """The rows of a file without those that have errors; arguments as `leave_out_bad_rows`."""
        if self.out is None:
            return rows
        name = source_name(rows)
        kept, bad = leave_out_bad_rows(
            task, rows, with_target=with_target, training=training, tokenizer=tokenizer
        )
        self._rows.setdefault(name, len(rows))
        self._bad += [(name, row) for row in bad]
        return kept

    def sentences(self, *, written: bool = True) -> list[str]:
        """How many rows of each file were left out, which ones, and where they are.

        Args:
            written: whether they were written to the file.
        """
        said = []
        for name, rows in self._rows.items():
            bad = sorted((row for file, row in self._bad if file == name), key=_number)
            if not bad:
                said.append(f"no row of {name} had to be left out.")
                continue
            numbers = ", ".join(map(_number_and_place, bad[:MAX_SHOWN_ROWS]))
            more = ", ..." if len(bad) > MAX_SHOWN_ROWS else ""
            plural = "row" if len(bad) == 1 else "rows"
            said.append(
                f"left out {len(bad)} of {count_of(rows, 'row')} of {name}: {plural} {numbers}"
                f"{more}; row {bad[0].number} {with_options(bad[0].reason)}."
            )
        if self._bad and written:
            said.append(f"the rows that were left out are in {self.out}, with the reasons.")
        return said

    def write(self) -> None:
        """Write the rows that were left out, each with its file, its number and the reason.

        The file is written where there are none, too, so that it is never that of an earlier run.
        """
        if self.out is None:
            return
        rows = [(file, bad) for file, bad in self._bad]
        rows.sort(key=lambda pair: (list(self._rows).index(pair[0]), pair[1].number))
        columns = list(dict.fromkeys(name for _, bad in rows for name in bad.row))
        is_taken = {FILE, ROW, REASON} & set(columns)
        file, row, reason = (
            f"{PREFIX}{name}" if is_taken else name for name in (FILE, ROW, REASON)
        )
        lines = [
            {file: name, row: bad.number, **bad.row, reason: _reason_with_place(bad)}
            for name, bad in rows
        ]
        with (
            written_whole(self.out) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as opened,
        ):
            if self.out.suffix.lower() == ".jsonl":
                _write_jsonl(opened, lines)
            else:
                _write_csv(opened, [file, row, *columns, reason], lines)


def _bad_row(line: BadLine, name: str) -> BadRow:
    """A line as a bad row; a name of its own says in which of several files it stands."""
    of_file = "" if line.file == name else f" of {line.file}"
    reason = line.problem.removesuffix(".")
    return BadRow(line.number, line.row, reason, place=f"line {line.line}{of_file}")


def _number(bad: BadRow) -> int:
    return bad.number


def _number_and_place(bad: BadRow) -> str:
    return str(bad.number) if bad.place is None else f"{bad.number} ({bad.place})"


def _reason_with_place(bad: BadRow) -> str:
    return bad.reason if bad.place is None else f"{bad.place} {bad.reason}"


def _write_jsonl(file: IO[str], rows: Sequence[Row]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_csv(file: IO[str], columns: Sequence[str], rows: Sequence[Row]) -> None:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        cells: list[Any] = [cell_text(row.get(name)) for name in columns]
        table.writerow(cells)
